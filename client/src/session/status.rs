//! What a client says about itself. It says so of what it knows, not of what it hopes: live means that a
//! subscription delivers and that everything known of is applied.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use spacetime_sync_proto::access::{Incompatible, StreamPattern};
use spacetime_sync_proto::contract::Contract;
use spacetime_sync_proto::{Position, Refusal, RefusalCode, Seq, StreamId};

use crate::credential::TokenError;
use crate::error::ErrorClass;
use crate::error::StoreError;
use crate::session::stream::{Counters, Rung, StreamStop};

/// A client's state.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The client as a whole.
    pub phase: Phase,
    /// Each stream.
    pub streams: BTreeMap<StreamId, StreamStatus>,
    /// The token that the present connection was made with; none without a connection or a
    /// [`TokenProvider`](crate::TokenProvider).
    pub token: Option<TokenStatus>,
    /// What was seen since the start.
    pub counters: Counters,
}

/// What is known of a token, which is not shown itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenStatus {
    /// When the next one is asked for, for the first time or again.
    pub refresh_at: Instant,
    /// When it ends.
    pub expires_at: Instant,
    /// How often in a row asking for the next one has failed.
    pub failures: u32,
    /// What it lets be read.
    pub granted_streams: Vec<StreamPattern>,
    /// The session that it is of, if that is known.
    pub session_id: Option<String>,
}

impl TokenStatus {
    /// How long until the next one is asked for.
    pub fn refresh_due_in(&self) -> Duration {
        self.refresh_at.saturating_duration_since(Instant::now())
    }

    /// How long until it ends.
    pub fn expires_in(&self) -> Duration {
        self.expires_at.saturating_duration_since(Instant::now())
    }
}

/// What a client as a whole is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// Nothing: not started yet, or connected while no stream may be read.
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
        /// Events that are known to be there, over the same streams.
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
    /// The end.
    Stopped {
        /// Why.
        reason: StopReason,
    },
}

/// One stream's state.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamStatus {
    /// What is applied and saved.
    pub applied: Position,
    /// The head, as last heard of; none before the first time.
    pub head: Option<Seq>,
    /// What the stream is doing.
    pub phase: StreamPhase,
}

/// What a stream is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamPhase {
    /// Waiting for a connection.
    Waiting,
    /// Behind its head.
    CatchingUp,
    /// A subscription delivers, and everything known of was applied within the last
    /// [`Limits::live_grace`](crate::Limits::live_grace).
    Live,
    /// The module does not let it be read. It is asked for again every
    /// [`Limits::ask_again_after`](crate::Limits::ask_again_after), and as soon as a grant comes.
    Forbidden {
        /// What the module said.
        code: RefusalCode,
    },
    /// The module did not answer as it should; asked again like a forbidden one.
    Unanswered,
    /// The lane does not continue what was applied: its beginning is gone from there, it is behind, or it is another log.
    /// What goes on is found out with the authority.
    Recovering {
        /// How far that has got.
        rung: Rung,
        /// How often it was tried.
        attempt: u32,
    },
    /// Applying failed and is tried again.
    Retrying {
        /// What went wrong.
        message: String,
    },
    /// No further.
    Stopped {
        /// Why.
        reason: StreamStop,
    },
}

/// Why a connection ended, or was none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disconnect {
    /// The host could not be reached, or did not answer as SpacetimeDB does.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// There is no such database on the host.
    #[error("the host has no database {0:?}: is the module published, and the name right?")]
    NoDatabase(String),
    /// The host took longer than [`Limits::connect_timeout`](crate::Limits::connect_timeout).
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// The host ended the connection, or it broke.
    #[error("the connection was closed")]
    Closed,
    /// Nothing was heard for [`Limits::silence_timeout`](crate::Limits::silence_timeout) though an answer was due.
    #[error("nothing was heard for {0:?} though an answer was due")]
    Silence(Duration),
    /// The SDK failed.
    #[error("the connection failed: {0}")]
    Failed(String),
    /// There was no token to connect with.
    #[error(transparent)]
    NoToken(TokenError),
    /// The host did not accept the token. Another one is asked for, once.
    #[error("the host does not accept the token")]
    Unauthorized,
    /// The module did not let the connection in, for a reason that may pass.
    #[error("the module refuses the connection: {0}")]
    Refused(Refusal),
    /// The token has ended and there was no other.
    #[error("the token has ended before another one could be had")]
    TokenEnded,
}

impl Disconnect {
    /// A word for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::NoDatabase(_) => "no_database",
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

    /// What the one who said no said, if that is the reason.
    pub fn refusal(&self) -> Option<RefusalCode> {
        match self {
            Self::Refused(refusal) | Self::NoToken(TokenError::Refused { refusal, .. }) => Some(refusal.code),
            Self::NoToken(TokenError::Incompatible(incompatible)) => Some(incompatible.code),
            Self::NoToken(TokenError::Unavailable { .. })
            | Self::Unreachable(_)
            | Self::NoDatabase(_)
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
    /// The host does not accept the token.
    #[error("the host does not accept the token: get a new one and start the client anew")]
    Unauthorized,
    /// The issuer of tokens or the module says no, and would again.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// This build of the application is not served.
    #[error("this build is not served: {0}")]
    Incompatible(Box<Incompatible>),
    /// The module speaks another contract than this release.
    #[error("the module speaks {found}, this client {expected}: update whichever is older")]
    ContractMismatch {
        /// What this release speaks.
        expected: Contract,
        /// What the module speaks.
        found: Contract,
    },
    /// The database is not this lane's module.
    #[error("the database is no module of the lane ({detail}): is its name right?")]
    NoModule {
        /// What was missing.
        detail: String,
    },
    /// The store failed; what it holds is as the last successful save left it.
    #[error("the store failed")]
    Store(#[source] StoreError),
    /// Every stream has stopped for good.
    #[error("every stream has stopped")]
    EveryStreamStopped,
    /// The client's own thread or task ended by itself. What is saved is whole; please report it.
    #[error("the client failed by a defect of its own; what is saved is whole, start it anew")]
    Defect,
}

impl StopReason {
    /// A word for machines.
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

    /// What to do about it. A client that was asked to stop may simply be started again.
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

    /// What the one who said no said, if that is the reason.
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

    /// Whether a newer build of the application would be served: what to tell its user.
    pub fn upgrade_required(&self) -> bool {
        match self {
            Self::Incompatible(incompatible) => incompatible.upgrade_required,
            Self::Refused(refusal) => refusal.code == RefusalCode::UpgradeRequired,
            Self::Requested
            | Self::Unauthorized
            | Self::ContractMismatch { .. }
            | Self::NoModule { .. }
            | Self::Store(_)
            | Self::EveryStreamStopped
            | Self::Defect => false,
        }
    }
}

impl Phase {
    /// A word for machines.
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
    /// A word for machines.
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
