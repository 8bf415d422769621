//! The ledger: the published seqs that the bridge still has to record in the authority.
//!
//! Many records become one statement. Only one statement is under way at a time, so that a set-back and an advance of the
//! same stream never overtake each other. If a writer holds a row, or the authority refuses to write it, only that stream
//! waits.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rand::Rng;
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Seq, StreamId};

use crate::RequestId;
use crate::backoff::Backoff;
use crate::ids::Ids;
use crate::maps::{Map, Set};
use crate::message::{Command, Failure, Record, Recorded};
use crate::notice::Notice;

/// How long the ledger gathers records for one statement. If the bridge dies before, it publishes these events again, and
/// the module absorbs them.
const GATHER: Duration = Duration::from_millis(20);
/// The wait before the next try after a writer held the row.
const LOCKED: Duration = Duration::from_millis(100);
/// The first and the longest wait after the authority did not answer a statement.
const AWAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The wait before the next try after the authority refused to write a row.
const REFUSED: Duration = Duration::from_secs(10);
/// The most streams in one statement.
const STREAMS: usize = 1_000;

/// What to record about one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    published: Seq,
    /// SpacetimeDB holds less than was recorded, so the published seq moves back to exactly this one.
    back: bool,
    place: Place,
}

/// Where an entry waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Queued,
    Resting(Duration),
}

/// The statement that is under way.
#[derive(Debug)]
struct Writing {
    request: RequestId,
    entries: Vec<(StreamId, Seq)>,
    streams: Set<StreamId>,
    back: bool,
    /// It was sent before the current link came up. If it fails, the ledger does not repeat it.
    stale: bool,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    entries: Map<StreamId, Entry>,
    queue: VecDeque<StreamId>,
    resting: BTreeSet<(Duration, StreamId)>,
    writing: Option<Writing>,
    /// When to send the next statement. `None` if no entry is queued.
    due: Option<Duration>,
    /// How many streams one statement may have. After a refusal it shrinks, until the refused stream is alone.
    most: usize,
    backoff: Backoff,
    /// Streams whose published seq the authority refuses to record, with its reasons.
    refused: Map<StreamId, String>,
}

/// What an answer means for the streams.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The authority's log ends before what SpacetimeDB acknowledged.
    pub(crate) above_head: Vec<StreamId>,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self {
            entries: Map::default(),
            queue: VecDeque::new(),
            resting: BTreeSet::new(),
            writing: None,
            due: None,
            most: STREAMS,
            backoff: Backoff::new(AWAY.0, AWAY.1),
            refused: Map::default(),
        }
    }

    /// SpacetimeDB durably holds a stream up to this seq.
    pub(crate) fn advance(&mut self, now: Duration, stream_id: StreamId, to: Seq) {
        self.put(now, stream_id, to, false);
    }

    /// SpacetimeDB holds a stream only up to this seq. A record that waits and says more is outdated.
    pub(crate) fn set_back(&mut self, now: Duration, stream_id: StreamId, to: Seq) {
        if let Some(entry) = self.entries.get_mut(&stream_id) {
            (entry.published, entry.back) = (to, true);
        }
        self.put(now, stream_id, to, true);
    }

    /// SpacetimeDB holds a stream exactly up to the published seq. A record of another seq, whether it waits or is under way,
    /// is outdated.
    pub(crate) fn holds(&mut self, now: Duration, stream_id: StreamId, at: Seq) {
        if self.is_recording(&stream_id) {
            self.set_back(now, stream_id, at);
        }
    }

    /// Whether a record of a stream waits or is under way.
    pub(crate) fn is_recording(&self, stream_id: &StreamId) -> bool {
        let writing = self.writing.as_ref();
        self.entries.contains_key(stream_id) || writing.is_some_and(|writing| writing.streams.contains(stream_id))
    }

    fn put(&mut self, now: Duration, stream_id: StreamId, to: Seq, back: bool) {
        if let Some(entry) = self.entries.get_mut(&stream_id) {
            entry.published = entry.published.max(to);
            entry.back |= back;
            return;
        }
        self.queue.push_back(stream_id.clone());
        let entry = Entry {
            published: to,
            back,
            place: Place::Queued,
        };
        self.entries.insert(stream_id, entry);
        self.due.get_or_insert(now + GATHER);
    }

    /// A new link is up: drops what waits, because it may no longer be true. The comparison finds out what is published.
    pub(crate) fn forget(&mut self) {
        self.entries.clear();
        self.queue.clear();
        self.resting.clear();
        self.due = None;
        self.refused.clear();
        if let Some(writing) = &mut self.writing {
            writing.stale = true;
        }
    }

    /// Whether a statement from before the current link is under way. Until it is answered, it may still set published seqs
    /// that are outdated.
    pub(crate) fn writes_the_past(&self) -> bool {
        self.writing.as_ref().is_some_and(|writing| writing.stale)
    }

    /// Whether everything is recorded.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.writing.is_none()
    }

    /// How many streams are not recorded yet.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() + self.writing.as_ref().map_or(0, |writing| writing.entries.len())
    }

    /// Streams whose published seq the authority refuses to record, with its reasons.
    pub(crate) fn refused(&self) -> &Map<StreamId, String> {
        &self.refused
    }

    /// Makes the next statement due now.
    pub(crate) fn flush(&mut self, now: Duration) {
        if !self.entries.is_empty() {
            self.due = Some(now);
        }
    }

    /// When the next statement is due.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        if self.writing.is_some() {
            return None;
        }
        let rested = self.resting.first().map(|(until, _)| *until);
        match (self.due, rested) {
            (Some(due), Some(rested)) => Some(due.min(rested)),
            (due, rested) => due.or(rested),
        }
    }

    /// Sends the next statement if it is due.
    pub(crate) fn turn(&mut self, now: Duration, ids: &mut Ids, out: &mut Vec<Command>) {
        while let Some((until, _)) = self.resting.first()
            && *until <= now
            && let Some((_, stream_id)) = self.resting.pop_first()
        {
            if let Some(entry) = self.entries.get_mut(&stream_id) {
                entry.place = Place::Queued;
                self.queue.push_back(stream_id);
                self.due.get_or_insert(now);
            }
        }
        if self.writing.is_some() || self.due.is_none_or(|due| due > now) {
            return;
        }
        self.due = None;
        // A statement either only advances or only sets exactly. The first stream in the queue decides which.
        let mut back = None;
        let mut entries = Vec::new();
        while entries.len() < self.most
            && let Some(stream_id) = self.queue.pop_front()
        {
            let Some(entry) = self.entries.get(&stream_id) else {
                continue;
            };
            if !matches!(entry.place, Place::Queued) {
                continue;
            }
            if *back.get_or_insert(entry.back) != entry.back {
                self.queue.push_front(stream_id);
                break;
            }
            if let Some(entry) = self.entries.remove(&stream_id) {
                entries.push((stream_id, entry.published));
            }
        }
        let Some(back) = back.filter(|_| !entries.is_empty()) else {
            return;
        };
        if !self.queue.is_empty() {
            self.due = Some(now);
        }
        let request = ids.request();
        let records = entries
            .iter()
            .map(|(stream_id, published)| Record {
                stream_id: stream_id.clone(),
                published: *published,
            })
            .collect();
        out.push(if back {
            Command::RecordExactly(request, records)
        } else {
            Command::Record(request, records)
        });
        self.writing = Some(Writing {
            request,
            streams: entries.iter().map(|(stream_id, _)| stream_id.clone()).collect(),
            entries,
            back,
            stale: false,
        });
    }

    /// The authority has answered a statement.
    pub(crate) fn recorded(
        &mut self,
        now: Duration,
        request: RequestId,
        recorded: Result<Recorded, Failure>,
        dice: &mut impl Rng,
        out: &mut Vec<Command>,
    ) -> Outcome {
        let Some(writing) = self.writing.take_if(|writing| writing.request == request) else {
            return Outcome::default();
        };
        let mut outcome = Outcome::default();
        match recorded {
            Ok(recorded) => {
                self.backoff.reset();
                self.most = (self.most * 2).min(STREAMS);
                for (stream_id, published) in writing.entries {
                    if recorded.locked.contains(&stream_id) {
                        if !writing.stale {
                            self.again(now + LOCKED, stream_id, published, writing.back);
                        }
                    } else {
                        self.refused.remove(&stream_id);
                    }
                }
                if !writing.stale {
                    outcome.above_head = recorded.above_head;
                }
            }
            Err(failure) => self.failed(now, writing, &failure, dice, out),
        }
        outcome
    }

    /// A statement has failed.
    fn failed(
        &mut self,
        now: Duration,
        writing: Writing,
        failure: &Failure,
        dice: &mut impl Rng,
        out: &mut Vec<Command>,
    ) {
        let streams = writing.entries.len();
        let alone = streams == 1;
        let wait = match failure.class {
            RefusalClass::Retry => self.backoff.next(dice),
            // The authority refuses to write some row. Smaller statements find out which.
            RefusalClass::Reject | RefusalClass::Fatal if !alone => {
                self.most = (streams / 2).max(1);
                Duration::ZERO
            }
            RefusalClass::Reject | RefusalClass::Fatal => REFUSED,
        };
        let for_good = alone && failure.class != RefusalClass::Retry;
        if !for_good {
            let why = failure.text.clone();
            out.push(Command::Tell(Notice::NotRecorded { streams, why }));
        }
        for (stream_id, published) in writing.entries {
            if for_good && self.refused.insert(stream_id.clone(), failure.text.clone()).is_none() {
                out.push(Command::Tell(Notice::CannotRecord {
                    stream_id: stream_id.clone(),
                    why: failure.text.clone(),
                }));
            }
            if !writing.stale {
                self.again(now + wait, stream_id, published, writing.back);
            }
        }
        // The authority would not answer the streams in the queue either.
        if failure.class == RefusalClass::Retry
            && let Some(due) = &mut self.due
        {
            *due = (*due).max(now + wait);
        }
    }

    /// Records a stream again after a rest, unless a newer entry exists.
    fn again(&mut self, until: Duration, stream_id: StreamId, published: Seq, back: bool) {
        if let Some(newer) = self.entries.get_mut(&stream_id) {
            // A newer set-back replaces the old entry. A newer advance continues from it.
            if !newer.back {
                newer.published = newer.published.max(published);
                newer.back = back;
            }
            return;
        }
        self.resting.insert((until, stream_id.clone()));
        let entry = Entry {
            published,
            back,
            place: Place::Resting(until),
        };
        self.entries.insert(stream_id, entry);
    }
}

#[cfg(test)]
mod tests;
