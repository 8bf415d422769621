//! The application's code that hears of events, and of streams that begin anew.

use std::fmt;

use spacetime_sync_proto::{Event, Position, StreamId};

use crate::error::HandlerError;
use crate::session::stream::Beginning;
use crate::store::{CheckpointStore, SqliteStore};

/// The application's code that applies events.
pub trait Handler<S: CheckpointStore>: Send + 'static {
    /// Applies consecutive events of one stream within `transaction`, which also saves the checkpoint: both or neither.
    /// Runs on a thread of its own, so it may block and be slow; nothing piles up meanwhile.
    fn apply(
        &mut self,
        transaction: &mut S::Transaction<'_>,
        stream_id: &StreamId,
        events: &[Event],
    ) -> Result<(), HandlerError>;

    /// Starts a stream over within `transaction`, which also moves the checkpoint. The handler clears what it made of
    /// the stream's events and puts the document in its place, if there is one. The events after `beginning.at` come
    /// next. Called only if the client is configured with [`Restart`](crate::StaleAnswer::Restart) or
    /// [`Rebootstrap`](crate::StaleAnswer::Rebootstrap).
    fn start_over(
        &mut self,
        transaction: &mut S::Transaction<'_>,
        stream_id: &StreamId,
        beginning: &Beginning,
    ) -> Result<(), HandlerError> {
        let _ = (transaction, stream_id, beginning);
        Err(HandlerError::stop(
            "this handler cannot start a stream over: implement `Handler::start_over`",
        ))
    }

    /// A stream of documents has begun anew: what the store shows are its documents as of `at`, all of them, in the place of what it
    /// showed before. That is saved already, so nothing that the handler does here changes it: a process that ends meanwhile is not told
    /// again, and a panic is logged. Other streams wait until it returns.
    fn documents_begun(&mut self, stream_id: &StreamId, at: &Position) {
        let _ = (stream_id, at);
    }
}

impl<S, F> Handler<S> for F
where
    S: CheckpointStore,
    F: FnMut(&mut S::Transaction<'_>, &StreamId, &[Event]) -> Result<(), HandlerError> + Send + 'static,
{
    fn apply(
        &mut self,
        transaction: &mut S::Transaction<'_>,
        stream_id: &StreamId,
        events: &[Event],
    ) -> Result<(), HandlerError> {
        self(transaction, stream_id, events)
    }
}

/// The handler of a client that follows documents alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEvents;

impl<S: CheckpointStore> Handler<S> for NoEvents {
    fn apply(&mut self, _: &mut S::Transaction<'_>, _: &StreamId, _: &[Event]) -> Result<(), HandlerError> {
        Err(HandlerError::stop(
            "this client follows documents alone: give it a handler for the events of other streams",
        ))
    }
}

type Apply<S> = dyn for<'t> FnMut(&mut <S as CheckpointStore>::Transaction<'t>, &StreamId, &[Event]) -> Result<(), HandlerError>
    + Send;
type StartOver<S> = dyn for<'t> FnMut(&mut <S as CheckpointStore>::Transaction<'t>, &StreamId, &Beginning) -> Result<(), HandlerError>
    + Send;
type DocumentsBegun = dyn FnMut(&StreamId, &Position) + Send;

/// A handler made of closures, for an application that is to be told of new beginnings, too. What it has no closure for, it does as
/// [`NoEvents`] does.
///
/// ```no_run
/// # use spacetime_sync_client::{ClientConfig, Closures, SqliteStore, StartError, SyncClient};
/// # fn example(config: ClientConfig, store: SqliteStore) -> Result<SyncClient, StartError> {
/// let handler = Closures::new()
///     .apply(|tx, _stream, events| {
///         for event in events {
///             tx.execute("INSERT INTO step VALUES (?1, ?2)", (event.seq.to_sql(), &event.payload[..]))?;
///         }
///         Ok(())
///     })
///     .start_over(|tx, _stream, _beginning| {
///         tx.execute("DELETE FROM step", ())?;
///         Ok(())
///     })
///     .documents_begun(|stream, at| println!("all documents of {stream} are new, as of {}", at.seq));
/// SyncClient::start(config, store, handler)
/// # }
/// ```
pub struct Closures<S: CheckpointStore = SqliteStore> {
    apply: Option<Box<Apply<S>>>,
    start_over: Option<Box<StartOver<S>>>,
    documents_begun: Option<Box<DocumentsBegun>>,
}

impl Closures<SqliteStore> {
    /// None yet, for the default store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<S: CheckpointStore> Default for Closures<S> {
    fn default() -> Self {
        Self {
            apply: None,
            start_over: None,
            documents_begun: None,
        }
    }
}

impl<S: CheckpointStore> Closures<S> {
    /// Stands for [`Handler::apply`].
    pub fn apply<F>(mut self, apply: F) -> Self
    where
        F: FnMut(&mut S::Transaction<'_>, &StreamId, &[Event]) -> Result<(), HandlerError> + Send + 'static,
    {
        self.apply = Some(Box::new(apply));
        self
    }

    /// Stands for [`Handler::start_over`].
    pub fn start_over<F>(mut self, start_over: F) -> Self
    where
        F: FnMut(&mut S::Transaction<'_>, &StreamId, &Beginning) -> Result<(), HandlerError> + Send + 'static,
    {
        self.start_over = Some(Box::new(start_over));
        self
    }

    /// Stands for [`Handler::documents_begun`].
    pub fn documents_begun(mut self, begun: impl FnMut(&StreamId, &Position) + Send + 'static) -> Self {
        self.documents_begun = Some(Box::new(begun));
        self
    }
}

impl<S: CheckpointStore> fmt::Debug for Closures<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closures")
            .field("apply", &self.apply.is_some())
            .field("start_over", &self.start_over.is_some())
            .field("documents_begun", &self.documents_begun.is_some())
            .finish()
    }
}

impl<S: CheckpointStore> Handler<S> for Closures<S> {
    fn apply(
        &mut self,
        transaction: &mut S::Transaction<'_>,
        stream_id: &StreamId,
        events: &[Event],
    ) -> Result<(), HandlerError> {
        match &mut self.apply {
            Some(apply) => apply(transaction, stream_id, events),
            None => Handler::<S>::apply(&mut NoEvents, transaction, stream_id, events),
        }
    }

    fn start_over(
        &mut self,
        transaction: &mut S::Transaction<'_>,
        stream_id: &StreamId,
        beginning: &Beginning,
    ) -> Result<(), HandlerError> {
        match &mut self.start_over {
            Some(start_over) => start_over(transaction, stream_id, beginning),
            None => Handler::<S>::start_over(&mut NoEvents, transaction, stream_id, beginning),
        }
    }

    fn documents_begun(&mut self, stream_id: &StreamId, at: &Position) {
        if let Some(begun) = &mut self.documents_begun {
            begun(stream_id, at);
        }
    }
}
