//! Who is there: what this session says of itself, and whom it sees. Signals of the moment and never a part of a log:
//! one that is lost is followed by another.

use std::collections::BTreeMap;
use std::time::SystemTime;

use spacetime_sync_proto::{Label, StreamId, limit};
use tokio::sync::watch;

use crate::error::PresenceError;

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

    pub(crate) fn read(name: &str) -> Option<Self> {
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

    pub(crate) fn read(name: &str) -> Option<Self> {
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

    pub(crate) fn gone(&self) -> Self {
        Self {
            status: PresenceStatus::Offline,
            serves: Vec::new(),
            ..self.clone()
        }
    }
}

/// What an application wants of presence.
#[derive(Debug, Clone, Default)]
pub(crate) struct PresenceWishes {
    /// What is to be said of this session, if anything.
    pub(crate) said: Option<Presence>,
    /// Whether somebody wants to know who else is there.
    pub(crate) watch: bool,
}

/// Says that this session is there, every five seconds while there is a connection, until [`PresenceHandle::clear`] or
/// until the client stops; dropping it changes nothing. It needs a token whose provider names the session.
#[derive(Debug)]
pub struct PresenceHandle {
    pub(crate) wishes: watch::Sender<PresenceWishes>,
}

impl PresenceHandle {
    /// Says something else from now on.
    pub fn update(&self, presence: Presence) -> Result<(), PresenceError> {
        presence.check()?;
        self.wishes.send_modify(|wishes| wishes.said = Some(presence));
        Ok(())
    }

    /// Says that this session is not there any more.
    pub fn clear(self) {
        self.wishes.send_modify(|wishes| wishes.said = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
