//! Walks through the windows of streams about which SpacetimeDB contradicts the authority, as clients report. A comparison
//! looks at the ends of logs alone; a walk looks at every frame that SpacetimeDB holds. Where it finds one that is not the
//! bridge's, and finds one a while later again, the stream is compared, and its window is refilled from there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Seq, StreamId};

use super::{Compare, Found};
use crate::message::{Checked, Command, Failure, Reached};
use crate::notice::Notice;
use crate::{RequestId, Turn};

/// Most streams that wait for a walk. A client whose report finds no room reports again.
const WAITING: usize = 64;
/// How long a stream is left alone after a walk, so that clients cannot keep the bridge walking.
const REST: Duration = Duration::from_secs(60);
/// After which time a walk that has found something is repeated. While another bridge rewinds a log, its last frame has no seal.
const CONFIRM: Duration = Duration::from_secs(15);

/// The walks on this link.
#[derive(Debug, Default)]
pub(super) struct Walks {
    waiting: VecDeque<StreamId>,
    /// The walk that is under way.
    now: Option<Walk>,
    /// Streams in which the last walk has found something.
    doubted: BTreeSet<StreamId>,
    /// When the walks through them are repeated.
    again: BTreeMap<StreamId, Duration>,
    /// Until when a stream is left alone.
    rest: BTreeMap<StreamId, Duration>,
    /// After which seq the windows of streams are to be refilled, once they are compared.
    unsound: BTreeMap<StreamId, Seq>,
}

#[derive(Debug)]
struct Walk {
    stream_id: StreamId,
    request: RequestId,
}

/// Before the beginning of every log.
const BEGIN: Reached = Reached {
    seq: Seq::ZERO,
    chain: None,
};

impl Walks {
    /// After which seq a stream's window is to be refilled, if a walk found that.
    pub(super) fn take_unsound(&mut self, stream_id: &StreamId) -> Option<Seq> {
        self.unsound.remove(stream_id)
    }

    /// When the next walk is to be repeated.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let again = self.again.values().min().copied();
        // The end of a walk brings the next turn.
        again.filter(|_| self.now.is_none())
    }

    /// The next stream to walk through.
    fn next(&mut self, now: Duration) -> Option<StreamId> {
        let due = self.again.iter().find(|(_, at)| **at <= now);
        match due.map(|(stream_id, _)| stream_id.clone()) {
            Some(stream_id) => {
                self.again.remove(&stream_id);
                Some(stream_id)
            }
            None => self.waiting.pop_front(),
        }
    }

    /// Whether a walk found something of which nothing has come yet.
    pub(super) fn is_unsound(&self, stream_id: &StreamId) -> bool {
        self.unsound.contains_key(stream_id)
    }
}

impl Compare {
    /// A client reports that SpacetimeDB contradicts the authority about a stream.
    pub(crate) fn reported(&mut self, now: Duration, stream_id: StreamId) {
        let walks = &mut self.walks;
        walks.rest.retain(|_, until| *until > now);
        let walks_now = walks.now.as_ref().is_some_and(|walk| walk.stream_id == stream_id);
        let is_known = walks_now
            || walks.rest.contains_key(&stream_id)
            || walks.doubted.contains(&stream_id)
            || walks.waiting.contains(&stream_id);
        if self.link.is_some() && !is_known && walks.waiting.len() < WAITING {
            walks.waiting.push_back(stream_id);
        }
    }

    /// Begins the next walk if none is under way.
    pub(super) fn begin_walk(&mut self, turn: &mut Turn<'_>) {
        if self.walks.now.is_none()
            && let Some(stream_id) = self.walks.next(turn.now)
        {
            self.walk_on(stream_id, BEGIN, turn);
        }
    }

    /// Asks for the next frames of a walk. The log is sound up to there.
    fn walk_on(&mut self, stream_id: StreamId, sound: Reached, turn: &mut Turn<'_>) {
        let Some(link) = self.link else { return };
        let request = turn.ids.request();
        turn.out.push(Command::CheckFrames {
            link,
            request,
            stream_id: stream_id.clone(),
            after: sound,
        });
        self.walks.now = Some(Walk { stream_id, request });
    }

    /// The runner has checked the next frames of a walk.
    pub(crate) fn frames_checked(
        &mut self,
        request: RequestId,
        checked: Result<Checked, Failure>,
        turn: &mut Turn<'_>,
    ) -> Found {
        let mut found = Found::default();
        let Some(Walk { stream_id, .. }) = self.walks.now.take_if(|walk| walk.request == request) else {
            return found;
        };
        let next = match checked {
            Ok(Checked::Sound { to, is_end: false }) => Some(Reached {
                seq: to.seq,
                chain: Some(to.chain),
            }),
            Ok(Checked::Swept { to }) => Some(Reached { seq: to, chain: None }),
            Ok(Checked::Sound { is_end: true, .. } | Checked::Unsound { .. }) | Err(_) => None,
        };
        if let Some(next) = next {
            self.walk_on(stream_id, next, turn);
            return found;
        }
        self.walks.rest.insert(stream_id.clone(), turn.now + REST);
        match checked {
            Ok(Checked::Sound { .. } | Checked::Swept { .. }) => {
                self.walks.doubted.remove(&stream_id);
            }
            Ok(Checked::Unsound { .. }) if self.walks.doubted.insert(stream_id.clone()) => {
                self.walks.again.insert(stream_id, turn.now + CONFIRM);
            }
            Ok(Checked::Unsound { after }) => {
                self.walks.doubted.remove(&stream_id);
                self.walks.unsound.insert(stream_id.clone(), after);
                found.doubts.push(stream_id);
            }
            Err(failure) if failure.class == RefusalClass::Fatal => found.drop_link = Some(failure.text),
            // The client reports it again, unless the walk is to be repeated anyway.
            Err(failure) => {
                let why = failure.text;
                self.walks.rest.remove(&stream_id);
                if self.walks.doubted.contains(&stream_id) {
                    self.walks.again.insert(stream_id.clone(), turn.now + CONFIRM);
                }
                turn.out.push(Command::Tell(Notice::NotCompared { stream_id, why }));
            }
        }
        found
    }
}
