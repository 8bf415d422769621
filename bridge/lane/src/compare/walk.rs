//! Walks through the windows of streams about which SpacetimeDB contradicts the authority, as clients report. A comparison
//! looks at the ends of logs alone; a walk looks at every frame that SpacetimeDB holds. Where it finds one that is not the
//! bridge's, and finds one a while later again, the stream is compared, and its window is refilled from there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Label, Seq, StreamId};

use super::{Compare, Found};
use crate::message::{Checked, Command, Failure, Reached, Report};
use crate::notice::Notice;
use crate::{RequestId, Turn};

/// Most streams that wait for a walk. A client whose report finds no room reports again.
const WAITING: usize = 64;
/// Most of them that wait because of the same session, so that its reports, true or not, leave places to others.
const OF_A_SESSION: usize = 8;
/// How long a stream is left alone after a walk, so that clients cannot keep the bridge walking.
const REST: Duration = Duration::from_secs(60);
/// After which time a walk that has found something is repeated. While another bridge rewinds a log, its last frame has no seal.
const CONFIRM: Duration = Duration::from_secs(15);

/// How long a walk rests after each page, so that it holds up what is published meanwhile by little.
const BETWEEN_PAGES: Duration = Duration::from_millis(50);

/// The walks on this link.
#[derive(Debug, Default)]
pub(super) struct Walks {
    /// The streams that wait, each with the first report about it.
    waiting: VecDeque<Report>,
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
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The next frames are being checked.
    Asked(RequestId),
    /// The log is sound up to here, and the walk goes on at that time.
    Rests { sound: Reached, until: Duration },
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

    /// When a walk goes on, or the next one is to be repeated.
    pub(super) fn next_due(&self) -> Option<Duration> {
        match self.now.as_ref().map(|walk| walk.step) {
            Some(Step::Rests { until, .. }) => Some(until),
            // Its answer brings the next turn.
            Some(Step::Asked(_)) => None,
            None => self.again.values().min().copied(),
        }
    }

    /// The next stream to walk through.
    fn next(&mut self, now: Duration) -> Option<StreamId> {
        let due = self.again.iter().find(|(_, at)| **at <= now);
        match due.map(|(stream_id, _)| stream_id.clone()) {
            Some(stream_id) => {
                self.again.remove(&stream_id);
                Some(stream_id)
            }
            None => self.waiting.pop_front().map(|report| report.stream_id),
        }
    }

    /// Whether a stream already waits for a walk, is being walked, or has been walked a short time ago.
    fn knows(&self, stream_id: &StreamId) -> bool {
        self.now.as_ref().is_some_and(|walk| walk.stream_id == *stream_id)
            || self.rest.contains_key(stream_id)
            || self.doubted.contains(stream_id)
            || self.waiting.iter().any(|report| report.stream_id == *stream_id)
    }

    /// Whether another stream may wait because of this session.
    fn has_room(&self, session_id: &Label) -> bool {
        let of_session = self.waiting.iter().filter(|report| report.session_id == *session_id);
        self.waiting.len() < WAITING && of_session.count() < OF_A_SESSION
    }

    /// Whether a walk found something of which nothing has come yet.
    pub(super) fn is_unsound(&self, stream_id: &StreamId) -> bool {
        self.unsound.contains_key(stream_id)
    }
}

impl Compare {
    /// A client reports that SpacetimeDB contradicts the authority about a stream.
    pub(crate) fn reported(&mut self, now: Duration, report: Report) {
        let walks = &mut self.walks;
        walks.rest.retain(|_, until| *until > now);
        if self.link.is_some() && !walks.knows(&report.stream_id) && walks.has_room(&report.session_id) {
            walks.waiting.push_back(report);
        }
    }

    /// Goes on with the walk that is under way, or begins the next one.
    pub(super) fn walk(&mut self, turn: &mut Turn<'_>) {
        let rested = |walk: &mut Walk| matches!(walk.step, Step::Rests { until, .. } if until <= turn.now);
        if let Some(Walk { stream_id, step }) = self.walks.now.take_if(rested) {
            if let Step::Rests { sound, .. } = step {
                self.walk_on(stream_id, sound, turn);
            }
        } else if self.walks.now.is_none()
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
        let step = Step::Asked(request);
        self.walks.now = Some(Walk { stream_id, step });
    }

    /// The runner has checked the next frames of a walk, or of a suspect.
    pub(crate) fn frames_checked(
        &mut self,
        request: RequestId,
        checked: Result<Checked, Failure>,
        turn: &mut Turn<'_>,
    ) -> Found {
        if let Some(suspect) = self.take_suspect(request) {
            return self.forgery_sought(suspect, checked, turn);
        }
        let mut found = Found::default();
        let is_answered = |walk: &mut Walk| walk.step == Step::Asked(request);
        let Some(Walk { stream_id, .. }) = self.walks.now.take_if(is_answered) else {
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
        if let Some(sound) = next {
            let until = turn.now + BETWEEN_PAGES;
            let step = Step::Rests { sound, until };
            self.walks.now = Some(Walk { stream_id, step });
            return found;
        }
        found.walks += 1;
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
                self.walks.unsound.insert(stream_id.clone(), after.seq);
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
