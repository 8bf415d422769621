//! The errors of the client's public interface, each with a class that says how to react.

use std::error::Error;

use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{InvalidId, Label, Refusal, Seq, StreamId, limit};
use spacetime_sync_transport::PlaintextRefused;

/// How to react to an error. All parties use the same classes.
pub type ErrorClass = RefusalClass;

/// Why a client did not start. Nothing was changed anywhere.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot work.
    #[error("the client's configuration is invalid")]
    Config(#[from] ConfigError),
    /// The checkpoints cannot be used.
    #[error("the client's store cannot be used")]
    Store(#[from] StoreError),
    /// The caller is not inside a tokio runtime.
    #[error("start the client inside a tokio runtime")]
    Runtime,
    /// The apply thread could not be started.
    #[error("cannot start the thread that applies events")]
    Thread(#[source] std::io::Error),
}

impl StartError {
    /// How to react.
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
    /// Not an address that SpacetimeDB can have.
    #[error("uri: expected http://host:port or https://host, found {found:?}: {detail}")]
    Uri {
        /// What was given.
        found: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Not a valid database name.
    #[error("database: expected a name of letters, digits, '-', '_' and '.', found {found:?}")]
    Database {
        /// What was given.
        found: String,
    },
    /// The token contains a character that no token has. The token is not shown.
    #[error("token: expected visible ASCII characters without blanks; remove a line break at its end")]
    Token,
    /// Nobody would tell the client whose seals to accept, so it could apply nothing.
    #[error(
        "seal_keys: expected at least one key, because no token will bring one; `spacetime-sync keys seals` prints them"
    )]
    SealKeys,
    /// A value that the client sends about itself does not fit into a header.
    #[error("{name}: expected visible ASCII characters without blanks")]
    Version {
        /// Which field.
        name: &'static str,
    },
    /// Not an address that a bridge can have. The address is not shown: it may contain a password.
    #[error("bridge: expected http://host:port or https://host: {detail}")]
    Bridge {
        /// What is wrong with it.
        detail: String,
    },
    /// A token would go unencrypted to another machine.
    #[error(transparent)]
    Plaintext(#[from] PlaintextRefused),
    /// Reading the authority's log needs a token.
    #[error("history: reading at a bridge needs a credential; set one, or set `History::Off`")]
    HistoryWithoutCredential,
    /// Documents come from the authority.
    #[error("documents: they are read at a bridge; set `history`, or a credential that knows the bridge")]
    DocumentsWithoutHistory,
    /// No stream to follow.
    #[error("streams: expected at least one")]
    NoStreams,
    /// No stream carries the topic.
    #[error("topics: {topic:?} leads to no stream")]
    Topic {
        /// The topic.
        topic: String,
        /// Why.
        #[source]
        invalid: InvalidId,
    },
    /// The same stream more than once.
    #[error("streams: {stream} is listed twice")]
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
    /// How to react: a person must change the configuration.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Fatal
    }
}

/// Why a presence was not accepted. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PresenceError {
    /// Not a valid node id.
    #[error("node_id is not a valid name")]
    NodeId(#[source] InvalidId),
    /// Not a valid region.
    #[error("region is not a valid name")]
    Region(#[source] InvalidId),
    /// Not a valid surface.
    #[error("surface is not a valid name")]
    Surface(#[source] InvalidId),
    /// The client asks for no scope to serve streams.
    #[error("serves: set `ClientConfig::serves`, so that the client asks for the scope that this needs")]
    MayNotServe,
    /// Too many streams.
    #[error("serves: expected at most {} streams, found {found}", limit::PRESENCE_SERVES)]
    Serves {
        /// How many.
        found: usize,
    },
}

impl PresenceError {
    /// How to react: announce something else.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Reject
    }
}

/// Why a call of the application was not done, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The module would refuse it. Nothing was sent.
    #[error("the call is invalid: {0}")]
    Invalid(String),
    /// There is no connection, or none came in time. Nothing was sent.
    #[error("there is no connection to SpacetimeDB: try again when there is one")]
    NotConnected,
    /// Too many calls have no answer yet. Nothing was sent.
    #[error("too many calls have no answer yet: wait for some of them")]
    TooMany,
    /// No answer came: the connection was lost, the time was up, or the client was stopped. It may have been done or not.
    #[error("no answer came: it may have been done or not")]
    Lost,
    /// The module refused it.
    #[error("the module refused it")]
    Refused(#[source] Refusal),
    /// SpacetimeDB gave no answer of the module, or a wrong one. It may have been done or not.
    #[error("SpacetimeDB gave no usable answer, and it may have been done or not: {0}")]
    Failed(String),
    /// The client has stopped. Nothing was sent.
    #[error("the client has stopped")]
    Stopped,
}

/// Why a client does not begin or cease to follow a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// No stream can carry the topic.
    #[error("no stream can carry the topic {topic:?}")]
    Topic {
        /// The topic.
        topic: String,
        /// What is wrong with it.
        #[source]
        invalid: InvalidId,
    },
    /// The client follows as many streams as it may.
    #[error("a client follows at most {most} streams, and this one does: unfollow one first")]
    TooMany {
        /// How many that are.
        most: usize,
    },
    /// Too many changes are under way.
    #[error("too many changes are under way: wait for some of them")]
    Busy,
    /// The store cannot say up to where the stream is applied.
    #[error("the store cannot say up to where the stream is applied")]
    Store(#[source] StoreError),
    /// It is followed already, but as something else.
    #[error(
        "the stream is followed already, as events or as documents, and not as what is asked for: unfollow it first"
    )]
    OtherKind,
    /// Documents come from the authority.
    #[error("documents are read at a bridge: set `history`, or a credential that knows the bridge")]
    NoHistory,
    /// The client has stopped.
    #[error("the client has stopped")]
    Stopped,
}

/// Why documents cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentsError {
    /// The store keeps no documents.
    #[error("the store keeps no documents that can be read: use a `SqliteStore` in a file")]
    NoDocuments,
    /// The store cannot be read.
    #[error("the store cannot be read")]
    Store(#[source] StoreError),
}

impl DocumentsError {
    /// How to react.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Store(error) => error.class(),
            Self::NoDocuments => ErrorClass::Fatal,
        }
    }
}

impl FollowError {
    /// How to react.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Busy => ErrorClass::Retry,
            Self::Store(error) => error.class(),
            Self::Topic { .. } | Self::TooMany { .. } | Self::NoHistory | Self::OtherKind => ErrorClass::Reject,
            Self::Stopped => ErrorClass::Fatal,
        }
    }
}

impl CallError {
    pub(crate) fn check_name(what: &str, text: &str) -> Result<(), Self> {
        Label::check(text).map_err(|error| Self::Invalid(format!("{what}: {error}")))
    }

    pub(crate) fn check_length(what: &str, text: &str, most: usize) -> Result<(), Self> {
        let found = text.len();
        if found <= most {
            return Ok(());
        }
        Err(Self::Invalid(format!(
            "{what}: {found} bytes, at most {most} are allowed"
        )))
    }

    /// How to react.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NotConnected | Self::TooMany | Self::Lost | Self::Failed(_) => ErrorClass::Retry,
            Self::Refused(refusal) => refusal.code.class(),
            Self::Invalid(_) => ErrorClass::Reject,
            Self::Stopped => ErrorClass::Fatal,
        }
    }
}

/// How a handler reports that it did not apply a batch. The transaction is rolled back either way.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// Try again after a pause: the handler gets the same batch, or a shorter or longer one that begins at the same
    /// event. After [`Limits::apply_attempts`](crate::Limits::apply_attempts) failures in a row the stream stops.
    #[error("the handler asks for a retry: {0}")]
    Retry(#[source] Box<dyn Error + Send + Sync>),
    /// Stop the stream at once. Other streams go on.
    #[error("the handler stops the stream: {0}")]
    Stop(#[source] Box<dyn Error + Send + Sync>),
}

impl HandlerError {
    /// A retry, with an error or a text.
    pub fn retry(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Retry(error.into())
    }

    /// A stop, with an error or a text.
    pub fn stop(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Stop(error.into())
    }

    /// How to react.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Retry(_) => ErrorClass::Retry,
            Self::Stop(_) => ErrorClass::Reject,
        }
    }
}

/// A failed statement may succeed later: the database may have been locked or full.
impl From<rusqlite::Error> for HandlerError {
    fn from(error: rusqlite::Error) -> Self {
        Self::retry(error)
    }
}

/// Why a batch was not saved.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The handler failed.
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
        /// What SQLite said.
        detail: String,
    },
    /// The file is damaged, or not a SQLite database at all.
    #[error(
        "{path}: damaged, or not a SQLite database ({detail}); restore it from a backup, or move it away and let the \
         client apply every stream from its beginning"
    )]
    Corrupt {
        /// Which file.
        path: String,
        /// What SQLite said.
        detail: String,
    },
    /// Another program made a table with one of our names.
    #[error("{path}: the table {table} was not made by this client ({detail}); give the client another file")]
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
        "{path}: written in format {found}, but this release knows only {expected}; \
         use the release that wrote it, or a newer one"
    )]
    NewerFormat {
        /// Which file.
        path: String,
        /// What this release writes.
        expected: u32,
        /// What the file says.
        found: u32,
    },
    /// The checkpoints belong to another database.
    #[error(
        "{path}: its checkpoints belong to database {found:?}, but the client is configured for {expected:?}; \
         change one of the two"
    )]
    OtherDatabase {
        /// Which file.
        path: String,
        /// The database that the client is configured for.
        expected: String,
        /// What the file says.
        found: String,
    },
    /// A checkpoint that no release ever wrote.
    #[error("{path}: the checkpoint of {stream_id} is invalid ({detail}); restore the file from a backup")]
    BadCheckpoint {
        /// Which file.
        path: String,
        /// The stream.
        stream_id: StreamId,
        /// What is wrong with it.
        detail: String,
    },
    /// Somebody else moved the checkpoint.
    #[error(
        "{path}: the checkpoint of {stream_id} is at seq {found}, expected {expected}; \
         check whether another client uses this file"
    )]
    Moved {
        /// Which file.
        path: String,
        /// The stream.
        stream_id: StreamId,
        /// What this client saved last.
        expected: Seq,
        /// What is there.
        found: Seq,
    },
    /// Somebody asked to move a checkpoint back, which only starting over may do.
    #[error("{path}: the checkpoint of {stream_id} was about to move back from seq {from} to {to}; please report this")]
    Backwards {
        /// Which file.
        path: String,
        /// Of which stream.
        stream_id: StreamId,
        /// The saved checkpoint.
        from: Seq,
        /// The requested one.
        to: Seq,
    },
    /// The disk or the database is full.
    #[error("{path}: {detail}; free some space, and the client goes on by itself")]
    Full {
        /// Which file.
        path: String,
        /// What SQLite said.
        detail: String,
    },
    /// Another connection is writing.
    #[error("{path}: busy, another connection is writing ({detail})")]
    Busy {
        /// Which file.
        path: String,
        /// What SQLite said.
        detail: String,
    },
    /// The store keeps no documents.
    #[error("the store keeps no documents: follow them with a store that does, as `SqliteStore` does")]
    NoDocuments,
    /// Reading or writing failed.
    #[error("{path}: {detail}; check the disk")]
    Failed {
        /// Which file.
        path: String,
        /// What SQLite said.
        detail: String,
    },
}

impl StoreError {
    /// How to react.
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
            | Self::NoDocuments
            | Self::Failed { .. } => ErrorClass::Fatal,
        }
    }
}
