//! Where checkpoints are kept, together with what the application makes of the events.
//!
//! A store saves a checkpoint and the handler's effects in one transaction or not at all: so an event that is delivered
//! twice takes effect once. It never invents a checkpoint: data that it cannot read is an error, and a stream without a
//! checkpoint is one of which nothing was applied.

pub(crate) mod applier;
mod documents;
mod handler;
mod sqlite;

pub use documents::{Committed, DocumentReader, DocumentStore, StoredDocument};
pub use handler::{Closures, Handler, NoEvents};
pub use sqlite::SqliteStore;

use spacetime_sync_proto::{Position, StreamId};

use crate::error::HandlerError;
pub use crate::error::{CommitError, StoreError};

/// Writes the application's effects inside a store's transaction.
pub type Effects<'a, S> =
    dyn for<'t> FnMut(&mut <S as CheckpointStore>::Transaction<'t>) -> Result<(), HandlerError> + 'a;

/// Keeps checkpoints. One client uses it at a time, from one thread at a time; it may block.
pub trait CheckpointStore: Send + 'static {
    /// What a handler writes its effects with.
    type Transaction<'t>;

    /// Ties the store to a SpacetimeDB database the first time, and refuses any other from then on.
    fn bind(&mut self, database: &str) -> Result<(), StoreError>;

    /// A stream's checkpoint. `None` if nothing was ever applied.
    fn load(&mut self, stream_id: &StreamId) -> Result<Option<Position>, StoreError>;

    /// Runs `effects` and moves the checkpoint forward from `from` to `to`: both or neither. Refuses if `from` is not
    /// the saved checkpoint or `to` does not lie after it.
    fn commit(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        to: &Position,
        effects: &mut Effects<'_, Self>,
    ) -> Result<(), CommitError>
    where
        Self: Sized;

    /// Runs `effects` and sets the checkpoint to `at`, wherever that is: both or neither. Refuses if `from` is not the
    /// saved checkpoint. Only this method may move a checkpoint other than forward: for a stream that starts over.
    fn start_over(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        at: &Position,
        effects: &mut Effects<'_, Self>,
    ) -> Result<(), CommitError>
    where
        Self: Sized;

    /// The same store, as one that keeps documents. `None` if it keeps none.
    fn documents(&mut self) -> Option<&mut dyn DocumentStore> {
        None
    }
}
