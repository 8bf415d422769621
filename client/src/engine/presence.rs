//! Saying that this session is there, and keeping whom it sees.

use tokio::time::Instant;

use super::Engine;
use super::net::{Generation, Net};
use crate::link::CallFailure;

impl Engine {
    /// Says what is due, and begins to watch when somebody wants to know.
    pub(super) fn keep_presence(&mut self, now: Instant) {
        let Net::Up(up) = &mut self.net else { return };
        if !up.watches_presence && self.presences.receiver_count() > 0 {
            up.link.watch_presence();
            up.watches_presence = true;
        }
        let wanted = self.presence.borrow().clone();
        self.say(wanted.is_none(), now);
    }

    /// Says that the session is not there any more; how many calls that takes.
    pub(super) fn leave(&mut self, now: Instant) -> u64 {
        self.say(true, now)
    }

    fn say(&mut self, leave: bool, now: Instant) -> u64 {
        let Net::Up(up) = &self.net else { return 0 };
        // Only a provider knows the session, and one that does not has none to speak for.
        let Some(session_id) = up.tenure.as_ref().and_then(|tenure| tenure.session_id()) else {
            return 0;
        };
        let wanted = self.presence.borrow().clone().filter(|_| !leave);
        let due = self.heartbeat.due(wanted.as_ref(), now);
        for presence in &due {
            up.link.say_presence(session_id, presence);
        }
        due.len() as u64
    }

    /// The module has answered.
    pub(super) fn presence_said(&mut self, answer: Result<(), CallFailure>) {
        match answer {
            Ok(()) => self.counters.heartbeats += 1,
            Err(failure) => {
                self.counters.heartbeats_refused += 1;
                self.doubt_token_if(failure.is_of_aged_token());
                tracing::debug!(?failure, "the presence was refused");
            }
        }
    }

    /// Who is seen may be another, as this connection says. One that was taken over from is behind.
    pub(super) fn presence_changed(&mut self, from: Generation) {
        if let Net::Up(up) = &mut self.net
            && up.generation == from
        {
            up.presence_changed = true;
        }
    }

    /// Tells who is seen, once for all that a message brought.
    pub(super) fn publish_presence(&mut self) {
        let Net::Up(up) = &mut self.net else { return };
        if std::mem::take(&mut up.presence_changed) {
            let found = up.link.presences();
            self.presences.send_if_modified(|shown| {
                let changed = *shown != found;
                *shown = found;
                changed
            });
        }
    }
}
