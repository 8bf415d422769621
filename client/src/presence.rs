//! Who is there: what this session says of itself, and whom it sees. Signals of the moment and never a part of a log:
//! one that is lost is followed by another.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use spacetime_sync_proto::{Label, StreamId, limit};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::PresenceError;

/// How often a session that is there says so.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(5);

/// What a session says of itself on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// The node: a machine, a worker. A session may be on several.
    pub node_id: String,
    /// How it is there.
    pub status: PresenceStatus,
    /// Where the node is; may be empty.
    pub region: String,
    /// The streams that it serves: who may read one of them sees it.
    pub serves: Vec<StreamId>,
}

/// How a session is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PresenceStatus {
    /// Ready.
    Online,
    /// There, and occupied.
    Busy,
    /// There, and nobody looks.
    Away,
    /// Not there any more.
    Offline,
}

impl PresenceStatus {
    /// Its name in the lane.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Busy => "busy",
            Self::Away => "away",
            Self::Offline => "offline",
        }
    }

    fn read(name: &str) -> Option<Self> {
        let all = [Self::Online, Self::Busy, Self::Away, Self::Offline];
        all.into_iter().find(|status| status.as_str() == name)
    }
}

/// Why a session is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfflineReason {
    /// It said so.
    Explicit,
    /// It was not heard of for too long.
    TtlExpired,
}

impl OfflineReason {
    /// Its name in the lane.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Explicit => "explicit_offline",
            Self::TtlExpired => "ttl_expired",
        }
    }

    fn read(name: &str) -> Option<Self> {
        let all = [Self::Explicit, Self::TtlExpired];
        all.into_iter().find(|reason| reason.as_str() == name)
    }
}

/// Which session on which node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PresenceKey {
    /// The session.
    pub session_id: String,
    /// The node.
    pub node_id: String,
}

/// A session that is seen, those that are gone included for as long as the module knows of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPresence {
    /// How it is there.
    pub status: PresenceStatus,
    /// Why it is not, if it is not.
    pub reason: Option<OfflineReason>,
    /// Where the node is.
    pub region: String,
    /// Since when it has been there.
    pub started_at: SystemTime,
    /// When it was last heard of, by the host's clock.
    pub last_seen: SystemTime,
}

/// Everyone who is seen.
pub type Presences = BTreeMap<PresenceKey, SeenPresence>;

impl Presence {
    /// There and ready, on a node.
    pub fn online(node_id: impl Into<String>) -> Self {
        Self {
            node_id: node_id.into(),
            status: PresenceStatus::Online,
            region: String::new(),
            serves: Vec::new(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), PresenceError> {
        Label::check(&self.node_id).map_err(PresenceError::NodeId)?;
        if !self.region.is_empty() {
            Label::check(&self.region).map_err(PresenceError::Region)?;
        }
        if self.serves.len() > limit::PRESENCE_SERVES {
            return Err(PresenceError::Serves {
                found: self.serves.len(),
            });
        }
        Ok(())
    }

    fn gone(&self) -> Self {
        Self {
            status: PresenceStatus::Offline,
            serves: Vec::new(),
            ..self.clone()
        }
    }
}

/// Says that this session is there, every five seconds while there is a connection, until [`PresenceHandle::clear`] or
/// until the client stops; dropping it changes nothing. It needs a token whose provider names the session.
#[derive(Debug)]
pub struct PresenceHandle {
    pub(crate) said: watch::Sender<Option<Presence>>,
}

impl PresenceHandle {
    /// Says something else from now on.
    pub fn update(&self, presence: Presence) -> Result<(), PresenceError> {
        presence.check()?;
        self.said.send_replace(Some(presence));
        Ok(())
    }

    /// Says that this session is not there any more.
    pub fn clear(self) {
        self.said.send_replace(None);
    }
}

/// When something is to be said, and what.
#[derive(Debug, Default)]
pub(crate) struct Heartbeat {
    /// What was said last, while it is to be said again.
    said: Option<Presence>,
    said_at: Option<Instant>,
}

impl Heartbeat {
    /// What is to be said at this time.
    pub(crate) fn due(&mut self, wanted: Option<&Presence>, now: Instant) -> Vec<Presence> {
        let mut due = Vec::new();
        if let Some(said) = &self.said
            && wanted.is_none_or(|wanted| wanted.node_id != said.node_id)
        {
            due.push(said.gone());
        }
        let rested = self.said_at.is_none_or(|at| now.duration_since(at) >= HEARTBEAT);
        if let Some(wanted) = wanted
            && (rested || self.said.as_ref() != Some(wanted))
        {
            due.push(wanted.clone());
            self.said_at = Some(now);
        }
        self.said = wanted.cloned();
        due
    }

    /// There is another connection: it is said again at once.
    pub(crate) fn again(&mut self) {
        self.said_at = None;
    }
}

/// A row of the lane's table.
pub(crate) struct PresenceRow {
    pub(crate) key: PresenceKey,
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) region: String,
    pub(crate) started_at: SystemTime,
    pub(crate) last_seen: SystemTime,
}

/// The same session is seen once for each reason to see it: what was heard last counts. A row whose words are not ours
/// is left out.
pub(crate) fn seen(rows: impl Iterator<Item = PresenceRow>) -> Presences {
    let mut seen = Presences::new();
    for row in rows {
        let Some(status) = PresenceStatus::read(&row.status) else {
            continue;
        };
        if seen.get(&row.key).is_none_or(|other| other.last_seen < row.last_seen) {
            let one = SeenPresence {
                status,
                reason: OfflineReason::read(&row.reason),
                region: row.region,
                started_at: row.started_at,
                last_seen: row.last_seen,
            };
            seen.insert(row.key, one);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_said_to_be_there_at_once_when_it_changes_and_every_five_seconds() {
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
    fn who_leaves_says_so_once_and_a_node_that_is_left_too() {
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

    #[test]
    fn a_session_that_is_seen_in_several_ways_is_seen_once_as_last_heard_of() {
        let row = |node: &str, status: &str, reason: &str, seconds| PresenceRow {
            key: PresenceKey {
                session_id: "s".to_owned(),
                node_id: node.to_owned(),
            },
            status: status.to_owned(),
            reason: reason.to_owned(),
            region: String::new(),
            started_at: SystemTime::UNIX_EPOCH,
            last_seen: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        };
        let rows = [
            row("a", "online", "", 1),
            row("a", "offline", "ttl_expired", 3),
            row("a", "busy", "", 2),
            row("b", "offline", "explicit_offline", 1),
            row("c", "dancing", "", 1),
        ];
        let found: Vec<_> = seen(rows.into_iter())
            .into_iter()
            .map(|(key, seen)| (key.node_id, seen.status, seen.reason))
            .collect();
        let expected = [
            ("a".to_owned(), PresenceStatus::Offline, Some(OfflineReason::TtlExpired)),
            ("b".to_owned(), PresenceStatus::Offline, Some(OfflineReason::Explicit)),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_the_module_would_refuse_is_refused_here() {
        assert_eq!(Presence::online("n").check(), Ok(()));
        let long = "x".repeat(limit::NAME_BYTES + 1);
        for wrong in ["", "a\nb", &long] {
            let node = Presence::online(wrong).check();
            assert!(matches!(node, Err(PresenceError::NodeId(_))), "{wrong:?}");
        }
        let region = Presence {
            region: long,
            ..Presence::online("n")
        };
        assert!(matches!(region.check(), Err(PresenceError::Region(_))));
        let serves = Presence {
            serves: vec![StreamId::new("a").unwrap(); limit::PRESENCE_SERVES + 1],
            ..Presence::online("n")
        };
        assert_eq!(serves.check(), Err(PresenceError::Serves { found: 17 }));
    }
}
