//! What a session may do. Patterns say on which streams.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::StreamId;

macro_rules! scopes {
    ($($(#[$doc:meta])* $scope:ident = $name:literal,)*) => {
        /// A named right, one of a closed set.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Scope {
            $($(#[$doc])* #[serde(rename = $name)] $scope,)*
        }

        impl Scope {
            /// All scopes.
            pub const ALL: &[Self] = &[$(Self::$scope),*];

            /// The name of the scope in claims and requests.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$scope => $name,)*
                }
            }
        }
    };
}

scopes! {
    /// Read the granted streams.
    Subscribe = "sync.subscribe",
    /// Append to the lane. Only the bridge gets it, never a client.
    Append = "sync.append",
    /// Acknowledge checkpoints.
    CheckpointWrite = "sync.checkpoint.write",
    /// Say in presence that a node serves a stream. Only whom the authority's policy names gets it.
    Serve = "sync.presence.serve",
    /// Ask for work: open assignments, and change one's own.
    AssignmentOpen = "sync.assignment.open",
    /// Provide: publish capabilities, see the assignments that are open to all, take them and work on them. Only whom the
    /// authority's policy names gets it.
    Provider = "sync.provider",
    /// See the outbox, put events into it, and say what was sent: the mirror's. Only whom the authority's policy names gets it.
    Mirror = "sync.mirror",
    /// Read the events of codex workers.
    CodexWorkerEvents = "runtime.codex_worker_events",
    /// Read the summaries of codex workers.
    CodexWorkerSummaries = "runtime.codex_worker_summaries",
    /// Read the summaries of runs.
    RunSummaries = "runtime.run_summaries",
    /// Read the events of runs.
    RunEvents = "runtime.run_events",
    /// Read the lifecycle events of workers and fleets.
    WorkerLifecycleEvents = "runtime.worker_lifecycle_events",
}

/// A name that is not a scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a scope")]
pub struct UnknownScope(pub String);

impl Scope {
    /// Whether only those get it whom the authority's policy names (`sync_scope_policy`).
    pub fn needs_policy(self) -> bool {
        matches!(self, Self::Serve | Self::Provider | Self::Mirror)
    }

    /// The scope that reading this stream needs besides [`Scope::Subscribe`]. `None` if the stream is not one of the
    /// runtime's well-known kinds.
    pub fn of_stream(stream_id: &StreamId) -> Option<Self> {
        let parts: Vec<&str> = stream_id.as_str().split('.').collect();
        match parts.as_slice() {
            ["runtime", "codex", "worker", "events"] => Some(Self::CodexWorkerEvents),
            ["runtime", "run", .., "events"] => Some(Self::RunEvents),
            ["runtime", "worker", .., "lifecycle"] | ["runtime", "fleet", .., "workers"] => {
                Some(Self::WorkerLifecycleEvents)
            }
            ["runtime", "run_summaries", ..] => Some(Self::RunSummaries),
            ["runtime", "codex_worker_summaries", ..] => Some(Self::CodexWorkerSummaries),
            _ => None,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Scope {
    type Err = UnknownScope;
    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        let found = Self::ALL.iter().copied().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| UnknownScope(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_crosses_the_wire_by_its_name() {
        for scope in Scope::ALL {
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.as_str());
            assert_eq!(scope.as_str().parse(), Ok(*scope));
        }
        assert!("sync.Subscribe".parse::<Scope>().is_err());
    }

    #[test]
    fn streams_of_the_runtime_need_the_scope_of_their_kind() {
        for (stream, scope) in [
            ("runtime.run.42.events", Some(Scope::RunEvents)),
            ("runtime.run.a.b.events", Some(Scope::RunEvents)),
            ("runtime.worker.7.lifecycle", Some(Scope::WorkerLifecycleEvents)),
            ("runtime.fleet.user.7.workers", Some(Scope::WorkerLifecycleEvents)),
            ("runtime.codex.worker.events", Some(Scope::CodexWorkerEvents)),
            ("runtime.run_summaries", Some(Scope::RunSummaries)),
            ("runtime.codex_worker_summaries", Some(Scope::CodexWorkerSummaries)),
            ("runtime.run.42.other", None),
            ("notes", None),
        ] {
            assert_eq!(Scope::of_stream(&StreamId::new(stream).unwrap()), scope, "{stream}");
        }
    }
}
