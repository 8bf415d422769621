//! Where the connection stands: when to attempt one, what an attempt that is over means, what goes with one that ends.

use std::time::{Duration, Instant};

use rand::Rng as _;

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
    /// One serves: its contract is ours.
    Up(Box<Up>),
}

#[derive(Debug)]
pub(super) struct Up {
    pub(super) id: ConnectionId,
    pub(super) heard_at: Instant,
    /// Since when the client is live or idle.
    pub(super) stable_since: Option<Instant>,
    /// How long its token is good for, if it came from a provider.
    pub(super) tenure: Option<Tenure>,
    /// The attempt at the connection that is to take over.
    pub(super) next: Option<ConnectionId>,
    /// The connection that this one took over from, while streams still hang on it.
    pub(super) old: Option<Old>,
    /// Whether it was asked who is there.
    pub(super) watches_presence: bool,
    /// How many calls that say how this session is there are not answered.
    pub(super) presence_calls: usize,
}

#[derive(Debug)]
pub(super) struct Old {
    pub(super) id: ConnectionId,
    /// When it is given up, whatever still hangs on it.
    pub(super) until: Instant,
    /// How many streams still take something from it.
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
            watches_presence: false,
            presence_calls: 0,
        }
    }
}

impl Session {
    /// The connection that serves.
    pub(super) fn serving(&self) -> Option<ConnectionId> {
        match &self.connection {
            Connection::Up(up) => Some(up.id),
            Connection::Waiting { .. } | Connection::Dialing(_) => None,
        }
    }

    /// The connection that is handed over.
    pub(super) fn handed_over(&self) -> Option<ConnectionId> {
        match &self.connection {
            Connection::Up(up) => up.old.as_ref().map(|old| old.id),
            Connection::Waiting { .. } | Connection::Dialing(_) => None,
        }
    }

    /// Attempts a connection, if it is time to.
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

    /// Begins an attempt, with a token that is held or a new one.
    pub(super) fn dial(&mut self, token: Option<Issued>) -> ConnectionId {
        let connection = ConnectionId(self.next_id());
        self.commands.push(Command::Dial { connection, token });
        connection
    }

    fn dialing(&mut self, attempted: ConnectionId) {
        self.attempt = self.attempt.saturating_add(1);
        self.connection = Connection::Dialing(attempted);
        self.phase = Phase::Connecting { attempt: self.attempt };
    }

    /// An attempt is over.
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
                // An attempt that was given up. If it came to something, nobody needs it.
                self.commands.push(Command::Close { connection: id });
                Ok(())
            }
        }
    }

    /// An attempt to replace the connection, before its token ends, has failed.
    fn not_replaced(&mut self, failure: DialFailure) -> Result<(), StopReason> {
        let Later { reason, wait, .. } = self.after_failure(failure)?;
        let Connection::Up(up) = &mut self.connection else {
            return Ok(());
        };
        up.next = None;
        if let Some(tenure) = &mut up.tenure {
            let failures = tenure.count_failure();
            let retry_in = self.settings.backoff.delay_of(failures, wait, self.dice.random());
            tracing::info!(%reason, failures, ?retry_in, "the token is not replaced yet");
            tenure.try_again_at(self.now + retry_in);
        }
        self.token_unshown = true;
        Ok(())
    }

    /// What an attempt that failed means for the next.
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
        issued.map(|issued| Tenure::new(issued, self.dice.random()))
    }

    /// There is a connection, and its contract is ours: the streams may go.
    fn serve(&mut self, id: ConnectionId, brought: Vec<Inbound>) -> Result<(), StopReason> {
        let tenure = self.tenure(self.held.clone());
        self.connection = Connection::Up(Box::new(Up::new(id, tenure, self.now)));
        self.heartbeat.again();
        self.served += 1;
        self.counters.reconnects = self.served - 1;
        for at in 0..self.followers.len() {
            // The module may have been restored, or published anew, and have forgotten.
            self.followers[at].acknowledgement.forget();
            self.feed(at, Input::Connected);
        }
        for inbound in brought {
            self.inbound(id, inbound)?;
        }
        Ok(())
    }

    /// The second connection serves.
    fn take_over(&mut self, id: ConnectionId, token: Option<Issued>, brought: Vec<Inbound>) -> Result<(), StopReason> {
        let tenure = self.tenure(token);
        let now = self.now;
        let Connection::Up(up) = &mut self.connection else {
            return Ok(());
        };
        debug_assert!(
            up.old.is_none(),
            "a second connection is only made when the one before is gone"
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
        for at in 0..self.followers.len() {
            self.touch(at);
        }
        for inbound in brought {
            self.inbound(id, inbound)?;
        }
        Ok(())
    }

    /// A connection has ended.
    pub(super) fn closed(&mut self, id: ConnectionId, reason: Disconnect) {
        if self.serving() == Some(id) {
            self.back_off(reason, None);
        } else if self.handed_over() == Some(id) {
            tracing::debug!(%reason, "the connection that was taken over from is gone");
            self.old_is_gone();
        }
    }

    /// The connection has ended, or the attempt at one has failed. `wait` is the shortest wait that somebody asked for.
    pub(super) fn back_off(&mut self, reason: Disconnect, wait: Option<Duration>) {
        let attempt = self.attempt.max(1);
        let retry_in = self.settings.backoff.delay_of(attempt, wait, self.dice.random());
        let next = match &mut self.connection {
            Connection::Up(up) => up.next.take(),
            Connection::Waiting { .. } | Connection::Dialing(_) => None,
        };
        self.hang_up(self.now + retry_in);
        if let Some(attempted) = next {
            tracing::info!(%reason, "no connection, the next one is on its way");
            self.dialing(attempted);
            return;
        }
        tracing::info!(%reason, attempt, ?retry_in, "no connection");
        self.phase = Phase::Backoff {
            attempt,
            retry_in,
            reason,
        };
    }

    /// Ends the connection, if there is one; the next attempt comes at the given time.
    pub(super) fn hang_up(&mut self, until: Instant) {
        let ended = std::mem::replace(&mut self.connection, Connection::Waiting { until });
        self.token_unshown = true;
        let Connection::Up(up) = ended else { return };
        let ended = [Some(up.id), up.next, up.old.map(|old| old.id)];
        for connection in ended.into_iter().flatten() {
            self.commands.push(Command::Close { connection });
        }
        self.reads.clear();
        self.cache.clear();
        for at in 0..self.followers.len() {
            self.followers[at].offline();
            self.withdraw(at);
            self.feed(at, Input::Disconnected);
        }
    }

    /// A host that is behind with sending learns late of what is asked of it: until then every row it has sent stays in
    /// the SDK's cache. A new connection pages what the old one had under way.
    pub(super) fn reconnect_if_overfull(&mut self) {
        if self.cache.all() > self.settings.limits.reconnect_bytes {
            tracing::info!(bytes = self.cache.all(), "too much is under way, connecting anew");
            self.counters.connections_overfull += 1;
            // Nothing failed: the next attempt is a first one.
            self.attempt = 0;
            self.hang_up(self.now);
        }
    }

    /// Asks for a new token and a new connection when it is time, and gives up the present one when its token has ended
    /// before there was another.
    pub(super) fn refresh(&mut self) {
        let held = self.fresh_token();
        let Connection::Up(up) = &mut self.connection else {
            return;
        };
        let Some(tenure) = &up.tenure else { return };
        // A newer one, that an attempt before got and could not connect with.
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

    /// The module acts as if the token had ended or allowed less, although this client's clock says that it is good.
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

    /// Whether the token of this connection names a stream.
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
