//! Presence: what this session announces, and which other sessions it sees. Presence is never part of a log: a lost
//! announcement is followed by the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::SystemTime;

use spacetime_sync_proto::{Label, NostrKey, StreamId, limit};
use tokio::sync::watch;

use crate::error::PresenceError;
use crate::watched::Watchable;

/// What a session announces about itself on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// The node: a machine or a worker. A session may be on several.
    pub node_id: String,
    /// Its status.
    pub status: PresenceStatus,
    /// The region of the node; may be empty.
    pub region: String,
    /// What kind of application or machine the node is, such as `desktop`; may be empty.
    pub surface: String,
    /// The streams that it serves: sessions that may read one of them see it. Needs
    /// [`ClientConfig::serves`](crate::ClientConfig::serves).
    pub serves: Vec<StreamId>,
}

/// The status of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PresenceStatus {
    /// Ready.
    Online,
    /// Present but occupied.
    Busy,
    /// Present but idle.
    Away,
    /// No longer present.
    Offline,
}

impl PresenceStatus {
    /// Its name in the module.
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

impl fmt::Display for PresenceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a session is offline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfflineReason {
    /// It said so.
    Explicit,
    /// It was silent for too long.
    TtlExpired,
}

impl OfflineReason {
    /// Its name in the module.
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

impl fmt::Display for OfflineReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Explicit => "it said that it leaves",
            Self::TtlExpired => "it was silent for too long",
        })
    }
}

/// A session on a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PresenceKey {
    /// The session.
    pub session_id: String,
    /// The node.
    pub node_id: String,
}

/// A session as others see it. Offline ones are included for as long as the module keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPresence {
    /// Its status.
    pub status: PresenceStatus,
    /// Why it is offline, if it is.
    pub reason: Option<OfflineReason>,
    /// The region of the node.
    pub region: String,
    /// What kind of application or machine the node is; may be empty.
    pub surface: String,
    /// The Nostr key that is bound to the node. Whoever bound it had the key then.
    pub nostr_key: Option<NostrKey>,
    /// Since when it has been present.
    pub started_at: SystemTime,
    /// When it was last heard, as far as was told, by SpacetimeDB's clock. As long as it goes on saying the same, it may have been heard
    /// up to ten minutes later.
    pub last_seen: SystemTime,
}

/// All visible sessions.
pub type Presences = BTreeMap<PresenceKey, SeenPresence>;

impl Presence {
    /// Online on a node.
    pub fn online(node_id: impl Into<String>) -> Self {
        Self {
            node_id: node_id.into(),
            status: PresenceStatus::Online,
            region: String::new(),
            surface: String::new(),
            serves: Vec::new(),
        }
    }

    pub(crate) fn check(&self, may_serve: bool) -> Result<(), PresenceError> {
        Label::check(&self.node_id).map_err(PresenceError::NodeId)?;
        if !self.region.is_empty() {
            Label::check(&self.region).map_err(PresenceError::Region)?;
        }
        if !self.surface.is_empty() {
            Label::check(&self.surface).map_err(PresenceError::Surface)?;
        }
        if !self.serves.is_empty() && !may_serve {
            return Err(PresenceError::MayNotServe);
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

/// What the application wants to announce, and to watch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    /// What to announce for this session, if anything.
    pub(crate) said: Option<Presence>,
    /// All that it ever wanted to watch.
    pub(crate) watches: BTreeSet<Watchable>,
    /// Whether it ever wanted to know which streams the session may read.
    pub(crate) readable: bool,
}

/// Announces this session every five seconds while there is a connection, until [`PresenceHandle::clear`] or until the
/// client stops; dropping the handle changes nothing. Needs a token whose provider names the session.
#[derive(Debug)]
pub struct PresenceHandle {
    pub(crate) wishes: watch::Sender<Wishes>,
    pub(crate) may_serve: bool,
}

impl PresenceHandle {
    /// Announces something else from now on.
    pub fn update(&self, presence: Presence) -> Result<(), PresenceError> {
        presence.check(self.may_serve)?;
        self.wishes.send_modify(|wishes| wishes.said = Some(presence));
        Ok(())
    }

    /// Announces that this session has left.
    pub fn clear(self) {
        self.wishes.send_modify(|wishes| wishes.said = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_presence_that_the_module_would_refuse_is_refused_here() {
        assert_eq!(Presence::online("n").check(false), Ok(()));
        let long = "x".repeat(limit::NAME_BYTES + 1);
        for wrong in ["", "a\nb", &long] {
            let node = Presence::online(wrong).check(true);
            assert!(matches!(node, Err(PresenceError::NodeId(_))), "{wrong:?}");
        }
        let region = Presence {
            region: long.clone(),
            ..Presence::online("n")
        };
        assert!(matches!(region.check(true), Err(PresenceError::Region(_))));
        let surface = Presence {
            surface: long,
            ..Presence::online("n")
        };
        assert!(matches!(surface.check(true), Err(PresenceError::Surface(_))));
        let serves = |count: usize| Presence {
            serves: vec![StreamId::new("a").unwrap(); count],
            ..Presence::online("n")
        };
        let most = limit::PRESENCE_SERVES;
        assert_eq!(serves(most).check(true), Ok(()));
        assert_eq!(serves(most + 1).check(true), Err(PresenceError::Serves { found: 17 }));
        assert_eq!(serves(1).check(false), Err(PresenceError::MayNotServe));
    }
}
