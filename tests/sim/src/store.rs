//! A model of a client's store: effects and checkpoint in one transaction, and the faults that can hit it.

use spacetime_sync_proto::Position;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spacetime_sync_client::{CheckpointStore, CommitError, Effects, Event, HandlerError, StoreError, StreamId};

use crate::setup::Defect;

/// The fault that hits the next transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreFault {
    Busy,
    RolledBack,
    Fails,
    Handler,
}

/// What is saved of one stream.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) id: StreamId,
    pub(crate) checkpoint: Position,
    pub(crate) effects: Vec<Event>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) saved: Vec<Saved>,
    pub(crate) next: Option<StoreFault>,
    /// How often a fault struck.
    pub(crate) struck: u32,
    defect: Option<Defect>,
    /// The last transactions: the stream, and the state before.
    undo: Vec<(usize, Position, usize)>,
}

/// Shared between the client that uses it and the world that inspects it.
#[derive(Debug, Clone)]
pub(crate) struct SimStore(Arc<Mutex<State>>);

/// What is written but not yet committed.
pub(crate) struct Transaction {
    rows: Vec<Event>,
    fail: bool,
}

/// How many transactions a power cut may lose.
const VOLATILE: usize = 3;

impl SimStore {
    pub(crate) fn new(streams: impl Iterator<Item = (StreamId, Position)>, defect: Option<Defect>) -> Self {
        let saved = streams.map(|(id, checkpoint)| Saved {
            id,
            checkpoint,
            effects: Vec::new(),
        });
        Self(Arc::new(Mutex::new(State {
            saved: saved.collect(),
            next: None,
            struck: 0,
            defect,
            undo: Vec::new(),
        })))
    }

    pub(crate) fn look(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts the power: the last transactions are lost, newest first. Returns how many.
    pub(crate) fn lose(&self, most: usize) -> usize {
        let mut state = self.look();
        let mut lost = 0;
        while lost < most
            && let Some((at, checkpoint, effects)) = state.undo.pop()
        {
            state.saved[at].checkpoint = checkpoint;
            state.saved[at].effects.truncate(effects);
            lost += 1;
        }
        lost
    }
}

/// The application's handler: it records the events.
pub(crate) fn handler(transaction: &mut Transaction, _: &StreamId, events: &[Event]) -> Result<(), HandlerError> {
    if transaction.fail {
        transaction.rows.extend(events.first().cloned());
        return Err(HandlerError::retry("injected"));
    }
    transaction.rows.extend_from_slice(events);
    Ok(())
}

impl CheckpointStore for SimStore {
    type Transaction<'t> = Transaction;

    fn bind(&mut self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn load(&mut self, stream_id: &StreamId) -> Result<Option<Position>, StoreError> {
        let state = self.look();
        let saved = state.saved.iter().find(|saved| saved.id == *stream_id);
        Ok(saved.map(|saved| saved.checkpoint))
    }

    fn commit(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        to: &Position,
        effects: &mut Effects<'_, Self>,
    ) -> Result<(), CommitError> {
        let (path, detail) = ("model".to_owned(), "injected".to_owned());
        let fault = {
            let mut state = self.look();
            let fault = state.next.take();
            state.struck += u32::from(fault.is_some());
            fault
        };
        if fault == Some(StoreFault::Busy) {
            return Err(StoreError::Busy { path, detail }.into());
        }
        let mut transaction = Transaction {
            rows: Vec::new(),
            fail: fault == Some(StoreFault::Handler),
        };
        effects(&mut transaction).map_err(CommitError::Handler)?;
        let mut state = self.look();
        let defect = state.defect;
        let at = state.saved.iter().position(|saved| saved.id == *stream_id);
        let at = at.expect("a stream of this store");
        let saved = &mut state.saved[at];
        match fault {
            Some(StoreFault::RolledBack) => {
                if defect == Some(Defect::EffectsOutliveRollback) {
                    saved.effects.append(&mut transaction.rows);
                }
                return Err(StoreError::Busy { path, detail }.into());
            }
            Some(StoreFault::Fails) => return Err(StoreError::Failed { path, detail }.into()),
            Some(StoreFault::Busy | StoreFault::Handler) | None => {}
        }
        if saved.checkpoint != *from {
            return Err(CommitError::Store(StoreError::Moved {
                path,
                stream_id: stream_id.clone(),
                expected: from.seq,
                found: saved.checkpoint.seq,
            }));
        }
        let before = (at, saved.checkpoint, saved.effects.len());
        saved.checkpoint = *to;
        saved.effects.append(&mut transaction.rows);
        state.undo.push(before);
        if state.undo.len() > VOLATILE {
            state.undo.remove(0);
        }
        Ok(())
    }

    /// Like any other commit: the model lets a checkpoint move in both directions.
    fn start_over(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        at: &Position,
        effects: &mut Effects<'_, Self>,
    ) -> Result<(), CommitError> {
        self.commit(stream_id, from, at, effects)
    }
}
