//! Refills windows. A refill rewinds SpacetimeDB's log to where the window is to begin, step by step. Each step begins at
//! the head that the step before it left: what another bridge appended in between may be published, and stays.

use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::rewind::{Rewind, Step};
use spacetime_sync_proto::{Position, RefusalCode, Seq, StreamId};

use super::{Compare, Found};
use crate::message::{Command, Failure, Standing};
use crate::notice::Notice;
use crate::streams::{Finding, HaltReason};
use crate::{RequestId, Turn};

/// How many refills may be under way at once.
const REFILLS: usize = 8;

/// A refill that is under way.
#[derive(Debug)]
pub(super) struct Refill {
    request: RequestId,
    step: RefillStep,
}

#[derive(Debug)]
pub(super) enum RefillStep {
    /// Asks the authority for the chain hash at the seq after which the window begins. SpacetimeDB's head was at `seen`.
    Chain { seen: Position, after: Seq },
    /// Asks the module to take a step.
    Rewinding(Rewind),
}

/// A refill that waits for its turn.
#[derive(Debug)]
pub(super) struct Wanted {
    stream_id: StreamId,
    seen: Position,
    after: Seq,
}

impl Compare {
    /// A stream's window is to begin after the seq `after`. SpacetimeDB's head was at `seen`.
    pub(crate) fn want_refill(&mut self, stream_id: StreamId, seen: Position, after: Seq) {
        self.walks.take_unsound(&stream_id);
        self.refills_wanted.push_back(Wanted { stream_id, seen, after });
    }

    /// Begins refills that wait, as many as may be under way.
    pub(super) fn begin_refills(&mut self, turn: &mut Turn<'_>) {
        while self.refills.len() < REFILLS
            && let Some(Wanted { stream_id, seen, after }) = self.refills_wanted.pop_front()
        {
            let request = turn.ids.request();
            turn.out
                .push(Command::ReadStandings(request, vec![(stream_id.clone(), after)]));
            let refill = Refill {
                request,
                step: RefillStep::Chain { seen, after },
            };
            let before = self.refills.insert(stream_id, refill);
            debug_assert!(before.is_none(), "two refills of one window at once");
        }
    }

    /// The stream whose refill asked this question.
    pub(super) fn refill_of(&self, request: RequestId) -> Option<StreamId> {
        let mut all = self.refills.iter();
        let found = all.find(|(_, refill)| refill.request == request);
        found.map(|(stream_id, _)| stream_id.clone())
    }

    /// The authority has answered with the chain hash at which the window begins.
    pub(super) fn refill_chain(
        &mut self,
        stream_id: StreamId,
        standings: Result<Vec<Result<Standing, String>>, Failure>,
        turn: &mut Turn<'_>,
        found: &mut Found,
    ) {
        let Some(refill) = self.refills.get_mut(&stream_id) else {
            return;
        };
        let RefillStep::Chain { seen, after } = refill.step else {
            return;
        };
        let finding = match standings.map(|mut standings| standings.pop()) {
            Ok(Some(Ok(Standing { chain: Some(chain), .. }))) => {
                turn.out.push(Command::Tell(Notice::WindowBegun {
                    stream_id: stream_id.clone(),
                    after,
                }));
                return self.rewind(&stream_id, Rewind::new(seen, Position { seq: after, chain }), turn);
            }
            // The authority purged it in the meantime. The next comparison says where the window begins now.
            Ok(Some(Ok(Standing { chain: None, .. })) | None) => Finding::NotFilled {
                message: "the authority has purged the event before the window".to_owned(),
                counts: false,
            },
            Ok(Some(Err(why))) => Finding::Broken(HaltReason::BrokenLog(why)),
            Err(failure) => match failure.class {
                RefusalClass::Retry | RefusalClass::Fatal => {
                    let message = failure.text.clone();
                    let (stream_id, why) = (stream_id.clone(), failure.text);
                    turn.out.push(Command::Tell(Notice::NotCompared { stream_id, why }));
                    Finding::NotFilled { message, counts: false }
                }
                RefusalClass::Reject => Finding::Broken(HaltReason::BrokenLog(failure.text)),
            },
        };
        self.refills.remove(&stream_id);
        found.findings.push((stream_id, finding));
    }

    fn rewind(&mut self, stream_id: &StreamId, rewind: Rewind, turn: &mut Turn<'_>) {
        if let (Some(link), Some(refill)) = (self.link, self.refills.get_mut(stream_id)) {
            refill.request = turn.ids.request();
            refill.step = RefillStep::Rewinding(rewind);
            turn.out.push(Command::Rewind {
                link,
                request: refill.request,
                stream_id: stream_id.clone(),
                seen: rewind.seen(),
                to: rewind.to(),
            });
        }
    }

    /// The module has answered a step with the head that it left.
    pub(crate) fn rewound(
        &mut self,
        request: RequestId,
        rewound: Result<Position, Failure>,
        turn: &mut Turn<'_>,
    ) -> Found {
        let mut found = Found::default();
        let Some(stream_id) = self.refill_of(request) else {
            return found;
        };
        let Some(refill) = self.refills.get(&stream_id) else {
            return found;
        };
        let RefillStep::Rewinding(mut rewind) = refill.step else {
            return found;
        };
        let to = rewind.to();
        match rewound.map(|left| (left, rewind.left(left))) {
            Ok((_, Step::Done)) => {
                self.refills.remove(&stream_id);
                found.findings.push((stream_id, Finding::Filled(to.seq)));
            }
            Ok((_, Step::Next)) => self.rewind(&stream_id, rewind, turn),
            Ok((left, Step::Unexpected)) => {
                let text = format!(
                    "expected a rewind to end the log at seq {}, found seq {}",
                    to.seq, left.seq
                );
                let failure = Failure {
                    class: RefusalClass::Retry,
                    refusal: None,
                    text,
                };
                self.refill_failed(stream_id, failure, turn, &mut found);
            }
            Err(failure) => self.refill_failed(stream_id, failure, turn, &mut found),
        }
        found
    }

    fn refill_failed(&mut self, stream_id: StreamId, failure: Failure, turn: &mut Turn<'_>, found: &mut Found) {
        self.refills.remove(&stream_id);
        let why = failure.text.clone();
        let finding = match (failure.class, failure.refusal) {
            (RefusalClass::Fatal, _) => {
                found.drop_link = Some(failure.text);
                return;
            }
            (RefusalClass::Reject, Some(refusal)) => Finding::Broken(HaltReason::Refused(refusal)),
            (RefusalClass::Reject, None) => Finding::NotFilled {
                message: failure.text,
                counts: true,
            },
            // Another bridge works on this stream.
            (RefusalClass::Retry, Some(refusal)) if refusal.code == RefusalCode::SeqGap => Finding::NotFilled {
                message: failure.text,
                counts: false,
            },
            (RefusalClass::Retry, _) => Finding::NotFilled {
                message: failure.text,
                counts: true,
            },
        };
        if !matches!(finding, Finding::Broken(_)) {
            let stream_id = stream_id.clone();
            turn.out.push(Command::Tell(Notice::NotCompared { stream_id, why }));
        }
        found.findings.push((stream_id, finding));
    }
}
