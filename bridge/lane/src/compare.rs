//! Compares each stream in SpacetimeDB with the authority, on every new link and now and then.
//!
//! Streams that want to flow come first, many in one batch, and each of them flows as soon as it has its verdict. Meanwhile
//! the sweep compares all other streams page by page, so that the bridge notices a stream that was restored, wiped or
//! replaced before its next event. If one stream makes a batch fail, the batch is halved until that stream is alone, and
//! only that stream halts.
//!
//! Where SpacetimeDB lacks too much, the stream's window is refilled. So it is where SpacetimeDB holds a forgery.

mod refill;
mod suspect;
mod sweep;
mod walk;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Position, Seq, StreamId};

use crate::backoff::Backoff;
use crate::beats::Policy;
use crate::maps::Set;
use crate::message::{Command, Failure, Standing};
use crate::notice::Notice;
use crate::streams::{Finding, HaltReason, Verdict, publish_again_after, reconcile, window_begin};
use crate::{LinkId, RequestId, Turn};

use refill::{Refill, Wanted};
use suspect::Suspect;
pub(crate) use sweep::Coverage;
use sweep::Sweep;
use walk::Walks;

/// The first and the longest wait before the sweep tries again after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Streams that are compared together.
#[derive(Debug)]
struct Batch {
    request: RequestId,
    streams: Vec<StreamId>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Asks SpacetimeDB for the heads.
    Heads,
    /// Asks the authority what it has at these heads.
    Standings(Vec<Position>),
}

/// What an answer led to.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) findings: Vec<(StreamId, Finding)>,
    /// Streams that may not fit any more, and are to be compared alone.
    pub(crate) doubts: Vec<StreamId>,
    /// How many walks have ended.
    pub(crate) walks: u64,
    /// How many streams hold a forgery.
    pub(crate) forgeries: u64,
    /// Why to give up the link: the module refuses every call on it.
    pub(crate) drop_link: Option<String>,
}

impl Found {
    /// SpacetimeDB holds a forgery of the stream, up to `to`. Counts it and tells a person. The verdict removes it.
    fn forged(&mut self, stream_id: StreamId, to: Seq, after: Seq, turn: &mut Turn<'_>) -> Verdict {
        self.forgeries += 1;
        turn.out.push(Command::Tell(Notice::Forged { stream_id, to, after }));
        Verdict::Refill(after)
    }
}

#[derive(Debug)]
pub(crate) struct Compare {
    /// The most streams in one batch, and in one page of the sweep.
    batch: usize,
    /// The link on which streams are compared. `None` until [`Compare::open`], even if a link is up.
    link: Option<LinkId>,
    /// Streams that want to flow, in the order in which they came. They may come before the comparison opens.
    wanted: VecDeque<StreamId>,
    /// The streams in `wanted`, so that none waits twice.
    queued: Set<StreamId>,
    /// The halves of batches that failed.
    parts: VecDeque<Vec<StreamId>>,
    /// The batch of streams that want to flow.
    urgent: Option<Batch>,
    /// The batch of the sweep.
    sweeping: Option<Batch>,
    /// When the sweep begins again, after a round.
    every: Duration,
    sweep: Sweep,
    /// Up to where the present round has come.
    swept: Option<StreamId>,
    coverage: Coverage,
    backoff: Backoff,
    refills: BTreeMap<StreamId, Refill>,
    refills_wanted: VecDeque<Wanted>,
    /// Streams whose seal is being checked.
    suspects: Vec<(RequestId, Suspect)>,
    /// Streams whose seal is to be checked.
    suspects_wanted: VecDeque<Suspect>,
    walks: Walks,
    began: Duration,
    compared: u64,
}

impl Compare {
    pub(crate) fn new(batch: usize, every: Duration) -> Self {
        Self {
            batch,
            link: None,
            wanted: VecDeque::new(),
            queued: Set::default(),
            parts: VecDeque::new(),
            urgent: None,
            sweeping: None,
            every,
            sweep: Sweep::Waiting(Duration::ZERO),
            swept: None,
            coverage: Coverage::None,
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            refills: BTreeMap::new(),
            refills_wanted: VecDeque::new(),
            suspects: Vec::new(),
            suspects_wanted: VecDeque::new(),
            walks: Walks::default(),
            began: Duration::ZERO,
            compared: 0,
        }
    }

    /// The link is down: forgets everything, because no answer will come.
    pub(crate) fn close(&mut self) {
        *self = Self::new(self.batch, self.every);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.link.is_some()
    }

    /// Begins to compare on a new link.
    pub(crate) fn open(&mut self, now: Duration, link: LinkId) {
        debug_assert!(self.link.is_none());
        self.link = Some(link);
        self.sweep = Sweep::Waiting(now);
        self.began = now;
    }

    /// A stream wants to flow and must be compared first.
    pub(crate) fn want(&mut self, stream_id: StreamId) {
        if self.queued.insert(stream_id.clone()) {
            self.wanted.push_back(stream_id);
        }
    }

    /// Which streams the sweep has compared on this link.
    pub(crate) fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.link?;
        let sweep = match self.sweep {
            Sweep::Waiting(until) => Some(until),
            Sweep::Listing(_) | Sweep::Comparing { .. } => None,
        };
        sweep.into_iter().chain(self.walks.next_due()).min()
    }

    /// Begins the comparisons and refills that can begin.
    pub(crate) fn turn(&mut self, turn: &mut Turn<'_>) {
        let Some(link) = self.link else { return };
        if self.urgent.is_none() {
            let streams = self.parts.pop_front().unwrap_or_else(|| {
                let most = self.wanted.len().min(self.batch);
                let batch: Vec<_> = self.wanted.drain(..most).collect();
                batch.iter().for_each(|stream_id| {
                    self.queued.remove(stream_id);
                });
                batch
            });
            self.urgent = begin(link, streams, turn);
        }
        if matches!(self.sweep, Sweep::Waiting(until) if until <= turn.now) {
            let request = turn.ids.request();
            self.sweep = Sweep::Listing(request);
            turn.out.push(Command::ListStreams {
                request,
                after: self.swept.clone(),
                limit: self.batch,
            });
        }
        self.begin_refills(turn);
        self.begin_checks(turn);
        self.walk(turn);
    }

    /// SpacetimeDB has answered with the heads of streams.
    pub(crate) fn heads(
        &mut self,
        request: RequestId,
        heads: Result<Vec<Position>, Failure>,
        turn: &mut Turn<'_>,
    ) -> Found {
        let mut found = Found::default();
        let is_asked = |batch: &Batch| batch.request == request && matches!(batch.stage, Stage::Heads);
        let Some((slot, is_sweep)) = self.slot(is_asked) else {
            return found;
        };
        let Some(batch) = slot.as_mut() else { return found };
        match heads {
            Ok(heads) if heads.len() == batch.streams.len() => {
                batch.request = turn.ids.request();
                let at = batch.streams.iter().cloned();
                let at = at.zip(heads.iter().map(|head| head.seq)).collect();
                turn.out.push(Command::ReadStandings(batch.request, at));
                batch.stage = Stage::Standings(heads);
            }
            Ok(heads) => {
                let failure = miscounted("heads", heads.len(), batch.streams.len());
                self.failed(is_sweep, failure, true, turn, &mut found);
            }
            Err(failure) => self.failed(is_sweep, failure, true, turn, &mut found),
        }
        found
    }

    /// The authority has answered what it has at these heads.
    pub(crate) fn standings(
        &mut self,
        request: RequestId,
        standings: Result<Vec<Result<Standing, String>>, Failure>,
        policy: &Policy,
        turn: &mut Turn<'_>,
    ) -> Found {
        let mut found = Found::default();
        if let Some(stream_id) = self.refill_of(request) {
            self.refill_chain(stream_id, standings, turn, &mut found);
            return found;
        }
        if let Some(suspect) = self.take_suspect(request) {
            return self.sound_part_known(suspect, standings, turn);
        }
        let is_asked = |batch: &Batch| batch.request == request && matches!(batch.stage, Stage::Standings(_));
        let Some((slot, is_sweep)) = self.slot(is_asked) else {
            return found;
        };
        let standings = match standings {
            Ok(standings) => standings,
            Err(failure) => {
                self.failed(is_sweep, failure, false, turn, &mut found);
                return found;
            }
        };
        let Some(batch) = slot.take() else { return found };
        let again = is_sweep && self.coverage == Coverage::All;
        let Stage::Standings(heads) = batch.stage else {
            return found;
        };
        debug_assert_eq!(standings.len(), batch.streams.len());
        self.compared += batch.streams.len() as u64;
        for ((stream_id, held), standing) in batch.streams.into_iter().zip(heads).zip(standings) {
            let finding = match standing {
                Ok(Standing { progress, chain }) => {
                    let window = policy.window(&stream_id);
                    let head = progress.head_seq;
                    match reconcile(&progress, held, chain, window) {
                        // What was heard of a stream that flows may be outdated: a comparison of its own decides.
                        verdict if again => {
                            if !verdict.fits() || self.walks.is_unsound(&stream_id) {
                                found.doubts.push(stream_id);
                            }
                            continue;
                        }
                        Verdict::Apart(reason) => {
                            // What is found about the end of the log decides from where the window is refilled.
                            self.walks.take_unsound(&stream_id);
                            let suspect = Suspect {
                                stream_id,
                                held,
                                head,
                                reason,
                                after: publish_again_after(&progress, held.seq, window),
                                unpublished: held.seq > progress.published_seq,
                                sound: None,
                            };
                            self.suspects_wanted.push_back(suspect);
                            continue;
                        }
                        verdict => {
                            let verdict = match self.walks.take_unsound(&stream_id) {
                                Some(after) => {
                                    let after = after.max(window_begin(&progress, window));
                                    found.forged(stream_id.clone(), held.seq, after, turn)
                                }
                                None => verdict,
                            };
                            Finding::Compared { verdict, held, head }
                        }
                    }
                }
                Err(_) if again => {
                    found.doubts.push(stream_id);
                    continue;
                }
                Err(why) => Finding::Broken(HaltReason::BrokenLog(why)),
            };
            found.findings.push((stream_id, finding));
        }
        self.begin_checks(turn);
        if is_sweep {
            self.page_compared(turn);
        }
        found
    }

    /// The batch to which an answer belongs, and whether it is the sweep's.
    fn slot(&mut self, is_asked: impl Fn(&Batch) -> bool) -> Option<(&mut Option<Batch>, bool)> {
        if self.urgent.as_ref().is_some_and(&is_asked) {
            Some((&mut self.urgent, false))
        } else if self.sweeping.as_ref().is_some_and(&is_asked) {
            Some((&mut self.sweeping, true))
        } else {
            None
        }
    }

    /// A batch has failed.
    fn failed(&mut self, is_sweep: bool, failure: Failure, by_module: bool, turn: &mut Turn<'_>, found: &mut Found) {
        let slot = if is_sweep { &mut self.sweeping } else { &mut self.urgent };
        let Some(batch) = slot.take() else { return };
        match failure.class {
            // The module does not recognise this bridge.
            RefusalClass::Fatal if by_module => {
                found.drop_link = Some(failure.text);
                return;
            }
            RefusalClass::Retry => {
                let (why, streams) = (failure.text, batch.streams);
                if let Some(first) = streams.first() {
                    let stream_id = first.clone();
                    turn.out.push(Command::Tell(Notice::NotCompared { stream_id, why }));
                }
                // The sweep repeats its page. The streams that want to flow rest and ask again.
                if !is_sweep {
                    let waits = streams.into_iter().map(|stream_id| (stream_id, Finding::NotCompared));
                    found.findings.extend(waits);
                }
            }
            RefusalClass::Reject | RefusalClass::Fatal => match &batch.streams[..] {
                [alone] if is_sweep && self.coverage == Coverage::All => found.doubts.push(alone.clone()),
                [alone] => {
                    let reason = HaltReason::BrokenLog(failure.text);
                    found.findings.push((alone.clone(), Finding::Broken(reason)));
                }
                streams => {
                    let (left, right) = streams.split_at(streams.len() / 2);
                    self.parts.extend([left.to_vec(), right.to_vec()]);
                }
            },
        }
        if is_sweep && let Sweep::Comparing { .. } = self.sweep {
            if failure.class == RefusalClass::Retry {
                self.sweep = Sweep::Waiting(turn.now + self.backoff.next(turn.dice));
            } else {
                // Its halves are compared as urgent batches, so the sweep goes on.
                self.page_compared(turn);
            }
        }
    }
}

/// Begins the comparison of streams, if there are any.
fn begin(link: LinkId, streams: Vec<StreamId>, turn: &mut Turn<'_>) -> Option<Batch> {
    if streams.is_empty() {
        return None;
    }
    let request = turn.ids.request();
    turn.out.push(Command::ReadHeads(link, request, streams.clone()));
    Some(Batch {
        request,
        streams,
        stage: Stage::Heads,
    })
}

fn miscounted(what: &str, found: usize, expected: usize) -> Failure {
    Failure {
        class: RefusalClass::Retry,
        refusal: None,
        text: format!("expected {expected} {what}, found {found}"),
    }
}

#[cfg(test)]
mod tests;
