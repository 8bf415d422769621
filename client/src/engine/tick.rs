//! What happens because time passes.

use tokio::time::Instant;

use super::Engine;
use super::net::Net;
use crate::apply::Input;
use crate::status::Disconnect;

impl Engine {
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        self.ask_again(now);
        self.settle(now);
        if let Net::Up(up) = &self.net
            && up
                .stable_since
                .is_some_and(|since| now.duration_since(since) >= self.config.backoff.stable_after)
        {
            self.attempt = 0;
        }
        if let Some(reason) = self.silence(now) {
            self.back_off(reason, None);
            return;
        }
        self.refresh(now);
        self.verify(now);
        self.ack_some(now);
        self.keep_presence(now);
    }

    fn ask_again(&mut self, now: Instant) {
        for at in 0..self.followers.len() {
            if self.followers[at].ask_at.is_some_and(|due| due <= now) {
                self.followers[at].ask_at = None;
                self.step(at, Input::AskAgain);
            }
        }
    }

    /// What comes after a while of being live is a new trouble.
    fn settle(&mut self, now: Instant) {
        let after = self.config.backoff.stable_after;
        for at in 0..self.followers.len() {
            let follower = &mut self.followers[at];
            let stable = follower
                .live_since
                .is_some_and(|since| now.duration_since(since) >= after);
            if stable && !follower.settled {
                follower.settled = true;
                self.step(at, Input::Settled);
            }
        }
    }

    /// Why the connection is to be given up, if it is.
    fn silence(&self, now: Instant) -> Option<Disconnect> {
        let Net::Up(up) = &self.net else { return None };
        // A call may have gone to the other connection, which is given up soon.
        if up.old.is_some() {
            return None;
        }
        let limits = &self.config.limits;
        let asked_at = self.followers.iter().filter_map(|follower| follower.asked_at).min()?;
        if now.duration_since(asked_at) > limits.answer_timeout {
            return Some(Disconnect::Silence(limits.answer_timeout));
        }
        (now.duration_since(asked_at.max(up.heard_at)) > limits.silence_timeout)
            .then_some(Disconnect::Silence(limits.silence_timeout))
    }

    /// Asks for the heads of live streams: one when nothing was heard for a while, to find out whether the connection
    /// still is one, and each now and then, so that a delivery that was lost does not stay lost.
    fn verify(&mut self, now: Instant) {
        let Net::Up(up) = &self.net else { return };
        let limits = &self.config.limits;
        let silent = self.reads_under_way == 0 && now.duration_since(up.heard_at) >= limits.heartbeat_after;
        let mut due: Vec<_> = (0..self.followers.len())
            .filter(|at| self.followers[*at].stream.is_delivering() && !self.followers[*at].stream.is_reading())
            .filter(|at| silent || now.duration_since(self.followers[*at].verified_at) >= limits.verify_every)
            .collect();
        due.sort_by_key(|at| self.followers[*at].verified_at);
        due.truncate(if silent { 1 } else { limits.pages_in_flight });
        for at in due {
            self.step(at, Input::Verify);
        }
    }

    fn ack_some(&mut self, now: Instant) {
        let (every, most) = (self.config.limits.ack_every, self.config.limits.acks_at_once);
        let streams = self.followers.len();
        let due: Vec<_> = (0..streams)
            .map(|at| (at + self.ack_turn) % streams)
            .filter(|at| self.followers[*at].owes_ack(now, every))
            .take(most)
            .collect();
        if let Some(last) = due.last() {
            self.ack_turn = last + 1;
        }
        for at in due {
            self.ack(at, now);
        }
    }

    /// Acknowledges whatever is not; how many calls that takes.
    pub(super) fn ack_all(&mut self) -> u64 {
        let now = Instant::now();
        let streams = self.followers.len();
        let owed = (0..streams).filter(|at| self.followers[*at].stream.applied().seq > self.followers[*at].acked);
        let owed: Vec<_> = owed.collect();
        owed.into_iter().filter(|at| self.ack(*at, now)).count() as u64
    }

    fn ack(&mut self, at: usize, now: Instant) -> bool {
        let applied = self.followers[at].stream.applied();
        let Some(link) = self.link() else { return false };
        link.ack(at, &self.followers[at].id, applied);
        let follower = &mut self.followers[at];
        (follower.acked, follower.acked_at) = (applied.seq, Some(now));
        true
    }
}
