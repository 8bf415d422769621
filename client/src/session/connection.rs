//! The state of the connection: when to attempt one, what the result of an attempt means, and what ends with a
//! connection.

use std::time::{Duration, Instant};

use rand::Rng as _;
use spacetime_sync_proto::contract::OLDEST_SCHEMA_VERSION;

use super::event::{ConnectionId, DialFailure, Inbound};
use super::status::{Disconnect, Phase, StopReason, TokenStatus};
use super::stream::Input;
use super::token::{self, Issued, Later, Tenure};
use super::{Command, Session, Settings};

#[derive(Debug)]
pub(super) enum Connection {
    /// Waiting before the next attempt.
    Waiting { until: Instant },
    /// An attempt is under way.
    Dialing(ConnectionId),
    /// A connection serves: its module is one that this release works with.
    Up(Box<Up>),
}

#[derive(Debug)]
pub(super) struct Up {
    pub(super) id: ConnectionId,
    pub(super) heard_at: Instant,
    /// Since when the client is live or idle.
    pub(super) stable_since: Option<Instant>,
    /// How long its token lasts, if a provider issued it.
    pub(super) tenure: Option<Tenure>,
    /// The attempt at the connection that is to take over.
    pub(super) next: Option<ConnectionId>,
    /// The connection that this one replaced, while streams still use it.
    pub(super) old: Option<Old>,
    /// How many presence calls are unanswered.
    pub(super) presence_calls: usize,
    /// The schema version that the client and the module speak.
    pub(super) speaks: u32,
}

#[derive(Debug)]
pub(super) struct Old {
    pub(super) id: ConnectionId,
    /// When to give it up even if streams still use it.
    pub(super) until: Instant,
    /// How many streams still use it.
    pub(super) users: usize,
}

impl Up {
    fn new(id: ConnectionId, tenure: Option<Tenure>, now: Instant) -> Self {
        Self {
            id,
            heard_at: now,
            stable_since: None,
            tenure,
            next: None,
            old: None,
            presence_calls: 0,
            // What every module has that this release works with, until the module has said more.
            speaks: OLDEST_SCHEMA_VERSION,
        }
    }
}

impl Session {
    /// The schema version that the client and the module of the connection that serves speak.
    pub(super) fn speaks(&self) -> Option<u32> {
        match &self.connection {
            Connection::Up(up) => Some(up.speaks),
            Connection::Waiting { .. } | Connection::Dialing(_) => None,
        }
    }

    /// The connection that serves.
    pub(super) fn serving(&self) -> Option<ConnectionId> {
        match &self.connection {
            Connection::Up(up) => Some(up.id),
            Connection::Waiting { .. } | Connection::Dialing(_) => None,
        }
    }

    /// The replaced connection, during a hand-over.
    pub(super) fn handed_over(&self) -> Option<ConnectionId> {
        match &self.connection {
            Connection::Up(up) => up.old.as_ref().map(|old| old.id),
            Connection::Waiting { .. } | Connection::Dialing(_) => None,
        }
    }

    /// Attempts a connection, if one is due.
    pub(super) fn connect_if_due(&mut self) {
        match self.connection {
            Connection::Waiting { until } if until <= self.now => {
                let held = self.fresh_token();
                let attempted = self.dial(held);
                self.dialing(attempted);
            }
            Connection::Waiting { .. } | Connection::Dialing(_) | Connection::Up(_) => {}
        }
    }

    /// Begins an attempt with the given token, or with a new one from the provider.
    pub(super) fn dial(&mut self, token: Option<Issued>) -> ConnectionId {
        let connection = ConnectionId(self.next_id());
        let streams = self.wanted_streams();
        self.attempts += 1;
        self.commands.push(Command::Dial {
            connection,
            token,
            streams,
        });
        connection
    }

    fn dialing(&mut self, attempted: ConnectionId) {
        self.attempt = self.attempt.saturating_add(1);
        self.connection = Connection::Dialing(attempted);
        self.phase = Phase::Connecting { attempt: self.attempt };
    }

    /// An attempt has ended.
    pub(super) fn dialed(
        &mut self,
        id: ConnectionId,
        token: Option<Issued>,
        result: Result<Vec<Inbound>, DialFailure>,
    ) -> Result<(), StopReason> {
        match &self.connection {
            Connection::Dialing(attempted) if *attempted == id => {
                self.held = token;
                match result {
                    Ok(brought) => self.serve(id, brought),
                    Err(failure) => {
                        let Later { reason, wait, .. } = self.after_failure(failure)?;
                        self.back_off(reason, wait);
                        Ok(())
                    }
                }
            }
            Connection::Up(up) if up.next == Some(id) => {
                self.held.clone_from(&token);
                match result {
                    Ok(brought) => self.take_over(id, token, brought),
                    Err(failure) => self.not_replaced(failure),
                }
            }
            Connection::Waiting { .. } | Connection::Dialing(_) | Connection::Up(_) => {
                // The session gave this attempt up. If it succeeded, nobody needs the connection.
                self.commands.push(Command::Close { connection: id });
                Ok(())
            }
        }
    }

    /// The attempt to replace the connection before its token ends has failed.
    fn not_replaced(&mut self, failure: DialFailure) -> Result<(), StopReason> {
        let Later { reason, wait, .. } = self.after_failure(failure)?;
        let Connection::Up(up) = &mut self.connection else {
            return Ok(());
        };
        up.next = None;
        if let Some(tenure) = &mut up.tenure {
            let failures = tenure.count_failure();
            let retry_in = self.settings.backoff.delay_of(failures, wait, self.dice.random());
            tracing::info!(%reason, failures, ?retry_in, "replacing the token failed, trying again");
            tenure.try_again_at(self.now + retry_in);
        }
        self.token_unshown = true;
        Ok(())
    }

    /// Decides what a failed attempt means for the next one.
    fn after_failure(&mut self, failure: DialFailure) -> Result<Later, StopReason> {
        match failure {
            DialFailure::NoToken(_) | DialFailure::Unauthorized | DialFailure::Refused(_) => {
                self.counters.token_failures += 1;
            }
            DialFailure::Stop(_) | DialFailure::Later(_) => {}
        }
        let Settings { renewable, limits, .. } = &self.settings;
        let later = token::after_failure(failure, *renewable, limits.ask_again_after)?;
        if later.forget_token {
            self.held = None;
        }
        Ok(later)
    }

    pub(super) fn fresh_token(&self) -> Option<Issued> {
        self.held.clone().filter(|held| token::is_fresh(held, self.now))
    }

    pub(super) fn tenure(&mut self, issued: Option<Issued>) -> Option<Tenure> {
        self.token_unshown = true;
        // Rows that the old connection still brings are sealed by keys that the new token brings as well.
        let keys = issued.as_ref().map(|issued| issued.token.seal_keys.clone());
        if let Some(keys) = keys.filter(|keys| !keys.is_empty()) {
            self.commands.push(Command::Trust(keys));
        }
        self.ask_heads();
        issued.map(|issued| Tenure::new(issued, self.dice.random()))
    }

    /// A connection exists, to a module that this release works with: the streams may go on.
    fn serve(&mut self, id: ConnectionId, brought: Vec<Inbound>) -> Result<(), StopReason> {
        let tenure = self.tenure(self.held.clone());
        self.connection = Connection::Up(Box::new(Up::new(id, tenure, self.now)));
        self.heartbeat.again();
        self.served += 1;
        self.counters.reconnects = self.served - 1;
        for at in 0..self.followers.len() {
            // The module may have been restored or published again, and have lost the checkpoints.
            self.followers[at].acknowledgement.forget();
            self.set_out(at);
        }
        for inbound in brought {
            self.inbound(id, inbound)?;
        }
        self.watch_and_listen();
        Ok(())
    }

    /// The second connection serves and takes over.
    fn take_over(&mut self, id: ConnectionId, token: Option<Issued>, brought: Vec<Inbound>) -> Result<(), StopReason> {
        let tenure = self.tenure(token);
        let now = self.now;
        let Connection::Up(up) = &mut self.connection else {
            return Ok(());
        };
        debug_assert!(
            up.old.is_none(),
            "a hand-over begins only after the previous one has ended"
        );
        let old = Old {
            id: up.id,
            until: now + self.settings.limits.handover_timeout,
            users: 0,
        };
        **up = Up {
            stable_since: up.stable_since,
            old: Some(old),
            ..Up::new(id, tenure, now)
        };
        self.heartbeat.again();
        self.counters.refreshes += 1;
        tracing::debug!("a connection with a new token takes over");
        self.see_and_hear_no_more();
        for at in 0..self.followers.len() {
            // As after any connection: SpacetimeDB may have been restored while the old one seemed to be open.
            self.followers[at].acknowledgement.forget();
            self.touch(at);
        }
        self.set_out_with_token();
        for inbound in brought {
            self.inbound(id, inbound)?;
        }
        self.watch_and_listen();
        Ok(())
    }

    /// What the application watches and hears begins anew with each connection that serves.
    fn watch_and_listen(&mut self) {
        self.subscribe_to_views();
        self.listen();
    }

    /// The connection that served does so no longer: what was seen is stale until the next one has brought all rows.
    fn see_and_hear_no_more(&mut self) {
        self.views_are_stale();
        self.readable_is_stale();
        self.ears_fall_silent();
    }

    /// A connection has ended.
    pub(super) fn closed(&mut self, id: ConnectionId, reason: Disconnect) {
        if self.serving() == Some(id) {
            self.back_off(reason, None);
        } else if self.handed_over() == Some(id) {
            tracing::debug!(%reason, "the replaced connection has ended");
            self.old_is_gone();
        }
    }

    /// The connection has ended, or an attempt has failed. `wait` is the shortest wait that anybody asked for.
    pub(super) fn back_off(&mut self, reason: Disconnect, wait: Option<Duration>) {
        let attempt = self.attempt.max(1);
        let retry_in = self.settings.backoff.delay_of(attempt, wait, self.dice.random());
        let next = match &mut self.connection {
            Connection::Up(up) => up.next.take(),
            Connection::Waiting { .. } | Connection::Dialing(_) => None,
        };
        self.hang_up(self.now + retry_in);
        self.last_disconnect = Some(reason.clone());
        if let Some(attempted) = next {
            tracing::info!(%reason, "disconnected, the next connection is already being made");
            self.dialing(attempted);
            return;
        }
        tracing::info!(%reason, attempt, ?retry_in, "disconnected");
        self.phase = Phase::Backoff {
            attempt,
            retry_in,
            reason,
        };
    }

    /// Ends the connection, if there is one. The next attempt is due at `until`.
    pub(super) fn hang_up(&mut self, until: Instant) {
        let ended = std::mem::replace(&mut self.connection, Connection::Waiting { until });
        self.token_unshown = true;
        let Connection::Up(up) = ended else { return };
        let ended = [Some(up.id), up.next, up.old.map(|old| old.id)];
        for connection in ended.into_iter().flatten() {
            self.commands.push(Command::Close { connection });
        }
        self.see_and_hear_no_more();
        self.reads.clear();
        self.cache.clear();
        for at in 0..self.followers.len() {
            self.followers[at].offline();
            self.withdraw(at);
            self.withdraw_content(at);
            self.feed(at, Input::Disconnected);
        }
    }

    /// A SpacetimeDB that is slow to send also learns late of what the client asked, and until then the SDK caches
    /// every row it has sent. A new connection pages what was still outstanding on the old one.
    pub(super) fn reconnect_if_overfull(&mut self) {
        if self.cache.all() > self.settings.limits.overfull(self.followers.len()) {
            tracing::info!(bytes = self.cache.all(), "the SDK caches too many bytes, reconnecting");
            self.counters.connections_overfull += 1;
            // Nothing failed: the next attempt counts as the first.
            self.attempt = 0;
            self.hang_up(self.now);
        }
    }

    /// Asks for a new token and a new connection when they are due. Gives up the connection when its token has ended
    /// first.
    pub(super) fn refresh(&mut self) {
        let held = self.fresh_token();
        let Connection::Up(up) = &mut self.connection else {
            return;
        };
        let Some(tenure) = &up.tenure else { return };
        // Only a newer token counts: an earlier attempt got it and then failed to connect.
        let held = held.filter(|held| held.asked_at > tenure.asked_at());
        if tenure.has_ended(self.now) {
            let wait = tenure.refresh_at().saturating_duration_since(self.now);
            self.back_off(Disconnect::TokenEnded, Some(wait));
        } else if tenure.is_due(self.now) && up.next.is_none() && up.old.is_none() {
            let attempted = self.dial(held);
            if let Connection::Up(up) = &mut self.connection {
                up.next = Some(attempted);
            }
        }
    }

    /// The module acts as if the token had ended or granted less, although by this client's clock it is still valid.
    pub(super) fn doubt_token_if(&mut self, doubted: bool) {
        let Connection::Up(up) = &mut self.connection else {
            return;
        };
        if let Some(tenure) = up.tenure.as_mut().filter(|_| doubted) {
            tenure.is_doubted(self.now);
            self.held = None;
            self.token_unshown = true;
        }
    }

    /// Whether the token of this connection grants a stream.
    pub(super) fn is_granted(&self, at: usize) -> bool {
        let Connection::Up(up) = &self.connection else {
            return false;
        };
        up.tenure
            .as_ref()
            .is_some_and(|tenure| tenure.grants(&self.followers[at].id))
    }

    pub(super) fn token_status(&self) -> Option<TokenStatus> {
        match &self.connection {
            Connection::Up(up) => up.tenure.as_ref().map(Tenure::status),
            Connection::Waiting { .. } | Connection::Dialing(_) => None,
        }
    }
}
