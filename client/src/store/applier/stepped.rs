//! The apply thread's work without the thread: the simulation calls it step by step.

use std::collections::VecDeque;

use spacetime_sync_proto::{Position, SealKey, StreamId};
use tokio::sync::mpsc::UnboundedReceiver;

use super::{BatchBounds, Handler, Job, StreamQueue, Worker};
use crate::changes::Changes;
use crate::config::Carries;
use crate::seal::SealKeys;
use crate::session::{Outcome, Work};
use crate::store::CheckpointStore;

/// See the module documentation.
pub struct Stepped<S, H> {
    worker: Worker<S, H>,
    turn: VecDeque<usize>,
    outcomes: UnboundedReceiver<Outcome>,
}

impl<S: CheckpointStore, H: Handler<S>> Stepped<S, H> {
    /// An applier of these streams, with at most this many events and bytes per transaction.
    pub fn new(
        store: S,
        handler: H,
        streams: Vec<(StreamId, Position)>,
        (events, bytes): (usize, usize),
        seals: SealKeys,
    ) -> Self {
        let (outgoing, outcomes) = tokio::sync::mpsc::unbounded_channel();
        let queue = |(id, applied)| StreamQueue::new(id, applied, Carries::Events);
        let worker = Worker {
            store,
            handler,
            streams: streams.into_iter().map(queue).collect(),
            bounds: BatchBounds { events, bytes },
            seals,
            changes: Changes::new(),
            unswept: false,
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
        self.worker.enqueue(Job::Do(stream, work), &mut self.turn);
    }

    /// Finds out from the store where a stream is, and gives it this place.
    pub fn open(&mut self, stream: usize, id: StreamId, carries: Carries) {
        self.worker.enqueue(Job::Open(stream, id, carries), &mut self.turn);
    }

    /// From here on the seals of these keys count, and no others.
    pub fn trust(&mut self, keys: Vec<SealKey>) {
        self.worker.enqueue(Job::Trust(keys), &mut self.turn);
    }

    /// Works for the stream whose turn it is. Returns whether more work is queued.
    pub fn work(&mut self) -> bool {
        if let Some(stream) = self.turn.pop_front() {
            // Cannot fail: `self` holds the other end of the channel.
            let _ = self.worker.apply_some(stream);
            if !self.worker.streams[stream].queue.is_empty() {
                self.turn.push_back(stream);
            }
        }
        !self.turn.is_empty()
    }

    /// The next outcome, if there is one.
    pub fn outcome(&mut self) -> Option<Outcome> {
        self.outcomes.try_recv().ok()
    }
}
