//! Changing connections while one serves: before its token ends, a second one is made with a new token; once that
//! serves too, it takes over, stream by stream, and the first is dropped when nothing hangs on it any more.
//!
//! A live stream changes over like one whose subscription is renewed: the old subscription delivers until the new one
//! does, and what both bring is dropped by its seq. The core knows nothing of connections.

use std::sync::Arc;

use tokio::time::Instant;

use super::Engine;
use super::net::{Generation, Net, Old};
use crate::apply::{Input, Mode, SubscriptionId};
use crate::link::{Dial, Inbound, Issued, Link};
use crate::status::{Disconnect, StopReason};

impl Engine {
    /// Asks for a new token and a new connection when it is time, and gives up the present one when its token has
    /// ended before there was another.
    pub(super) fn refresh(&mut self, now: Instant) {
        let held = self.fresh_token(now);
        let Net::Up(up) = &mut self.net else { return };
        let Some(tenure) = &up.tenure else { return };
        // A newer one, that an attempt before got and could not connect with.
        let held = held.filter(|held| held.asked_at > tenure.asked_at());
        if tenure.has_ended(now) {
            let wait = tenure.refresh_at().saturating_duration_since(now);
            self.back_off(Disconnect::TokenEnded, Some(wait));
        } else if tenure.is_due(now) && up.next.is_none() && up.old.is_none() {
            up.next = Some(Dial::start(Arc::clone(&self.config), held));
        }
    }

    /// The second connection serves.
    pub(super) fn take_over(
        &mut self,
        link: Link,
        issued: Option<Issued>,
        brought: Vec<Inbound>,
    ) -> Result<(), StopReason> {
        let now = Instant::now();
        let generation = self.next_generation();
        let tenure = self.tenure(issued);
        let Net::Up(up) = &mut self.net else {
            link.close();
            return Ok(());
        };
        // A second connection is only made when the one before is gone.
        up.old = Some(Old {
            link: std::mem::replace(&mut up.link, link),
            generation: std::mem::replace(&mut up.generation, generation),
            until: now + self.config.limits.handover_timeout,
        });
        (up.heard_at, up.tenure, up.next) = (now, tenure, None);
        (up.watches_presence, up.presence_changed) = (false, false);
        self.heartbeat.again();
        self.counters.refreshes += 1;
        tracing::debug!("a connection with a new token takes over");
        for inbound in brought {
            self.inbound(generation, inbound)?;
        }
        Ok(())
    }

    /// Moves on with changing over, if that is under way.
    pub(super) fn hand_over(&mut self, now: Instant) {
        let Net::Up(up) = &self.net else { return };
        let Some((old, until)) = up.old.as_ref().map(|old| (old.generation, old.until)) else {
            return;
        };
        for at in 0..self.followers.len() {
            if let Mode::Live(id) = *self.followers[at].stream.mode()
                && self.followers[at].hangs_on(id, old)
            {
                self.step(at, Input::Renew);
            }
        }
        if now >= until {
            // Whatever was to deliver on the new connection does not.
            self.drop_old(|engine, at| engine.uses(at, old));
        } else if !(0..self.followers.len()).any(|at| self.uses(at, old)) {
            self.drop_old(|_, _| false);
        }
    }

    /// The connection that was taken over from has ended: streams that still wait for it begin anew. One whose new
    /// subscription is on its way loses nothing.
    pub(super) fn old_is_gone(&mut self) {
        let Net::Up(up) = &self.net else { return };
        if let Some(old) = up.old.as_ref().map(|old| old.generation) {
            self.drop_old(|engine, at| engine.waits_for(at, old));
        }
    }

    /// Drops the connection that was taken over from. Streams of which `lost` is true begin anew on the present one.
    fn drop_old(&mut self, lost: impl Fn(&Self, usize) -> bool) {
        let Net::Up(up) = &mut self.net else { return };
        let Some(Old { link, generation, .. }) = up.old.take() else {
            return;
        };
        link.close();
        for at in 0..self.followers.len() {
            let lost = lost(self, at);
            for delivered in self.followers[at].forget_all_of(generation) {
                match delivered.subscription {
                    Some(_) => self.subscribed_bytes = self.subscribed_bytes.saturating_sub(delivered.bytes),
                    None => self.leaving_bytes = self.leaving_bytes.saturating_sub(delivered.bytes),
                }
            }
            if lost {
                self.begin_anew(at);
            }
        }
    }

    /// A subscription of the connection that was taken over from was ended by the host.
    pub(super) fn old_subscription_failed(&mut self, at: usize, id: SubscriptionId) {
        let waits = self.awaited(at) == Some(id);
        if let Some(delivered) = self.followers[at].forget(id) {
            self.subscribed_bytes = self.subscribed_bytes.saturating_sub(delivered);
        }
        if waits {
            self.begin_anew(at);
        }
    }

    /// Takes a stream off whatever it hangs on, to page from its cursor.
    fn begin_anew(&mut self, at: usize) {
        if self.followers[at].reading.take().is_some() {
            self.reads_under_way = self.reads_under_way.saturating_sub(1);
        }
        self.followers[at].asked_at = None;
        self.withdraw(at);
        self.reads.retain(|(stream, _)| *stream != at);
        let left: Vec<_> = self.followers[at].subscriptions.iter().map(|left| left.id).collect();
        for id in left {
            self.unsubscribe(at, id);
        }
        self.step(at, Input::Disconnected);
        self.step(at, Input::Connected);
    }

    /// Whether a stream still takes anything from a connection.
    fn uses(&self, at: usize, generation: Generation) -> bool {
        let follower = &self.followers[at];
        let subscribed = |delivered: &super::follower::Delivered| {
            delivered.generation == generation && delivered.subscription.is_some()
        };
        follower.subscriptions.iter().any(subscribed) || self.waits_for(at, generation)
    }

    /// Whether a stream would wait in vain if a connection were gone: for a page, or for the subscription that is to
    /// deliver. What only delivers until another one does is no loss.
    fn waits_for(&self, at: usize, generation: Generation) -> bool {
        let follower = &self.followers[at];
        follower.reading.is_some_and(|(_, on)| on == generation)
            || self.awaited(at).is_some_and(|id| follower.hangs_on(id, generation))
    }

    /// The subscription that a stream counts on.
    fn awaited(&self, at: usize) -> Option<SubscriptionId> {
        match *self.followers[at].stream.mode() {
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
}
