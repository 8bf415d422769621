//! The applying thread without its thread: whoever holds it gives it its turns. For the simulation.

use std::collections::VecDeque;

use spacetime_sync_proto::{Position, StreamId};
use tokio::sync::mpsc::UnboundedReceiver;

use super::{BatchBounds, Handler, Job, StreamQueue, Worker};
use crate::session::{Outcome, Work};
use crate::store::CheckpointStore;

/// See the module.
pub struct Stepped<S, H> {
    worker: Worker<S, H>,
    turn: VecDeque<usize>,
    outcomes: UnboundedReceiver<Outcome>,
}

impl<S: CheckpointStore, H: Handler<S>> Stepped<S, H> {
    /// An applier of these streams, at most so many events and bytes in a transaction.
    pub fn new(store: S, handler: H, streams: Vec<(StreamId, Position)>, events: usize, bytes: usize) -> Self {
        let (outgoing, outcomes) = tokio::sync::mpsc::unbounded_channel();
        let queue = |(id, applied)| StreamQueue {
            id,
            applied,
            queue: VecDeque::new(),
        };
        let worker = Worker {
            store,
            handler,
            streams: streams.into_iter().map(queue).collect(),
            bounds: BatchBounds { events, bytes },
            outgoing,
        };
        Self {
            worker,
            turn: VecDeque::new(),
            outcomes,
        }
    }

    /// Queues work for the stream with this index.
    pub fn hand_over(&mut self, stream: usize, work: Work) {
        self.worker.enqueue(Job { stream, work }, &mut self.turn);
    }

    /// Applies for the stream whose turn it is; whether there is more to do.
    pub fn work(&mut self) -> bool {
        if let Some(stream) = self.turn.pop_front() {
            // Somebody listens: the other end of the channel is in `self`.
            let _ = self.worker.apply_some(stream);
            if !self.worker.streams[stream].queue.is_empty() {
                self.turn.push_back(stream);
            }
        }
        !self.turn.is_empty()
    }

    /// What became of work.
    pub fn outcome(&mut self) -> Option<Outcome> {
        self.outcomes.try_recv().ok()
    }
}
