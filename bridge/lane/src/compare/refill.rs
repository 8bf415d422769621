//! Begins a window anew: rewinds it step by step, each step a call and then a look at the head.

use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Position, RefusalCode, Seq, StreamId};

use super::{Compare, Found};
use crate::message::{Command, Failure, Standing};
use crate::notice::Notice;
use crate::streams::{Finding, HaltReason};
use crate::{RequestId, Turn};

/// Windows that are begun anew at once.
const REFILLS: usize = 8;
/// Steps in a row that may leave the head where it is. A step that drops the oldest events of a broken log does so. The
/// bound is for a module that removes nothing.
const STEPS_IN_PLACE: u32 = 1_000;

/// A window that is being begun anew.
#[derive(Debug)]
pub(super) struct Refill {
    request: RequestId,
    /// The head as it was seen last.
    seen: Seq,
    /// Steps since the head last moved.
    in_place: u32,
    step: RefillStep,
}

#[derive(Debug)]
pub(super) enum RefillStep {
    /// The authority was asked for the chain hash that the window begins after.
    Chain(Seq),
    /// The module was asked for a step.
    Rewinding(Position),
    /// It was asked where the log ends after that.
    Looking(Position),
}

/// A stream's window is to begin anew.
#[derive(Debug)]
pub(super) struct Wanted {
    stream_id: StreamId,
    seen: Seq,
    after: Seq,
}

impl Compare {
    /// A stream's window is to begin anew after a position; SpacetimeDB's head was seen at `seen`.
    pub(crate) fn want_refill(&mut self, stream_id: StreamId, seen: Seq, after: Seq) {
        self.refills_wanted.push_back(Wanted { stream_id, seen, after });
    }

    /// Begins the refills that wait, as many as may be under way.
    pub(super) fn begin_refills(&mut self, turn: &mut Turn<'_>) {
        while self.refills.len() < REFILLS
            && let Some(Wanted { stream_id, seen, after }) = self.refills_wanted.pop_front()
        {
            let request = turn.ids.request();
            turn.out
                .push(Command::ReadStandings(request, vec![(stream_id.clone(), after)]));
            let refill = Refill {
                request,
                seen,
                in_place: 0,
                step: RefillStep::Chain(after),
            };
            let before = self.refills.insert(stream_id, refill);
            debug_assert!(before.is_none(), "a window is begun anew twice at once");
        }
    }

    pub(super) fn refill_of(&self, request: RequestId) -> Option<StreamId> {
        let mut all = self.refills.iter();
        let found = all.find(|(_, refill)| refill.request == request);
        found.map(|(stream_id, _)| stream_id.clone())
    }

    /// The authority said which chain hash the window begins after.
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
        let RefillStep::Chain(after) = refill.step else { return };
        let finding = match standings.map(|mut standings| standings.pop()) {
            Ok(Some(Ok(Standing { chain: Some(chain), .. }))) => {
                turn.out.push(Command::Tell(Notice::WindowBegun {
                    stream_id: stream_id.clone(),
                    after,
                }));
                return self.rewind(&stream_id, Position { seq: after, chain }, turn);
            }
            // Purged meanwhile: the next comparison says where the window begins.
            Ok(Some(Ok(Standing { chain: None, .. })) | None) => Finding::NotFilled {
                message: "the authority purged what the window was to begin after".to_owned(),
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

    fn rewind(&mut self, stream_id: &StreamId, to: Position, turn: &mut Turn<'_>) {
        if let (Some(link), Some(refill)) = (self.link, self.refills.get_mut(stream_id)) {
            refill.request = turn.ids.request();
            refill.step = RefillStep::Rewinding(to);
            turn.out.push(Command::Rewind {
                link,
                request: refill.request,
                stream_id: stream_id.clone(),
                seen: refill.seen,
                to,
            });
        }
    }

    /// The module took a step, or did not.
    pub(crate) fn rewound(&mut self, request: RequestId, rewound: Result<(), Failure>, turn: &mut Turn<'_>) -> Found {
        let mut found = Found::default();
        let (Some(link), Some(stream_id)) = (self.link, self.refill_of(request)) else {
            return found;
        };
        let Some(refill) = self.refills.get_mut(&stream_id) else {
            return found;
        };
        let RefillStep::Rewinding(to) = refill.step else {
            return found;
        };
        match rewound {
            Ok(()) => {
                refill.request = turn.ids.request();
                refill.step = RefillStep::Looking(to);
                turn.out.push(Command::ReadHeads(link, refill.request, vec![stream_id]));
            }
            Err(failure) => self.refill_failed(stream_id, failure, turn, &mut found),
        }
        found
    }

    /// SpacetimeDB said where the log ends after a step.
    pub(super) fn refill_looked(
        &mut self,
        stream_id: StreamId,
        heads: Result<Vec<Position>, Failure>,
        turn: &mut Turn<'_>,
        found: &mut Found,
    ) {
        let Some(refill) = self.refills.get_mut(&stream_id) else {
            return;
        };
        let RefillStep::Looking(to) = refill.step else { return };
        match heads.map(|heads| heads.first().copied()) {
            Ok(Some(held)) if held == to => {
                self.refills.remove(&stream_id);
                found.findings.push((stream_id, Finding::Filled(to.seq)));
            }
            Ok(Some(held)) if held.seq < refill.seen => {
                (refill.seen, refill.in_place) = (held.seq, 0);
                self.rewind(&stream_id, to, turn);
            }
            // The step dropped the oldest events of a broken log.
            Ok(Some(held)) if held.seq == refill.seen && refill.in_place < STEPS_IN_PLACE => {
                refill.in_place += 1;
                self.rewind(&stream_id, to, turn);
            }
            Ok(held) => {
                let text = format!(
                    "a rewind to seq {} got no further than {}",
                    to.seq,
                    held.map_or("nowhere".to_owned(), |held| format!("seq {}", held.seq))
                );
                let failure = Failure {
                    class: RefusalClass::Retry,
                    refusal: None,
                    text,
                };
                self.refill_failed(stream_id, failure, turn, found);
            }
            Err(failure) => self.refill_failed(stream_id, failure, turn, found),
        }
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
            // Another bridge is at work on it.
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
