//! The errors of the client's surface, each with what to do about it.

use std::error::Error;

use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{InvalidId, Seq, StreamId, limit};

/// What to do about an error. The lane has one word for it, whoever says no.
pub type ErrorClass = RefusalClass;

/// Why a client was not started. Nothing was changed, nowhere.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot work.
    #[error("the client's configuration is wrong")]
    Config(#[from] ConfigError),
    /// The checkpoints cannot be used.
    #[error("the client's store cannot be used")]
    Store(#[from] StoreError),
    /// There is no runtime to run in.
    #[error("a client needs to be started inside a tokio runtime")]
    Runtime,
    /// The thread that applies could not be made.
    #[error("the thread that applies events cannot be started")]
    Thread(#[source] std::io::Error),
}

impl StartError {
    /// What to do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Config(error) => error.class(),
            Self::Store(error) => error.class(),
            Self::Runtime => ErrorClass::Fatal,
            Self::Thread(_) => ErrorClass::Retry,
        }
    }
}

/// Why a configuration cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not where SpacetimeDB can listen.
    #[error("uri: expected http://host:port or https://host, found {found:?}: {detail}")]
    Uri {
        /// What was given.
        found: String,
        /// What is wrong with it.
        detail: String,
    },
    /// No name of a database.
    #[error("database: expected letters, digits and - _ . , found {found:?}")]
    Database {
        /// What was given.
        found: String,
    },
    /// Something in the token that no token has. The token is not shown.
    #[error("token: expected visible ASCII characters and no blanks; is there a line break at its end?")]
    Token,
    /// What the client says of itself cannot be said.
    #[error("{name}: expected visible ASCII characters and no blanks")]
    Version {
        /// Which field.
        name: &'static str,
    },
    /// Not where a bridge can listen. The address is not shown: it may hold a password.
    #[error("bridge: expected http://host:port or https://host: {detail}")]
    Bridge {
        /// What is wrong with it.
        detail: String,
    },
    /// The authority's log is read by token only.
    #[error("history: a bridge is named, and no credential to read there with")]
    HistoryWithoutCredential,
    /// Nothing to follow.
    #[error("streams: at least one is needed")]
    NoStreams,
    /// The same stream more than once.
    #[error("streams: {stream} is named twice")]
    StreamTwice {
        /// The stream.
        stream: StreamId,
    },
    /// A bound that would stop the client from working.
    #[error("limits: {name} must be {needed}")]
    Limit {
        /// Which bound.
        name: &'static str,
        /// What it must be.
        needed: &'static str,
    },
}

impl ConfigError {
    /// What to do about it: a person changes the configuration.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Fatal
    }
}

/// Why something is not said of a session. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PresenceError {
    /// No name of a node.
    #[error("node_id is no name")]
    NodeId(#[source] InvalidId),
    /// No name of a region.
    #[error("region is no name")]
    Region(#[source] InvalidId),
    /// Too many streams.
    #[error("serves: expected at most {} streams, found {found}", limit::PRESENCE_SERVES)]
    Serves {
        /// How many.
        found: usize,
    },
}

impl PresenceError {
    /// What to do about it: say something else.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Reject
    }
}

/// How a handler says that it did not apply a batch. The transaction is rolled back either way.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// The same batch, or a shorter or longer one that begins at the same event, is handed over again after a pause,
    /// at most [`Limits::apply_attempts`](crate::Limits::apply_attempts) times in a row; then the stream stops.
    #[error("the handler asks for a retry: {0}")]
    Retry(#[source] Box<dyn Error + Send + Sync>),
    /// The stream stops at once. Other streams go on.
    #[error("the handler stops the stream: {0}")]
    Stop(#[source] Box<dyn Error + Send + Sync>),
}

impl HandlerError {
    /// With a text in place of an error.
    pub fn retry(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Retry(error.into())
    }

    /// With a text in place of an error.
    pub fn stop(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Stop(error.into())
    }

    /// What to do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Retry(_) => ErrorClass::Retry,
            Self::Stop(_) => ErrorClass::Reject,
        }
    }
}

/// A statement that failed may succeed later: the database may have been locked or full.
impl From<rusqlite::Error> for HandlerError {
    fn from(error: rusqlite::Error) -> Self {
        Self::retry(error)
    }
}

/// Why a batch was not saved.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The handler said no.
    #[error("{0}")]
    Handler(HandlerError),
    /// The store failed.
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// Why a store cannot be used. Nothing in it was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or created.
    #[error("{path}: cannot be opened as a SQLite database ({detail}); check the path and its permissions")]
    Open {
        /// Which file.
        path: String,
        /// SQLite's words.
        detail: String,
    },
    /// The file is damaged, or no SQLite database at all.
    #[error(
        "{path}: damaged, or no SQLite database ({detail}); restore it from a backup, or move it away and let the \
         client apply every stream from its beginning"
    )]
    Corrupt {
        /// Which file.
        path: String,
        /// SQLite's words.
        detail: String,
    },
    /// A table with one of our names was made by something else.
    #[error("{path}: the table {table} is not ours ({detail}); give the client another file")]
    Foreign {
        /// Which file.
        path: String,
        /// Which table.
        table: &'static str,
        /// What is different.
        detail: String,
    },
    /// Written by a newer release.
    #[error(
        "{path}: written in format {found}, this release knows {expected}; use the release that wrote it, or a newer one"
    )]
    NewerFormat {
        /// Which file.
        path: String,
        /// What this release writes.
        expected: u32,
        /// What the file says.
        found: u32,
    },
    /// The checkpoints belong to another lane.
    #[error(
        "{path}: its checkpoints are of database {found:?}, the client is set up for {expected:?}; correct one of the two"
    )]
    OtherDatabase {
        /// Which file.
        path: String,
        /// What the client is set up for.
        expected: String,
        /// What the file says.
        found: String,
    },
    /// A checkpoint that no release ever wrote.
    #[error("{path}: the checkpoint of {stream_id} is not one ({detail}); restore the file from a backup")]
    BadCheckpoint {
        /// Which file.
        path: String,
        /// Of which stream.
        stream_id: StreamId,
        /// What is wrong with it.
        detail: String,
    },
    /// Somebody else moved the checkpoint.
    #[error(
        "{path}: the checkpoint of {stream_id} should be at seq {expected} and is at {found}; is another client using this file?"
    )]
    Moved {
        /// Which file.
        path: String,
        /// Of which stream.
        stream_id: StreamId,
        /// What this client saved last.
        expected: Seq,
        /// What is there.
        found: Seq,
    },
    /// A checkpoint was to be moved back, which only a new beginning may do.
    #[error("{path}: the checkpoint of {stream_id} was to be moved from seq {from} to {to}; please report it")]
    Backwards {
        /// Which file.
        path: String,
        /// Of which stream.
        stream_id: StreamId,
        /// What is kept.
        from: Seq,
        /// Where to.
        to: Seq,
    },
    /// There is no room.
    #[error("{path}: {detail}; make room, and the client goes on by itself")]
    Full {
        /// Which file.
        path: String,
        /// SQLite's words.
        detail: String,
    },
    /// Somebody else is writing.
    #[error("{path}: busy ({detail})")]
    Busy {
        /// Which file.
        path: String,
        /// SQLite's words.
        detail: String,
    },
    /// Reading or writing failed.
    #[error("{path}: {detail}; is the disk failing?")]
    Failed {
        /// Which file.
        path: String,
        /// SQLite's words.
        detail: String,
    },
}

impl StoreError {
    /// What to do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Busy { .. } | Self::Full { .. } => ErrorClass::Retry,
            Self::Open { .. }
            | Self::Corrupt { .. }
            | Self::Foreign { .. }
            | Self::NewerFormat { .. }
            | Self::OtherDatabase { .. }
            | Self::BadCheckpoint { .. }
            | Self::Moved { .. }
            | Self::Backwards { .. }
            | Self::Failed { .. } => ErrorClass::Fatal,
        }
    }
}
