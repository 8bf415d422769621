//! The thread that applies: takes batches, hashes their payloads, runs the handler inside the store's transaction,
//! says how it went. It never skips: a batch that does not begin where its stream's saved log ends is thrown away.

mod stepped;

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use spacetime_sync_proto::{Event, PayloadHash, StreamId, mutant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::apply::{ApplyFailure, Batch};
use crate::checkpoint::Checkpoint;
use crate::error::{ErrorClass, HandlerError};
use crate::store::{CheckpointStore, CommitError, StoreError};

pub use stepped::Stepped;

/// Makes of events what the application wants of them.
pub trait Handler<S: CheckpointStore>: Send + 'static {
    /// Applies consecutive events of one stream within `transaction`, in which the checkpoint is saved too: both or
    /// neither. Called on a thread of its own, so it may block and be slow; nothing piles up meanwhile.
    fn apply(
        &mut self,
        transaction: &mut S::Transaction<'_>,
        stream_id: &StreamId,
        events: &[Event],
    ) -> Result<(), HandlerError>;
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

/// How long the thread sleeps before it looks whether it should end.
const STOP_POLL: Duration = Duration::from_millis(50);

/// A batch for the stream with this index.
pub(crate) struct Job {
    pub(crate) stream: usize,
    pub(crate) batch: Batch,
}

/// What became of batches of one stream.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) stream: usize,
    pub(crate) released: usize,
    pub(crate) result: Applied,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Applied {
    To(Checkpoint),
    Dropped,
    Failed(ApplyFailure),
    StoreFailed(StoreError),
}

/// The engine's end of the thread. The channels have no bound of their own: the engine hands over no more bytes than
/// its limit of unapplied ones, and each batch has at least a padded frame's.
pub(crate) struct Applier {
    jobs: Sender<Job>,
    outcomes: UnboundedReceiver<Outcome>,
    stopping: Arc<AtomicBool>,
}

impl Applier {
    pub(crate) fn start<S: CheckpointStore, H: Handler<S>>(
        store: S,
        handler: H,
        streams: Vec<(StreamId, Checkpoint)>,
        bounds: BatchBounds,
    ) -> std::io::Result<Self> {
        let (jobs, incoming) = std::sync::mpsc::channel();
        let (outgoing, outcomes) = tokio::sync::mpsc::unbounded_channel();
        let stopping = Arc::new(AtomicBool::new(false));
        let streams = streams
            .into_iter()
            .map(|(id, applied)| StreamQueue {
                id,
                applied,
                batches: VecDeque::new(),
            })
            .collect();
        let mut worker = Worker {
            store,
            handler,
            streams,
            bounds,
            outgoing,
        };
        let stop = Arc::clone(&stopping);
        std::thread::Builder::new()
            .name("spacetime-sync-apply".to_owned())
            .spawn(move || worker.run(&incoming, &stop))?;
        Ok(Self {
            jobs,
            outcomes,
            stopping,
        })
    }

    pub(crate) fn hand_over(&self, stream: usize, batch: Batch) {
        // A thread that is gone has closed the channel of outcomes too, and that is acted on.
        let _ = self.jobs.send(Job { stream, batch });
    }

    /// The next outcome; none when the thread has ended.
    pub(crate) async fn next(&mut self) -> Option<Outcome> {
        self.outcomes.recv().await
    }

    /// Lets the thread finish the batch it is at, and end.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }
}

/// How much is applied in one transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchBounds {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

struct StreamQueue {
    id: StreamId,
    applied: Checkpoint,
    batches: VecDeque<Batch>,
}

struct Worker<S, H> {
    store: S,
    handler: H,
    streams: Vec<StreamQueue>,
    bounds: BatchBounds,
    outgoing: UnboundedSender<Outcome>,
}

impl<S: CheckpointStore, H: Handler<S>> Worker<S, H> {
    fn run(&mut self, incoming: &Receiver<Job>, stop: &AtomicBool) {
        let mut turn = VecDeque::new();
        while !stop.load(Ordering::Acquire) {
            if turn.is_empty() {
                match incoming.recv_timeout(STOP_POLL) {
                    Ok(job) => self.enqueue(job, &mut turn),
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            while let Ok(job) = incoming.try_recv() {
                self.enqueue(job, &mut turn);
            }
            // Streams take turns, so that a busy one does not starve the others.
            let Some(stream) = turn.pop_front() else { continue };
            let sent = self.apply_some(stream);
            if !self.streams[stream].batches.is_empty() {
                turn.push_back(stream);
            }
            if sent.is_err() {
                return;
            }
        }
    }

    fn enqueue(&mut self, job: Job, turn: &mut VecDeque<usize>) {
        let batches = &mut self.streams[job.stream].batches;
        if batches.is_empty() {
            turn.push_back(job.stream);
        }
        batches.push_back(job.batch);
    }

    /// Applies what is queued for a stream, as much as goes into one transaction. Fails when nobody listens any more.
    fn apply_some(&mut self, stream: usize) -> Result<(), Gone> {
        let queue = &mut self.streams[stream];
        let Some(first) = queue.batches.pop_front() else {
            return Ok(());
        };
        let (mut to, mut released, mut events) = (first.to, first.bytes, first.events);
        if first.from != queue.applied && !mutant::on("client-applies-what-does-not-continue") {
            return self.tell(stream, released, Applied::Dropped);
        }
        while let Some(next) = queue.batches.front() {
            if next.from != to
                || events.len() + next.events.len() > self.bounds.events
                || released + next.bytes > self.bounds.bytes
            {
                break;
            }
            let Some(next) = queue.batches.pop_front() else { break };
            to = next.to;
            released += next.bytes;
            events.extend(next.events);
        }
        let Some((bad, failure)) = altered(&events) else {
            let result = self.apply(stream, to, &events);
            return self.tell(stream, released, result);
        };
        // What comes before the altered payload is good.
        if let Some(last) = events[..bad].last() {
            let to = Checkpoint {
                seq: last.seq,
                chain_hash: last.chain_hash,
            };
            match self.apply(stream, to, &events[..bad]) {
                Applied::To(to) => self.tell(stream, 0, Applied::To(to))?,
                other => return self.tell(stream, released, other),
            }
        }
        self.tell(stream, released, Applied::Failed(failure))
    }

    fn tell(&self, stream: usize, released: usize, result: Applied) -> Result<(), Gone> {
        self.outgoing
            .send(Outcome {
                stream,
                released,
                result,
            })
            .map_err(|_| Gone)
    }

    fn apply(&mut self, stream: usize, to: Checkpoint, events: &[Event]) -> Applied {
        let queue = &mut self.streams[stream];
        let (store, handler) = (&mut self.store, &mut self.handler);
        let mut panicked = None;
        let mut effects = |transaction: &mut S::Transaction<'_>| {
            catch_unwind(AssertUnwindSafe(|| handler.apply(transaction, &queue.id, events))).unwrap_or_else(|panic| {
                let message = panic_message(&*panic);
                panicked = Some(message.clone());
                Err(HandlerError::stop(message))
            })
        };
        let saved = store.commit(&queue.id, &queue.applied, &to, &mut effects);
        if let Some(message) = panicked {
            return Applied::Failed(ApplyFailure::Stop {
                message: format!("it panicked: {message}"),
            });
        }
        match saved {
            Ok(()) => {
                queue.applied = to;
                Applied::To(to)
            }
            Err(CommitError::Handler(HandlerError::Retry(error))) => Applied::Failed(ApplyFailure::Retry {
                message: chain(&*error),
            }),
            Err(CommitError::Handler(HandlerError::Stop(error))) => Applied::Failed(ApplyFailure::Stop {
                message: chain(&*error),
            }),
            Err(CommitError::Store(error)) => match error.class() {
                ErrorClass::Retry => Applied::Failed(ApplyFailure::Retry {
                    message: error.to_string(),
                }),
                ErrorClass::Reject | ErrorClass::Fatal => Applied::StoreFailed(error),
            },
        }
    }
}

/// Nobody listens any more.
struct Gone;

/// The first payload that is not what its hash says, and where it is.
fn altered(events: &[Event]) -> Option<(usize, ApplyFailure)> {
    events.iter().enumerate().find_map(|(at, event)| {
        let found = PayloadHash::of(&event.payload);
        let (seq, expected) = (event.seq, event.payload_hash);
        (found != expected && !mutant::on("client-takes-an-altered-payload"))
            .then_some((at, ApplyFailure::Payload { seq, expected, found }))
    })
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (None, Some(text)) => text.clone(),
        (None, None) => "no message".to_owned(),
    }
}

#[cfg(test)]
mod tests;
