//! One stream as the session keeps it: the core, and what belongs to the stream but not to the core.

use std::time::{Duration, Instant};

use spacetime_sync_proto::{RefusalCode, Seq, StreamId};

use super::acknowledgement::Acknowledgement;
use super::contents::Search;
use super::event::{ConnectionId, QuestionId, ReadId};
use super::following::Following;
use super::heads::Owed;
use super::status::{StreamPhase, StreamStatus};
use super::stream::{Mode, Stream, SubscriptionId};
use super::tally::Share;

#[derive(Debug)]
pub(super) struct Follower {
    pub(super) id: StreamId,
    pub(super) stream: Stream,
    /// The module's key of the stream, once known.
    pub(super) key: Option<u64>,
    pub(super) subscriptions: Vec<Subscription>,
    /// When to ask again after a refusal or a failure.
    pub(super) ask_at: Option<Instant>,
    /// The read under way, and its connection.
    pub(super) reading: Option<(ReadId, ConnectionId)>,
    /// The question to the authority that is still unanswered.
    pub(super) question: Option<QuestionId>,
    /// How far it is with the contents that it lacks.
    pub(super) search: Search,
    /// How long the authority asked to be left alone.
    pub(super) wait_for_authority: Option<Duration>,
    /// When the oldest unanswered call was made.
    pub(super) asked_at: Option<Instant>,
    pub(super) verified_at: Instant,
    /// What the authority has and SpacetimeDB has yet to bring.
    pub(super) owed: Option<Owed>,
    /// Whether the bridge has yet to hear that SpacetimeDB contradicts the authority about the stream.
    pub(super) reports: bool,
    pub(super) acknowledgement: Acknowledgement,
    /// The head as last heard, on any connection.
    head: Option<Seq>,
    live: bool,
    /// Since when the stream is live, and whether the core knows that it has been live for a while.
    live_since: Option<Instant>,
    pub(super) told_stable: bool,
    /// Why the module last refused, until it answers otherwise: asking again is not yet progress.
    refused: Option<RefusalCode>,
    behind_since: Option<Instant>,
    /// How the session's tally counts the stream.
    pub(super) share: Share,
    /// Whether the stream has changed since the tally was updated.
    pub(super) touched: bool,
    /// Whether the shown status may be out of date.
    pub(super) unshown: bool,
    /// Whether the stream still uses the replaced connection.
    pub(super) uses_old: bool,
    /// Whether the client follows the stream.
    pub(super) following: Following,
    /// Whether the stream begins with the next token.
    pub(super) awaits_token: bool,
    /// Whether the session could read the stream when that was last looked at.
    pub(super) was_readable: bool,
}

/// A subscription and the bytes of rows it has brought. The SDK keeps the rows until SpacetimeDB ends the subscription.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) id: SubscriptionId,
    pub(super) connection: ConnectionId,
    /// Whether it was given up and SpacetimeDB has not ended it yet.
    pub(super) leaving: bool,
    pub(super) bytes: usize,
}

impl Follower {
    pub(super) fn new(id: StreamId, stream: Stream, now: Instant) -> Self {
        Self {
            id,
            stream,
            key: None,
            subscriptions: Vec::new(),
            ask_at: None,
            reading: None,
            question: None,
            search: Search::default(),
            wait_for_authority: None,
            asked_at: None,
            verified_at: now,
            owed: None,
            reports: false,
            acknowledgement: Acknowledgement::default(),
            head: None,
            live: false,
            live_since: None,
            told_stable: false,
            refused: None,
            behind_since: None,
            share: Share::default(),
            touched: false,
            unshown: false,
            uses_old: false,
            following: Following::FromStart,
            awaits_token: false,
            was_readable: false,
        }
    }

    /// Forgets what ended with the connections.
    pub(super) fn offline(&mut self) {
        self.subscriptions.clear();
        self.reading = None;
        self.asked_at = None;
        self.uses_old = false;
        self.awaits_token = false;
    }

    /// A subscription has begun or failed, perhaps one that was given up long ago. The deadline of a pending page
    /// stays: without it, nobody would notice a connection that falls silent meanwhile.
    pub(super) fn subscription_answered(&mut self) {
        if self.reading.is_none() {
            self.asked_at = None;
        }
    }

    /// Notes what the core's state means at this time. A stream that falls behind stays live for `grace`.
    pub(super) fn observe(&mut self, now: Instant, grace: Duration) {
        self.head = self.stream.known_head().or(self.head);
        self.refused = match self.stream.mode() {
            Mode::Refused(code) => Some(*code),
            Mode::Paging if self.stream.known_head().is_none() => self.refused,
            Mode::Offline
            | Mode::Paging
            | Mode::Subscribing(_)
            | Mode::Live(_)
            | Mode::Renewing { .. }
            | Mode::Unanswered
            | Mode::Recovering(_)
            | Mode::Retrying { .. }
            | Mode::Stopped(_) => None,
        };
        if !self.stream.is_delivering() {
            (self.live, self.behind_since) = (false, None);
        } else if self.stream.is_current() {
            (self.live, self.behind_since) = (true, None);
        } else {
            let since = *self.behind_since.get_or_insert(now);
            self.live &= now.saturating_duration_since(since) < grace;
        }
        self.live_since = self.live.then(|| self.live_since.unwrap_or(now));
        self.told_stable &= self.live;
    }

    /// Whether the module refuses to let this session read the stream.
    pub(super) fn is_forbidden(&self) -> bool {
        self.refused.is_some()
    }

    /// Whether the module has let this session read the stream, as far as it has said, and the stream has an event. The module tells of
    /// no others.
    pub(super) fn is_readable(&self) -> bool {
        let has_event = self.stream.cursor().seq > Seq::ZERO || self.stream.known_head() > Some(Seq::ZERO);
        self.is_followed() && self.key.is_some() && !self.is_forbidden() && has_event
    }

    /// Whether the stream waits for this client, and not for SpacetimeDB: for the application, or for its turn to read.
    pub(super) fn is_held_up(&self) -> bool {
        !self.stream.awaits_events() || self.stream.is_reading() && self.reading.is_none()
    }

    /// Whether the stream is behind and counts as live only until the grace period ends.
    pub(super) fn lives_on_grace(&self) -> bool {
        self.live && self.behind_since.is_some()
    }

    /// Whether the stream has been live for at least `after`.
    pub(super) fn is_stable(&self, now: Instant, after: Duration) -> bool {
        self.live_since
            .is_some_and(|since| now.saturating_duration_since(since) >= after)
    }

    /// How the tally should count the stream.
    pub(super) fn share(&self) -> Share {
        if !self.is_followed() {
            return Share::Gone;
        }
        if self.refused.is_some() {
            return Share::Aside;
        }
        match self.stream.mode() {
            Mode::Refused(_) | Mode::Unanswered => Share::Aside,
            Mode::Stopped(_) => Share::Stopped,
            Mode::Offline
            | Mode::Paging
            | Mode::Subscribing(_)
            | Mode::Live(_)
            | Mode::Renewing { .. }
            | Mode::Recovering(_)
            | Mode::Retrying { .. } => {
                let applied = self.stream.applied().seq;
                Share::Going {
                    live: self.live,
                    applied: applied.get(),
                    target: self.head.unwrap_or(applied).max(applied).get(),
                }
            }
        }
    }

    pub(super) fn status(&self) -> StreamStatus {
        StreamStatus {
            applied: self.stream.applied(),
            head: self.head,
            phase: self.phase(),
        }
    }

    fn phase(&self) -> StreamPhase {
        if let Some(code) = self.refused {
            return StreamPhase::Forbidden { code };
        }
        match self.stream.mode() {
            Mode::Offline => StreamPhase::Waiting,
            Mode::Paging | Mode::Subscribing(_) => StreamPhase::CatchingUp,
            Mode::Live(_) | Mode::Renewing { .. } if self.live => StreamPhase::Live,
            Mode::Live(_) | Mode::Renewing { .. } => StreamPhase::CatchingUp,
            Mode::Refused(code) => StreamPhase::Forbidden { code: *code },
            Mode::Unanswered => StreamPhase::Unanswered,
            Mode::Recovering(rung) => StreamPhase::Recovering {
                rung: rung.clone(),
                attempt: self.stream.recovery_attempt(),
            },
            Mode::Retrying { message } => StreamPhase::Retrying {
                message: message.clone(),
            },
            Mode::Stopped(reason) => StreamPhase::Stopped { reason: reason.clone() },
        }
    }

    pub(super) fn subscription(&mut self, id: SubscriptionId) -> Option<&mut Subscription> {
        self.subscriptions.iter_mut().find(|held| held.id == id)
    }

    /// Forgets a subscription that has ended.
    pub(super) fn forget(&mut self, id: SubscriptionId) -> Option<Subscription> {
        let at = self.subscriptions.iter().position(|held| held.id == id)?;
        Some(self.subscriptions.remove(at))
    }

    /// Forgets all subscriptions of a connection.
    pub(super) fn forget_all_of(&mut self, connection: ConnectionId) -> Vec<Subscription> {
        let all = std::mem::take(&mut self.subscriptions);
        let (gone, kept) = all.into_iter().partition(|held| held.connection == connection);
        self.subscriptions = kept;
        gone
    }

    /// Whether the subscription is on this connection.
    pub(super) fn hangs_on(&self, id: SubscriptionId, connection: ConnectionId) -> bool {
        let this = |held: &Subscription| held.id == id && held.connection == connection;
        self.subscriptions.iter().any(this)
    }

    pub(super) fn delivered_bytes(&self) -> usize {
        self.subscriptions.iter().map(|held| held.bytes).sum()
    }

    /// The subscription that the stream relies on.
    pub(super) fn awaited(&self) -> Option<SubscriptionId> {
        match *self.stream.mode() {
            Mode::Subscribing(id) | Mode::Live(id) | Mode::Renewing { new: id, .. } => Some(id),
            Mode::Offline
            | Mode::Paging
            | Mode::Refused(_)
            | Mode::Unanswered
            | Mode::Recovering(_)
            | Mode::Retrying { .. }
            | Mode::Stopped(_) => None,
        }
    }

    /// Whether the end of a connection would leave the stream waiting for a page or for the subscription it relies on.
    /// A subscription that only delivers until its successor does is not missed.
    pub(super) fn waits_for(&self, connection: ConnectionId) -> bool {
        self.reading.is_some_and(|(_, on)| on == connection)
            || self.awaited().is_some_and(|id| self.hangs_on(id, connection))
    }

    /// Whether the stream still uses a connection.
    pub(super) fn uses(&self, connection: ConnectionId) -> bool {
        let subscribed = |held: &Subscription| held.connection == connection && !held.leaving;
        self.subscriptions.iter().any(subscribed) || self.waits_for(connection)
    }
}
