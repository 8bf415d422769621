//! What a client reports about itself. It reports what it knows, not what it hopes: live means that a subscription
//! delivers and every event it knows of is applied.

mod health;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use spacetime_sync_proto::access::{Incompatible, StreamPattern};
use spacetime_sync_proto::contract::{Contract, Mismatch, Party};
use spacetime_sync_proto::{DatabasePin, Position, Refusal, RefusalCode, Seq, StreamId};

use crate::credential::TokenError;
use crate::error::ErrorClass;
use crate::error::StoreError;
use crate::session::stream::{Counters, Rung, StreamStop};

/// A client's state. It is serialised as what a panel of the client's health shows: `phase` and the reasons by stable names and in words,
/// times as milliseconds or seconds from now on, and for each stream how far it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// The client as a whole.
    pub phase: Phase,
    /// Each stream.
    pub streams: BTreeMap<StreamId, StreamStatus>,
    /// How many attempts to connect there were since the start.
    pub connect_attempts: u64,
    /// Why the last connection ended, or the last attempt failed. It stays when the client connects again.
    pub last_disconnect: Option<Disconnect>,
    /// The schema version that the client and the module speak: the newest that both know. `None` without a connection.
    pub schema_version: Option<u32>,
    /// The token of the present connection. `None` without a connection or a [`TokenProvider`](crate::TokenProvider).
    pub token: Option<TokenStatus>,
    /// What has been counted since the start.
    pub counters: Counters,
}

/// What is known of a token, without the token itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenStatus {
    /// When the client will ask for the next one.
    pub refresh_at: Instant,
    /// When it ends.
    pub expires_at: Instant,
    /// How many times in a row the client failed to replace it.
    pub failures: u32,
    /// The streams that it grants.
    pub granted_streams: Vec<StreamPattern>,
    /// The session that it belongs to, if known.
    pub session_id: Option<String>,
}

impl TokenStatus {
    /// How long until the client asks for the next one.
    pub fn refresh_due_in(&self) -> Duration {
        self.refresh_at.saturating_duration_since(Instant::now())
    }

    /// How long until it ends.
    pub fn expires_in(&self) -> Duration {
        self.expires_at.saturating_duration_since(Instant::now())
    }
}

/// What the client as a whole is doing.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Phase {
    /// Not started yet, or connected but not allowed to read any stream, or following none.
    #[default]
    Idle,
    /// Connecting and comparing contracts.
    Connecting {
        /// 1 for the first attempt since the last connection that served.
        attempt: u32,
    },
    /// At least one stream is not at its head.
    CatchingUp {
        /// Events applied, over all streams that can go on.
        applied: u64,
        /// Events known to exist, over the same streams.
        target: u64,
    },
    /// Every stream that can go on is live.
    Live,
    /// Waiting before the next attempt to connect.
    Backoff {
        /// How many attempts have failed in a row.
        attempt: u32,
        /// How long the wait is.
        retry_in: Duration,
        /// Why the last connection ended.
        reason: Disconnect,
    },
    /// The client has ended.
    Stopped {
        /// Why.
        reason: StopReason,
    },
}

/// One stream's state.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamStatus {
    /// Up to where events are applied and saved.
    pub applied: Position,
    /// The head as last heard; `None` before the first time.
    pub head: Option<Seq>,
    /// What the stream is doing.
    pub phase: StreamPhase,
}

/// What a stream is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamPhase {
    /// Waiting for a connection. A stream that the client has begun to follow may wait for a token that covers it.
    Waiting,
    /// Behind its head.
    CatchingUp,
    /// A subscription delivers, and every event that the client knows of was applied within
    /// [`Limits::live_grace`](crate::Limits::live_grace).
    Live,
    /// The module refuses to let this session read the stream. The client asks again every
    /// [`Limits::ask_again_after`](crate::Limits::ask_again_after), and as soon as a grant comes.
    Forbidden {
        /// What the module said.
        code: RefusalCode,
    },
    /// A read failed. The client asks again as for a forbidden stream.
    Unanswered,
    /// SpacetimeDB does not continue what was applied: its window begins later, its head is earlier, or it holds
    /// another log. The client asks the authority how to go on.
    Recovering {
        /// The current rung of the ladder.
        rung: Rung,
        /// How often it was tried.
        attempt: u32,
    },
    /// Applying failed, or SpacetimeDB holds a damaged row. The client tries again.
    Retrying {
        /// What went wrong.
        message: String,
    },
    /// The stream goes no further.
    Stopped {
        /// Why.
        reason: StreamStop,
    },
}

/// Why a connection ended, or why none was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disconnect {
    /// SpacetimeDB could not be reached, or what answered is not SpacetimeDB.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// SpacetimeDB has no such database.
    #[error("SpacetimeDB has no database {0:?}: publish the module, or correct the name")]
    NoDatabase(String),
    /// SpacetimeDB's database is not the one that the bridge or the configuration names.
    #[error("the database is not the one to connect to: expected {expected}, found {found}; its operator must look")]
    WrongDatabase {
        /// What the bridge or the configuration names.
        expected: Box<DatabasePin>,
        /// What SpacetimeDB has.
        found: Box<DatabasePin>,
    },
    /// No connection within [`Limits::connect_timeout`](crate::Limits::connect_timeout).
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// SpacetimeDB closed the connection, or it broke.
    #[error("the connection was closed")]
    Closed,
    /// Silence for [`Limits::silence_timeout`](crate::Limits::silence_timeout) while an answer was due.
    #[error("nothing was heard for {0:?} although an answer was due")]
    Silence(Duration),
    /// The SDK reported an error.
    #[error("the connection failed: {0}")]
    Failed(String),
    /// The provider gave no token to connect with.
    #[error(transparent)]
    NoToken(TokenError),
    /// SpacetimeDB did not accept the token. The client asks for another one.
    #[error("SpacetimeDB does not accept the token")]
    Unauthorized,
    /// The module refused the connection, for a reason that may pass.
    #[error("the module refuses the connection: {0}")]
    Refused(Refusal),
    /// The token ended before a new one arrived.
    #[error("the token has ended before a new one arrived")]
    TokenEnded,
}

impl Disconnect {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::NoDatabase(_) => "no_database",
            Self::WrongDatabase { .. } => "wrong_database",
            Self::ConnectTimeout(_) => "connect_timeout",
            Self::Closed => "closed",
            Self::Silence(_) => "silence",
            Self::Failed(_) => "failed",
            Self::NoToken(_) => "no_token",
            Self::Unauthorized => "unauthorized",
            Self::Refused(_) => "refused",
            Self::TokenEnded => "token_ended",
        }
    }

    /// The refusal's code, if a refusal is the reason.
    pub fn refusal(&self) -> Option<RefusalCode> {
        match self {
            Self::Refused(refusal) | Self::NoToken(TokenError::Refused { refusal, .. }) => Some(refusal.code),
            Self::NoToken(TokenError::Incompatible(incompatible)) => Some(incompatible.code),
            Self::NoToken(TokenError::Unavailable { .. })
            | Self::Unreachable(_)
            | Self::NoDatabase(_)
            | Self::WrongDatabase { .. }
            | Self::ConnectTimeout(_)
            | Self::Closed
            | Self::Silence(_)
            | Self::Failed(_)
            | Self::Unauthorized
            | Self::TokenEnded => None,
        }
    }
}

/// Why a client stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// The application asked for it, or dropped the client.
    #[error("stopped by the application")]
    Requested,
    /// SpacetimeDB does not accept the token.
    #[error("SpacetimeDB does not accept the token: get a new one and start the client again")]
    Unauthorized,
    /// The issuer or the module refuses, and would again.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// This build of the application is not supported.
    #[error("this build is not supported: {0}")]
    Incompatible(Box<Incompatible>),
    /// The module is of a release that does not work with this one.
    #[error("the module speaks {found}, this client {ours}: {}", mismatch.remedy("this client", "the module"))]
    ContractMismatch {
        /// What this release speaks.
        ours: Box<Contract>,
        /// What the module speaks.
        found: Box<Contract>,
        /// Which of the two is too old.
        mismatch: Mismatch,
    },
    /// The database does not run this project's module.
    #[error("the database does not run this project's module ({detail}): check the database's name")]
    NoModule {
        /// What was missing.
        detail: String,
    },
    /// The store failed; it holds what the last successful save left.
    #[error("the store failed")]
    Store(#[source] StoreError),
    /// Every stream has stopped for good.
    #[error("every stream has stopped for good: see the reason of each stream")]
    EveryStreamStopped,
    /// The client's own thread or task ended by itself. What is saved is intact; please report it.
    #[error("the client has a defect and ended: what is saved is intact; start it again and report the defect")]
    Defect,
}

impl StopReason {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Unauthorized => "unauthorized",
            Self::Refused(_) => "refused",
            Self::Incompatible(_) => "incompatible",
            Self::ContractMismatch { .. } => "contract_mismatch",
            Self::NoModule { .. } => "no_module",
            Self::Store(_) => "store",
            Self::EveryStreamStopped => "every_stream_stopped",
            Self::Defect => "defect",
        }
    }

    /// How the application should react. A client that was asked to stop can simply be started again.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Requested => ErrorClass::Retry,
            Self::Unauthorized
            | Self::Refused(_)
            | Self::Incompatible(_)
            | Self::ContractMismatch { .. }
            | Self::NoModule { .. }
            | Self::Store(_)
            | Self::EveryStreamStopped
            | Self::Defect => ErrorClass::Fatal,
        }
    }

    /// The refusal's code, if a refusal is the reason.
    pub fn refusal(&self) -> Option<RefusalCode> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            Self::Incompatible(incompatible) => Some(incompatible.code),
            Self::Requested
            | Self::Unauthorized
            | Self::ContractMismatch { .. }
            | Self::NoModule { .. }
            | Self::Store(_)
            | Self::EveryStreamStopped
            | Self::Defect => None,
        }
    }

    /// Whether a newer build of the application would be accepted: the application can tell its user.
    pub fn upgrade_required(&self) -> bool {
        match self {
            Self::Incompatible(incompatible) => incompatible.upgrade_required,
            Self::Refused(refusal) => refusal.code == RefusalCode::UpgradeRequired,
            Self::ContractMismatch { mismatch, .. } => mismatch.older() == Some(Party::Ours),
            Self::Requested
            | Self::Unauthorized
            | Self::NoModule { .. }
            | Self::Store(_)
            | Self::EveryStreamStopped
            | Self::Defect => false,
        }
    }
}

impl Phase {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connecting { .. } => "connecting",
            Self::CatchingUp { .. } => "catching_up",
            Self::Live => "live",
            Self::Backoff { .. } => "backoff",
            Self::Stopped { .. } => "stopped",
        }
    }
}

impl StreamPhase {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::CatchingUp => "catching_up",
            Self::Live => "live",
            Self::Forbidden { .. } => "forbidden",
            Self::Unanswered => "unanswered",
            Self::Recovering { .. } => "recovering",
            Self::Retrying { .. } => "retrying",
            Self::Stopped { .. } => "stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use spacetime_sync_proto::access::{ClientVersion, Compatibility};

    use super::*;

    #[test]
    fn programs_can_rely_on_the_names_of_phases() {
        let attempt = 1;
        let phases = [
            Phase::Idle,
            Phase::Connecting { attempt },
            Phase::CatchingUp { applied: 1, target: 2 },
            Phase::Live,
            Phase::Backoff {
                attempt,
                retry_in: Duration::ZERO,
                reason: Disconnect::Closed,
            },
            Phase::Stopped {
                reason: StopReason::Requested,
            },
        ];
        assert_eq!(
            phases.each_ref().map(Phase::code),
            ["idle", "connecting", "catching_up", "live", "backoff", "stopped"]
        );
        let of_streams = [
            StreamPhase::Waiting,
            StreamPhase::CatchingUp,
            StreamPhase::Live,
            StreamPhase::Forbidden {
                code: RefusalCode::ForbiddenStream,
            },
            StreamPhase::Unanswered,
            StreamPhase::Recovering {
                rung: Rung::AwaitAuthority,
                attempt,
            },
            StreamPhase::Retrying { message: String::new() },
            StreamPhase::Stopped {
                reason: StreamStop::DurableReads,
            },
        ];
        assert_eq!(
            of_streams.each_ref().map(StreamPhase::code),
            [
                "waiting",
                "catching_up",
                "live",
                "forbidden",
                "unanswered",
                "recovering",
                "retrying",
                "stopped"
            ]
        );
    }

    #[test]
    fn a_newer_build_is_required_only_where_it_would_be_accepted() {
        let nobody = ClientVersion {
            client_build_id: String::new(),
            protocol_version: String::new(),
            schema_version: 0,
            oldest_schema_version: None,
            surface: String::new(),
        };
        let incompatible = |upgrade_required| {
            let incompatible = Compatibility::default().check(&nobody).unwrap_err();
            StopReason::Incompatible(Box::new(Incompatible {
                upgrade_required,
                ..*incompatible
            }))
        };
        let refused = |code| StopReason::Refused(Refusal::new(code, "no"));
        assert!(incompatible(true).upgrade_required());
        assert!(!incompatible(false).upgrade_required());
        assert!(refused(RefusalCode::UpgradeRequired).upgrade_required());
        assert!(!refused(RefusalCode::TokenRevoked).upgrade_required());
        assert!(!StopReason::Unauthorized.upgrade_required());
        let between = |mismatch| StopReason::ContractMismatch {
            ours: Box::new(Contract::ours()),
            found: Box::new(Contract::ours()),
            mismatch,
        };
        assert!(between(Mismatch::Schema(Party::Ours)).upgrade_required());
        assert!(!between(Mismatch::Schema(Party::Theirs)).upgrade_required());
        assert!(!between(Mismatch::Protocol(None)).upgrade_required());
    }

    #[test]
    fn the_times_of_a_token_are_counted_from_now_and_end_at_zero() {
        let hour = Duration::from_secs(3_600);
        let token = |refresh_at, expires_at| TokenStatus {
            refresh_at,
            expires_at,
            failures: 0,
            granted_streams: Vec::new(),
            session_id: None,
        };
        let now = Instant::now();
        let fresh = token(now + hour, now + 2 * hour);
        assert!((hour / 2..=hour).contains(&fresh.refresh_due_in()));
        assert!((hour..=2 * hour).contains(&fresh.expires_in()));
        let old = token(now, now);
        assert_eq!(
            (old.refresh_due_in(), old.expires_in()),
            (Duration::ZERO, Duration::ZERO)
        );
    }
}
