//! Pages and subscriptions: which reads to start, whether there is room for what they bring, and how much of it the SDK
//! caches.

use std::collections::VecDeque;

use spacetime_sync_proto::{RefusalCode, Seq};

use super::counted::less;
use super::event::{CallFailure, ConnectionId, ReadId};
use super::follower::Subscription;
use super::status::StopReason;
use super::stream::{Input, Mode, Page, SubscriptionId};
use super::{Command, Session, token};

/// Reads of all streams.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Streams that wait for their turn to read, and the position to read from.
    waiting: VecDeque<(usize, Seq)>,
    under_way: usize,
}

impl Reads {
    /// Queues a stream's read.
    pub(super) fn queue(&mut self, stream: usize, after: Seq) {
        self.waiting.push_back((stream, after));
    }

    /// Drops the queued read of a stream.
    pub(super) fn withdraw(&mut self, stream: usize) {
        self.waiting.retain(|(waiting, _)| *waiting != stream);
    }

    /// A read that was under way is over.
    pub(super) fn done(&mut self) {
        less(&mut self.under_way, 1);
    }

    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// All connections have ended.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Session {
    /// Whether there is room for one more page. When nothing else is held there always is.
    pub(super) fn has_room_for_page(&self) -> bool {
        let under_way = self.reads.under_way + self.questions.under_way();
        let coming = (under_way + 1) * self.settings.page_bytes;
        let idle = self.unapplied_bytes == 0 && under_way == 0;
        idle || self.unapplied_bytes + coming <= self.settings.limits.unapplied_bytes
    }

    /// Starts reads in the order in which they were queued, while there is room for what they bring.
    pub(super) fn start_reads(&mut self) {
        while let Some((at, after)) = self.reads.waiting.front().copied() {
            let Some(connection) = self.serving() else { return };
            if self.reads.under_way >= self.settings.limits.pages_in_flight || !self.has_room_for_page() {
                return;
            }
            let read = ReadId(self.next_id());
            self.commands.push(Command::Read {
                connection,
                read,
                stream: at,
                after,
            });
            self.reads.waiting.pop_front();
            self.reads.under_way += 1;
            let follower = &mut self.followers[at];
            debug_assert!(follower.reading.is_none(), "a stream reads one page at a time");
            follower.reading = Some((read, connection));
            follower.asked_at.get_or_insert(self.now);
        }
    }

    /// A read has an answer.
    pub(super) fn page(
        &mut self,
        from: ConnectionId,
        at: usize,
        read: ReadId,
        answer: Result<(u64, Page), CallFailure>,
    ) -> Result<(), StopReason> {
        let follower = &mut self.followers[at];
        // The stream has started to page again since, and this answer is no longer wanted.
        if follower.reading != Some((read, from)) {
            return Ok(());
        }
        follower.reading = None;
        follower.asked_at = None;
        follower.verified_at = self.now;
        self.reads.done();
        let input = match answer {
            Ok((key, page)) => {
                follower.key = Some(key);
                self.by_key.insert(key, at);
                Input::Page(page)
            }
            Err(CallFailure::Refused(refusal)) if token::ends_session(refusal.code) => {
                return Err(StopReason::Refused(refusal));
            }
            Err(CallFailure::Refused(refusal)) => {
                // A module that was published again does not know the sessions opened before.
                let forgotten = refusal.code == RefusalCode::ForbiddenStream && self.is_granted(at);
                self.doubt_token_if(forgotten || token::has_aged(refusal.code));
                Input::ReadRefused(refusal)
            }
            Err(CallFailure::Failed(detail)) => {
                tracing::warn!(stream = %follower.id, detail, "a read failed");
                Input::ReadFailed
            }
        };
        self.feed(at, input);
        Ok(())
    }

    pub(super) fn subscribe(&mut self, at: usize, id: SubscriptionId, after: Seq, to: Seq) {
        let Some(connection) = self.serving() else { return };
        let follower = &mut self.followers[at];
        let Some(key) = follower.key else { return };
        follower.subscriptions.push(Subscription {
            id,
            connection,
            leaving: false,
            bytes: 0,
        });
        follower.asked_at.get_or_insert(self.now);
        self.commands.push(Command::Subscribe {
            connection,
            stream: at,
            id,
            key,
            after,
            to,
        });
    }

    /// Gives up a subscription.
    pub(super) fn unsubscribe(&mut self, at: usize, id: SubscriptionId) {
        let serving = self.serving();
        let Some(held) = self.followers[at].subscription(id) else {
            return;
        };
        if std::mem::replace(&mut held.leaving, true) {
            return;
        }
        let connection = held.connection;
        self.cache.leave(held.bytes);
        if serving == Some(connection) {
            self.commands.push(Command::Unsubscribe {
                connection,
                stream: at,
                id,
            });
        } else {
            // The subscription ends with its connection.
            self.unsubscribed(at, id);
        }
    }

    /// SpacetimeDB has ended a subscription that was given up, and the SDK has dropped its rows.
    pub(super) fn unsubscribed(&mut self, at: usize, id: SubscriptionId) {
        if let Some(held) = self.followers[at].forget(id) {
            self.cache.drop_rows(held.bytes, held.leaving);
        }
    }

    /// Counts a row that the SDK has cached.
    pub(super) fn delivered(&mut self, from: ConnectionId, at: usize, bytes: usize) {
        let mut subscriptions = self.followers[at].subscriptions.iter_mut();
        if let Some(held) = subscriptions.rfind(|held| held.connection == from) {
            held.bytes += bytes;
            self.cache.take(bytes, held.leaving);
        }
    }

    /// The SDK caches every row of a subscription. When that grows too large, the largest subscription is replaced by
    /// one that begins at its stream's cursor.
    pub(super) fn renew_if_large(&mut self) {
        if self.cache.subscribed() <= self.settings.limits.subscribed(self.followers.len()) {
            return;
        }
        let renewing = |mode: &Mode| matches!(mode, Mode::Renewing { .. });
        if self.followers.iter().any(|follower| renewing(follower.stream.mode())) {
            return;
        }
        let largest = (0..self.followers.len())
            .filter(|at| matches!(self.followers[*at].stream.mode(), Mode::Live(_)))
            .max_by_key(|at| self.followers[*at].delivered_bytes());
        if let Some(at) = largest {
            self.feed(at, Input::Renew);
        }
    }
}
