//! Where checkpoints are kept, together with what the application makes of the events.
//!
//! A store saves a checkpoint and the handler's effects in one transaction or not at all: that is what makes an event
//! that is delivered twice count once. It never invents a checkpoint: whatever it cannot read is an error, and a
//! stream without a checkpoint is one that nothing was applied of.

pub(crate) mod applier;
mod sqlite;

pub use applier::Handler;
pub use sqlite::SqliteStore;

use spacetime_sync_proto::{Position, StreamId};

use crate::error::HandlerError;
pub use crate::error::{CommitError, StoreError};

/// What writes an application's effects inside a store's transaction.
pub type Effects<'a, S> =
    dyn for<'t> FnMut(&mut <S as CheckpointStore>::Transaction<'t>) -> Result<(), HandlerError> + 'a;

/// Keeps checkpoints. Used by one client at a time, from one thread at a time; it may block.
pub trait CheckpointStore: Send + 'static {
    /// What a handler writes its effects with.
    type Transaction<'t>;

    /// Ties the store to a database of SpacetimeDB, the first time; afterwards refuses any other.
    fn bind(&mut self, database: &str) -> Result<(), StoreError>;

    /// A stream's checkpoint. `None` if nothing was ever applied.
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
    /// kept. The one way in which a checkpoint ever moves otherwise than forward: for a stream that starts over.
    fn start_over(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        at: &Position,
        effects: &mut Effects<'_, Self>,
    ) -> Result<(), CommitError>
    where
        Self: Sized;
}
