//! When to tell the module this session's presence, and what to tell it.

use std::time::{Duration, Instant};

use super::connection::Connection;
use super::{Command, Session};
use crate::presence::Presence;

/// How often a present session repeats its presence.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Decides when to report the presence, and what to report.
#[derive(Debug, Default)]
pub(super) struct Heartbeat {
    /// The last report, while it needs repeating.
    said: Option<Presence>,
    said_at: Option<Instant>,
}

impl Heartbeat {
    /// The reports that are due now.
    fn due(&mut self, wanted: Option<&Presence>, now: Instant) -> Vec<Presence> {
        let mut due = Vec::new();
        if let Some(said) = &self.said
            && wanted.is_none_or(|wanted| wanted.node_id != said.node_id)
        {
            due.push(said.gone());
        }
        let rested = self
            .said_at
            .is_none_or(|at| now.saturating_duration_since(at) >= HEARTBEAT);
        if let Some(wanted) = wanted
            && (rested || self.said.as_ref() != Some(wanted))
        {
            due.push(wanted.clone());
            self.said_at = Some(now);
        }
        self.said = wanted.cloned();
        due
    }

    /// The connection is a new one: repeat the presence at once.
    pub(super) fn again(&mut self) {
        self.said_at = None;
    }
}

impl Session {
    /// Tells the module this session's presence, or that the session is leaving, if that is due.
    pub(super) fn say_presence(&mut self, wanted: Option<Presence>) {
        let Connection::Up(up) = &mut self.connection else {
            return;
        };
        // Only a provider knows the session's id. Without one, the client cannot tell its presence.
        let Some(session_id) = up.tenure.as_ref().and_then(|tenure| tenure.session_id()) else {
            return;
        };
        for presence in self.heartbeat.due(wanted.as_ref(), self.now) {
            up.presence_calls += 1;
            self.commands.push(Command::SayPresence {
                connection: up.id,
                session_id: session_id.to_owned(),
                presence,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::PresenceStatus;

    #[test]
    fn presence_is_told_at_once_on_a_change_and_every_five_seconds() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut heartbeat = Heartbeat::default();
        let (online, busy) = (
            Presence::online("n"),
            Presence {
                status: PresenceStatus::Busy,
                ..Presence::online("n")
            },
        );
        assert_eq!(heartbeat.due(None, at(0)), []);
        assert_eq!(heartbeat.due(Some(&online), at(0)), std::slice::from_ref(&online));
        assert_eq!(heartbeat.due(Some(&online), at(4_999)), []);
        assert_eq!(heartbeat.due(Some(&online), at(5_000)), std::slice::from_ref(&online));
        assert_eq!(heartbeat.due(Some(&busy), at(5_250)), std::slice::from_ref(&busy));
        heartbeat.again();
        assert_eq!(heartbeat.due(Some(&busy), at(5_500)), [busy]);
    }

    #[test]
    fn leaving_is_told_once_also_when_the_node_changes() {
        let now = Instant::now();
        let mut heartbeat = Heartbeat::default();
        let (one, other) = (Presence::online("one"), Presence::online("other"));
        heartbeat.due(Some(&one), now);
        let said = heartbeat.due(Some(&other), now);
        assert_eq!(said, [one.gone(), other.clone()]);
        assert_eq!(said[0].status, PresenceStatus::Offline);
        assert_eq!(heartbeat.due(None, now), [other.gone()]);
        assert_eq!(heartbeat.due(None, now), []);
    }
}
