//! Where checkpoints are kept, together with what the application makes of the events.
//!
//! A store saves a checkpoint and the handler's effects in one transaction or not at all: that is what makes an event
//! that is delivered twice count once. It never invents a checkpoint: whatever it cannot read is an error, and a
//! stream without a checkpoint is one that nothing was applied of.

mod sqlite;

pub use sqlite::SqliteStore;

use spacetime_sync_proto::{Position, Seq, StreamId};

use crate::error::{ErrorClass, HandlerError};

/// What writes an application's effects inside a store's transaction.
pub type Effects<'a, S> =
    dyn for<'t> FnMut(&mut <S as CheckpointStore>::Transaction<'t>) -> Result<(), HandlerError> + 'a;

/// Keeps checkpoints. Used by one client at a time, from one thread at a time; it may block.
pub trait CheckpointStore: Send + 'static {
    /// What a handler writes its effects with.
    type Transaction<'t>;

    /// Ties the store to a database of SpacetimeDB, the first time; afterwards refuses any other.
    fn bind(&mut self, database: &str) -> Result<(), StoreError>;

    /// A stream's checkpoint; none if nothing was ever applied.
    fn load(&mut self, stream_id: &StreamId) -> Result<Option<Position>, StoreError>;

    /// Runs `effects` and moves the checkpoint forward from `from` to `to`, both or neither. Refuses if `from` is not what
    /// is kept, or `to` not past it.
    fn commit(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        to: &Position,
        effects: &mut Effects<'_, Self>,
    ) -> Result<(), CommitError>
    where
        Self: Sized;

    /// Runs `effects` and puts the checkpoint to `at`, wherever that is, both or neither. Refuses if `from` is not what is
    /// kept. The one way in which a checkpoint ever moves otherwise than forward: for a stream that begins anew.
    fn begin_anew(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        at: &Position,
        effects: &mut Effects<'_, Self>,
    ) -> Result<(), CommitError>
    where
        Self: Sized;
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
