//! Changing connections without a pause: before the token ends, the session makes a second connection with a new token.
//! Once that serves, the streams move over one by one, and the session drops the first when no stream uses it any more.
//!
//! A live stream moves as if its subscription were renewed: the old subscription delivers until the new one does, and
//! the core drops by seq what both bring. The core knows nothing of connections.

use super::connection::{Connection, Old};
use super::counted::less;
use super::ending::Life;
use super::event::ConnectionId;
use super::follower::Follower;
use super::stream::{Input, Mode, SubscriptionId};
use super::{Command, Session};

impl Session {
    /// Moves one stream towards the new connection, during a hand-over.
    pub(super) fn hand_over(&mut self, at: usize) {
        let (Life::Running, Some(from)) = (&self.life, self.handed_over()) else {
            return;
        };
        if let Mode::Live(id) = *self.followers[at].stream.mode()
            && self.followers[at].hangs_on(id, from)
        {
            self.feed(at, Input::Renew);
        }
        let follower = &mut self.followers[at];
        let uses = follower.uses(from);
        let used = std::mem::replace(&mut follower.uses_old, uses);
        if let Some(old) = self.old_mut() {
            match (used, uses) {
                (false, true) => old.users += 1,
                (true, false) => less(&mut old.users, 1),
                (true, true) | (false, false) => {}
            }
        }
    }

    /// Drops the replaced connection once no stream uses it.
    pub(super) fn end_handover_if_over(&mut self) {
        if self.old_mut().is_some_and(|old| old.users == 0) {
            self.drop_old(|_, _| false);
        }
    }

    /// Drops the replaced connection at its deadline. Streams that still use it then page on the new connection.
    pub(super) fn end_handover_if_late(&mut self) {
        let now = self.now;
        if self.old_mut().is_some_and(|old| now >= old.until) {
            self.drop_old(Follower::uses);
        }
    }

    /// The replaced connection has ended. Streams that still wait for it page again; a stream whose new subscription is
    /// on its way loses nothing.
    pub(super) fn old_is_gone(&mut self) {
        self.drop_old(Follower::waits_for);
    }

    /// Drops the replaced connection. The streams for which `lost` holds page again on the present one.
    fn drop_old(&mut self, lost: impl Fn(&Follower, ConnectionId) -> bool) {
        let Connection::Up(up) = &mut self.connection else {
            return;
        };
        let Some(Old { id, .. }) = up.old.take() else {
            return;
        };
        self.commands.push(Command::Close { connection: id });
        for at in 0..self.followers.len() {
            let follower = &mut self.followers[at];
            let lost = lost(follower, id);
            follower.uses_old = false;
            follower.acknowledgement.lost(id);
            for held in follower.forget_all_of(id) {
                self.cache.drop_rows(held.bytes, held.leaving);
            }
            if lost {
                self.re_page(at);
            }
        }
    }

    /// SpacetimeDB ended a subscription of the replaced connection.
    pub(super) fn old_subscription_failed(&mut self, at: usize, id: SubscriptionId) {
        let follower = &mut self.followers[at];
        let waits = follower.awaited() == Some(id);
        if let Some(held) = follower.forget(id) {
            self.cache.drop_rows(held.bytes, held.leaving);
        }
        self.touch(at);
        if waits {
            self.re_page(at);
        }
    }

    /// Ends everything the stream waits for and has it page from its cursor.
    fn re_page(&mut self, at: usize) {
        self.let_go(at);
        self.feed(at, Input::Disconnected);
        self.feed(at, Input::Connected);
    }

    /// Ends everything the stream waits for.
    pub(super) fn let_go(&mut self, at: usize) {
        if self.followers[at].reading.take().is_some() {
            self.reads.done();
        }
        self.followers[at].asked_at = None;
        self.withdraw(at);
        self.reads.withdraw(at);
        let left: Vec<_> = self.followers[at].subscriptions.iter().map(|left| left.id).collect();
        for id in left {
            self.unsubscribe(at, id);
        }
    }

    fn old_mut(&mut self) -> Option<&mut Old> {
        match &mut self.connection {
            Connection::Up(up) => up.old.as_mut(),
            Connection::Waiting { .. } | Connection::Dialing(_) => None,
        }
    }
}
