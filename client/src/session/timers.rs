//! What the session does as time passes.

use std::time::Duration;

use super::connection::Connection;
use super::status::Disconnect;
use super::stream::Input;
use super::{Command, Session};

/// How often to look at the timers.
const TICK: Duration = Duration::from_millis(250);

impl Session {
    /// Time has passed.
    pub(super) fn woken(&mut self) {
        self.connect_if_due();
        if self.now >= self.tick_at {
            self.tick_at = self.now + TICK;
            self.tick();
        }
    }

    fn tick(&mut self) {
        for at in 0..self.followers.len() {
            if self.followers[at].lives_on_grace() {
                self.touch(at);
            }
        }
        self.count_touched();
        self.ask_again();
        self.search_again();
        self.tell_stable();
        if let Connection::Up(up) = &self.connection
            && up
                .stable_since
                .is_some_and(|since| self.now.saturating_duration_since(since) >= self.settings.backoff.stable_after)
        {
            self.attempt = 0;
        }
        if let Some(reason) = self.silence() {
            self.back_off(reason, None);
            return;
        }
        self.end_handover_if_late();
        self.refresh();
        self.verify();
        self.watch_heads();
        self.acknowledge_some();
        self.say_presence(self.presence.clone());
        self.subscribe_to_views();
        self.listen();
        self.end_late_calls();
    }

    fn ask_again(&mut self) {
        for at in 0..self.followers.len() {
            if self.followers[at].ask_at.is_some_and(|due| due <= self.now) {
                self.followers[at].ask_at = None;
                self.feed(at, Input::AskAgain);
            }
        }
    }

    /// Tells each stream that has been live for a while: its next failure counts as the first.
    fn tell_stable(&mut self) {
        let after = self.settings.backoff.stable_after;
        for at in 0..self.followers.len() {
            let follower = &mut self.followers[at];
            if !follower.told_stable && follower.is_stable(self.now, after) {
                follower.told_stable = true;
                self.feed(at, Input::Stable);
            }
        }
    }

    /// The reason to give up the connection for being silent, if there is one.
    fn silence(&self) -> Option<Disconnect> {
        let Connection::Up(up) = &self.connection else {
            return None;
        };
        // The pending call may have gone to the replaced connection, which ends soon.
        if up.old.is_some() {
            return None;
        }
        let limits = &self.settings.limits;
        let asked = self.followers.iter().filter_map(|follower| follower.asked_at);
        let asked_at = asked
            .chain(self.calls.asked_at())
            .chain(self.readable.owed_since())
            .min()?;
        if self.now.saturating_duration_since(asked_at) > limits.answer_timeout {
            return Some(Disconnect::Silence(limits.answer_timeout));
        }
        (self.now.saturating_duration_since(asked_at.max(up.heard_at)) > limits.silence_timeout)
            .then_some(Disconnect::Silence(limits.silence_timeout))
    }

    /// Asks for the heads of live streams: for one of them when nothing was heard for a while, to test the connection,
    /// and for each one now and then, so that no lost delivery stays lost.
    fn verify(&mut self) {
        let Connection::Up(up) = &self.connection else {
            return;
        };
        let (limits, now) = (&self.settings.limits, self.now);
        let silent =
            self.reads.under_way() == 0 && now.saturating_duration_since(up.heard_at) >= limits.heartbeat_after;
        let mut due: Vec<_> = (0..self.followers.len())
            .filter(|at| {
                let follower = &self.followers[*at];
                let rested = || now.saturating_duration_since(follower.verified_at) >= limits.verify_every;
                follower.stream.is_delivering() && !follower.stream.is_reading() && (silent || rested())
            })
            .collect();
        due.sort_by_key(|at| self.followers[*at].verified_at);
        due.truncate(if silent { 1 } else { limits.pages_in_flight });
        for at in due {
            self.feed(at, Input::Verify);
        }
    }

    /// Acknowledges what is due, a few streams in turn.
    fn acknowledge_some(&mut self) {
        if self.serving().is_none() {
            return;
        }
        let limits = &self.settings.limits;
        let streams = self.followers.len();
        let due: Vec<_> = (0..streams)
            .map(|at| (at + self.ack_turn) % streams)
            .filter(|at| {
                let follower = &self.followers[*at];
                // The module accepts no acknowledgement from a session that may not read the stream.
                if follower.is_forbidden() || !follower.is_followed() {
                    return false;
                }
                let applied = follower.stream.applied().seq;
                let (every, lost_after) = (limits.ack_every, limits.answer_timeout);
                follower.acknowledgement.is_due(applied, self.now, every, lost_after)
            })
            .take(limits.acks_at_once)
            .collect();
        if let Some(last) = due.last() {
            self.ack_turn = last + 1;
        }
        for at in due {
            self.acknowledge(at);
        }
    }

    /// Acknowledges everything outstanding, for the last time.
    pub(super) fn acknowledge_all(&mut self) {
        for at in 0..self.followers.len() {
            if self.followers[at].is_followed() {
                self.acknowledge_if_owed(at);
            }
        }
    }

    /// Acknowledges what is outstanding of a stream.
    pub(super) fn acknowledge_if_owed(&mut self, at: usize) {
        let follower = &self.followers[at];
        if follower.acknowledgement.is_owed(follower.stream.applied().seq) {
            self.acknowledge(at);
        }
    }

    fn acknowledge(&mut self, at: usize) {
        let Some(connection) = self.serving() else { return };
        let follower = &mut self.followers[at];
        let position = follower.stream.applied();
        follower.acknowledgement.said(connection, position.seq, self.now);
        self.commands.push(Command::Acknowledge {
            connection,
            stream: at,
            position,
        });
    }
}
