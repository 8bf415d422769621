//! One stream as the engine keeps it: the core's state, and what belongs to it outside of the core.

use std::time::Duration;

use spacetime_sync_proto::{RefusalCode, Seq, StreamId};
use tokio::time::Instant;

use super::history::Asked;
use super::net::Generation;
use crate::apply::{Mode, Stream, SubscriptionId};
use crate::link::{ReadId, Subscription};
use crate::status::{StreamPhase, StreamStatus};

pub(super) struct Follower {
    pub(super) id: StreamId,
    pub(super) stream: Stream,
    /// What the module calls the stream, once it has said so.
    pub(super) key: Option<u64>,
    pub(super) subscriptions: Vec<Delivered>,
    /// When to ask again after a refusal or a failure.
    pub(super) ask_at: Option<Instant>,
    /// The page that is under way, and on which connection.
    pub(super) reading: Option<(ReadId, Generation)>,
    /// What the authority was asked, while it has not answered.
    pub(super) asked_authority: Option<Asked>,
    /// How long it asked to be left alone.
    pub(super) wait_for_authority: Option<Duration>,
    /// When the oldest call that is not answered was made.
    pub(super) asked_at: Option<Instant>,
    pub(super) verified_at: Instant,
    /// The last position that was acknowledged, or is being acknowledged.
    pub(super) acked: Seq,
    pub(super) acked_at: Option<Instant>,
    /// The head as last heard of, on any connection.
    head: Option<Seq>,
    live: bool,
    /// Since when it is, and whether the core has been told that it has been for a while.
    pub(super) live_since: Option<Instant>,
    pub(super) settled: bool,
    /// What the module said last, until it has said something else: asking again is no progress yet.
    refused: Option<RefusalCode>,
    behind_since: Option<Instant>,
}

/// A subscription and how many bytes of rows it has brought. The SDK keeps them until the host has ended it.
pub(super) struct Delivered {
    pub(super) id: SubscriptionId,
    /// On which connection.
    pub(super) generation: Generation,
    /// None while it ends.
    pub(super) subscription: Option<Subscription>,
    pub(super) bytes: usize,
}

impl Follower {
    pub(super) fn new(id: StreamId, stream: Stream, now: Instant) -> Self {
        let acked = stream.applied().seq;
        Self {
            id,
            stream,
            key: None,
            subscriptions: Vec::new(),
            ask_at: None,
            reading: None,
            asked_authority: None,
            wait_for_authority: None,
            asked_at: None,
            verified_at: now,
            acked,
            acked_at: None,
            head: None,
            live: false,
            live_since: None,
            settled: false,
            refused: None,
            behind_since: None,
        }
    }

    /// Forgets what went with the connection.
    pub(super) fn offline(&mut self) {
        self.subscriptions.clear();
        self.reading = None;
        self.asked_at = None;
        // A call that was under way may have come to nothing.
        self.acked_at = None;
    }

    /// A subscription has begun or failed, perhaps one that was given up long ago. A page that is under way is still
    /// waited for: without that, a connection that falls silent meanwhile would never be noticed.
    pub(super) fn subscription_answered(&mut self) {
        if self.reading.is_none() {
            self.asked_at = None;
        }
    }

    /// Notes what the core's state means at this time.
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
            self.live &= now.duration_since(since) < grace;
        }
        self.live_since = self.live.then(|| self.live_since.unwrap_or(now));
        self.settled &= self.live;
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

    pub(super) fn subscription(&mut self, id: SubscriptionId) -> Option<&mut Delivered> {
        self.subscriptions.iter_mut().find(|delivered| delivered.id == id)
    }

    /// Forgets a subscription that has ended; how many bytes of rows went with it.
    pub(super) fn forget(&mut self, id: SubscriptionId) -> Option<usize> {
        let at = self.subscriptions.iter().position(|delivered| delivered.id == id)?;
        Some(self.subscriptions.remove(at).bytes)
    }

    /// Forgets all subscriptions of a connection.
    pub(super) fn forget_all_of(&mut self, generation: Generation) -> Vec<Delivered> {
        let all = std::mem::take(&mut self.subscriptions);
        let (gone, kept) = all
            .into_iter()
            .partition(|delivered| delivered.generation == generation);
        self.subscriptions = kept;
        gone
    }

    /// Whether a subscription is one of this connection's.
    pub(super) fn hangs_on(&self, id: SubscriptionId, generation: Generation) -> bool {
        let this = |delivered: &Delivered| delivered.id == id && delivered.generation == generation;
        self.subscriptions.iter().any(this)
    }

    pub(super) fn delivered_bytes(&self) -> usize {
        self.subscriptions.iter().map(|delivered| delivered.bytes).sum()
    }

    /// Whether a checkpoint is due to be acknowledged.
    pub(super) fn owes_ack(&self, now: Instant, every: Duration) -> bool {
        self.stream.applied().seq > self.acked && self.acked_at.is_none_or(|at| now.duration_since(at) >= every)
    }
}
