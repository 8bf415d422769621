//! What the application watches: rows of SpacetimeDB, each time with how fresh they are.

use std::fmt;
use std::time::Instant;

use tokio::sync::watch;

use crate::outbox::Outbox;
use crate::presence::Presences;
use crate::readable::ReadableStreams;
use crate::work::{Assignments, Capabilities};

/// What the client last saw of something, and whether it would see a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched<T> {
    /// How fresh it is.
    pub freshness: Freshness,
    /// What the client last saw.
    pub rows: T,
}

/// How fresh something is that is watched. Like a live stream, it may be live until the client notices that its connection
/// is silent: [`Limits::silence_timeout`](crate::Limits::silence_timeout).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// The client has seen nothing yet. That there are no rows means nothing.
    Unseen,
    /// A subscription brings every change.
    Live,
    /// Nothing brings changes: the connection was lost or replaced, SpacetimeDB ended the subscription, or the client has
    /// stopped. The rows are from before.
    Stale {
        /// Since when.
        since: Instant,
    },
}

impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unseen => "not seen yet",
            Self::Live => "live",
            Self::Stale { .. } => "from before: nothing brings changes",
        })
    }
}

impl<T: Default> Default for Watched<T> {
    fn default() -> Self {
        Self {
            freshness: Freshness::Unseen,
            rows: T::default(),
        }
    }
}

impl<T> Watched<T> {
    /// Whether a change would be seen.
    pub fn is_live(&self) -> bool {
        self.freshness == Freshness::Live
    }
}

/// Something that an application can watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Watchable {
    /// The nodes of sessions.
    Presences,
    /// How many providers are there.
    ProvidersOnline,
    /// What providers can do.
    Capabilities,
    /// The assignments that the session may see, with their newest changes.
    Assignments,
    /// What the world outside is to hear.
    Outbox,
}

/// Where the runner puts what is watched, for the application to see.
#[derive(Debug, Default)]
pub(crate) struct Views {
    pub(crate) presences: watch::Sender<Watched<Presences>>,
    pub(crate) providers_online: watch::Sender<Watched<u64>>,
    pub(crate) capabilities: watch::Sender<Watched<Capabilities>>,
    pub(crate) assignments: watch::Sender<Watched<Assignments>>,
    pub(crate) outbox: watch::Sender<Watched<Outbox>>,
    pub(crate) readable: watch::Sender<Watched<ReadableStreams>>,
}
