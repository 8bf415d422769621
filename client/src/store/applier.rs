//! The apply thread: takes batches, checks their seal, hashes their payloads, runs the handler inside the store's transaction and reports
//! the outcome. It never skips: it throws away a batch that does not begin at its stream's checkpoint.

mod documents;
mod stepped;

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use spacetime_sync_proto::{Event, PayloadHash, Position, SealKey, StreamId};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::changes::Changes;
use crate::config::Carries;
use crate::error::{ErrorClass, HandlerError};
use crate::seal::SealKeys;
use crate::session::stream::{ApplyFailure, Batch, Beginning, FetchId, Proof};
use crate::session::{Applied, Opened, Outcome, Work};
use crate::store::{CheckpointStore, CommitError, Handler, StoreError};

pub use stepped::Stepped;

/// What the runner hands over.
enum Job {
    /// Work for the stream with this index.
    Do(usize, Work),
    /// From here on the seals of these keys count.
    Trust(Vec<SealKey>),
    /// Give the place with this index to another stream.
    Open(usize, StreamId, Carries),
    /// Nothing: an idle thread looks whether it is to end.
    Wake,
}

/// The runner's end of the thread. The channels are unbounded, but the session bounds the bytes in them with its limit
/// of unapplied bytes, and no batch is smaller than a padded frame.
pub(crate) struct Applier {
    jobs: Sender<Job>,
    outcomes: UnboundedReceiver<Outcome>,
    stopping: Arc<AtomicBool>,
}

impl Applier {
    pub(crate) fn start<S: CheckpointStore, H: Handler<S>>(
        store: S,
        handler: H,
        streams: Vec<(StreamId, Position, Carries)>,
        bounds: BatchBounds,
        seals: SealKeys,
        changes: Changes,
    ) -> std::io::Result<Self> {
        let (jobs, incoming) = std::sync::mpsc::channel();
        let (outgoing, outcomes) = tokio::sync::mpsc::unbounded_channel();
        let stopping = Arc::new(AtomicBool::new(false));
        let streams = streams
            .into_iter()
            .map(|(id, applied, carries)| StreamQueue::new(id, applied, carries))
            .collect();
        let mut worker = Worker {
            store,
            handler,
            streams,
            bounds,
            seals,
            changes,
            unswept: true,
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

    pub(crate) fn hand_over(&self, stream: usize, work: Work) {
        // If the thread is gone, the closed channel of outcomes tells the runner.
        let _ = self.jobs.send(Job::Do(stream, work));
    }

    /// Finds out where a stream is, and gives it a place that no other one uses.
    pub(crate) fn open(&self, stream: usize, id: StreamId, carries: Carries) {
        let _ = self.jobs.send(Job::Open(stream, id, carries));
    }

    /// From here on the seals of these keys count, and no others.
    pub(crate) fn trust(&self, keys: Vec<SealKey>) {
        let _ = self.jobs.send(Job::Trust(keys));
    }

    /// The next outcome; `None` when the thread has ended.
    pub(crate) async fn next(&mut self) -> Option<Outcome> {
        self.outcomes.recv().await
    }

    /// Lets the thread finish its current batch and end.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let _ = self.jobs.send(Job::Wake);
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
    applied: Position,
    carries: Carries,
    /// The fetch whose documents are kept aside.
    staging: Option<FetchId>,
    queue: VecDeque<Work>,
}

impl StreamQueue {
    fn new(id: StreamId, applied: Position, carries: Carries) -> Self {
        Self {
            id,
            applied,
            carries,
            staging: None,
            queue: VecDeque::new(),
        }
    }
}

struct Worker<S, H> {
    store: S,
    handler: H,
    streams: Vec<StreamQueue>,
    bounds: BatchBounds,
    seals: SealKeys,
    changes: Changes,
    /// Whether documents that are shown no more may have to be deleted.
    unswept: bool,
    outgoing: UnboundedSender<Outcome>,
}

impl<S: CheckpointStore, H: Handler<S>> Worker<S, H> {
    fn run(&mut self, incoming: &Receiver<Job>, stop: &AtomicBool) {
        let mut turn = VecDeque::new();
        while !stop.load(Ordering::Acquire) {
            if turn.is_empty() && self.unswept {
                // There is time for it. What comes meanwhile waits for one part of it.
                self.sweep();
            } else if turn.is_empty() {
                let Ok(job) = incoming.recv() else { return };
                self.enqueue(job, &mut turn);
            }
            while let Ok(job) = incoming.try_recv() {
                self.enqueue(job, &mut turn);
            }
            // Streams take turns, so that a busy one does not starve the others.
            let Some(stream) = turn.pop_front() else { continue };
            let sent = self.apply_some(stream);
            if !self.streams[stream].queue.is_empty() {
                turn.push_back(stream);
            }
            if sent.is_err() {
                return;
            }
        }
    }

    fn enqueue(&mut self, job: Job, turn: &mut VecDeque<usize>) {
        let (stream, work) = match job {
            Job::Do(stream, work) => (stream, work),
            Job::Trust(keys) => return self.seals.replace(&keys),
            Job::Open(stream, id, carries) => return self.open(stream, id, carries),
            Job::Wake => return,
        };
        let queue = &mut self.streams[stream].queue;
        if queue.is_empty() {
            turn.push_back(stream);
        }
        queue.push_back(work);
    }

    /// Reads a stream's checkpoint, and has the stream take a place: a new one, or that of a stream of which nothing is queued.
    fn open(&mut self, stream: usize, id: StreamId, carries: Carries) {
        let start = Position::start(&id);
        let result = open_stream(&mut self.store, &id, carries);
        self.unswept = true;
        let applied = result.as_ref().map_or(start, |opened| opened.at);
        let place = StreamQueue::new(id, applied, carries);
        match self.streams.get_mut(stream) {
            Some(before) => *before = place,
            None => self.streams.push(place),
        }
        // If the runner is gone, the next work finds out.
        let _ = self.tell(stream, 0, Applied::Opened(result));
    }

    /// Applies queued work of a stream, as much as fits into one transaction. Fails when the runner is gone.
    fn apply_some(&mut self, stream: usize) -> Result<(), Gone> {
        let (released, result) = match self.streams[stream].queue.pop_front() {
            None => return Ok(()),
            Some(Work::Batch(first)) => return self.apply_batches(stream, first),
            Some(Work::StartOver(beginning)) => (0, self.start_over(stream, &beginning)),
            Some(Work::Stage(staging)) => {
                let bytes = staging.bytes;
                let Some(result) = self.stage(stream, staging) else {
                    return Ok(());
                };
                (bytes, result)
            }
            Some(Work::Adopt(adoption)) => (0, self.adopt(stream, &adoption)),
            Some(Work::NextPointer { after }) => (0, self.next_pointer(stream, after.as_deref())),
            Some(Work::Fill { content, bytes }) => (0, self.fill(stream, &content, &bytes)),
        };
        self.tell(stream, released, result)
    }

    /// Applies a batch, and those that follow it in the queue, as many as fit into one transaction.
    fn apply_batches(&mut self, stream: usize, first: Batch) -> Result<(), Gone> {
        let queue = &mut self.streams[stream];
        let (mut to, mut released, mut events, mut proof) = (first.to, first.bytes, first.events, first.proof);
        if first.from != queue.applied {
            return self.tell(stream, released, Applied::Dropped);
        }
        while let Some(Work::Batch(next)) = queue.queue.front() {
            if next.from != to
                || next.proof.is_authority() != proof.is_authority()
                || events.len() + next.events.len() > self.bounds.events
                || released + next.bytes > self.bounds.bytes
            {
                break;
            }
            let Some(Work::Batch(next)) = queue.queue.pop_front() else {
                break;
            };
            to = next.to;
            released += next.bytes;
            events.extend(next.events);
            proof = next.proof;
        }
        // The chain binds everything before to the last event, so one proof is enough.
        let proven = match proof {
            Proof::Authority => Ok(()),
            Proof::Seal(seal) => self.seals.check(&queue.id, &to, seal.as_ref()),
        };
        if let Err(why) = proven {
            let failure = ApplyFailure::Unproven { to: to.seq, why };
            return self.tell(stream, released, Applied::Failed(failure));
        }
        let Some((bad, failure)) = altered(&events, proof.is_authority()) else {
            let result = self.apply(stream, to, &events);
            return self.tell(stream, released, result);
        };
        // The events before the altered payload are good.
        if let Some(last) = events[..bad].last() {
            let to = Position {
                seq: last.seq,
                chain: last.chain_hash,
            };
            match self.apply(stream, to, &events[..bad]) {
                saved @ (Applied::To(_) | Applied::DocumentsTo { .. }) => self.tell(stream, 0, saved)?,
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

    fn apply(&mut self, stream: usize, to: Position, events: &[Event]) -> Applied {
        if let Carries::Documents { .. } = self.streams[stream].carries {
            return self.take_documents(stream, to, events);
        }
        let queue = &mut self.streams[stream];
        let (store, handler) = (&mut self.store, &mut self.handler);
        let mut panicked = None;
        let mut effects = |transaction: &mut S::Transaction<'_>| {
            unwound(&mut panicked, || handler.apply(transaction, &queue.id, events))
        };
        let saved = store.commit(&queue.id, &queue.applied, &to, &mut effects);
        match not_saved(saved, panicked) {
            Ok(()) => {
                queue.applied = to;
                self.changes.events(&queue.id, events);
                Applied::To(to)
            }
            Err(applied) => applied,
        }
    }

    fn start_over(&mut self, stream: usize, beginning: &Beginning) -> Applied {
        if let Some(document) = &beginning.document {
            let (seq, expected, found) = (document.seq, document.payload_hash, PayloadHash::of(&document.payload));
            if found != expected {
                return Applied::Failed(ApplyFailure::Payload {
                    seq,
                    expected,
                    found,
                    from_authority: true,
                });
            }
        }
        let queue = &mut self.streams[stream];
        if beginning.from != queue.applied {
            return Applied::Failed(ApplyFailure::Retry {
                message: "the saved checkpoint is not where the stream was expected to be".to_owned(),
            });
        }
        let (store, handler) = (&mut self.store, &mut self.handler);
        let mut panicked = None;
        let mut effects = |transaction: &mut S::Transaction<'_>| {
            unwound(&mut panicked, || handler.start_over(transaction, &queue.id, beginning))
        };
        let saved = store.start_over(&queue.id, &queue.applied, &beginning.at, &mut effects);
        match not_saved(saved, panicked) {
            Ok(()) => {
                queue.applied = beginning.at;
                self.changes.missed_events(&queue.id);
                Applied::StartedOver(beginning.at)
            }
            Err(applied) => applied,
        }
    }
}

/// Finds out where a stream is.
pub(crate) fn open_stream<S: CheckpointStore>(
    store: &mut S,
    id: &StreamId,
    carries: Carries,
) -> Result<Opened, StoreError> {
    let saved = store.load(id)?.unwrap_or_else(|| Position::start(id));
    let documents = store.documents();
    match (carries, documents) {
        (Carries::Events, None) => Ok(Opened { at: saved, carries }),
        (Carries::Events, Some(documents)) => {
            // The handler has seen none of the events up to there.
            let at = if documents.forget_documents(id)? {
                Position::start(id)
            } else {
                saved
            };
            Ok(Opened { at, carries })
        }
        (Carries::Documents { .. }, None) => Err(StoreError::NoDocuments),
        (Carries::Documents { .. }, Some(documents)) => {
            let are_held = documents.open_documents(id)?.is_some();
            Ok(Opened {
                at: saved,
                carries: Carries::Documents { are_held },
            })
        }
    }
}

/// Turns a panic of the application into a failure.
fn unwound(panicked: &mut Option<String>, call: impl FnOnce() -> Result<(), HandlerError>) -> Result<(), HandlerError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let message = panic_message(&*panic);
        *panicked = Some(message.clone());
        Err(HandlerError::stop(message))
    })
}

/// The outcome of work that was not saved.
fn not_saved(saved: Result<(), CommitError>, panicked: Option<String>) -> Result<(), Applied> {
    if let Some(message) = panicked {
        return Err(Applied::Failed(ApplyFailure::Stop {
            message: format!("the handler panicked: {message}"),
        }));
    }
    saved.map_err(|error| match error {
        CommitError::Handler(HandlerError::Retry(error)) if is_full(&*error) => Applied::Failed(ApplyFailure::Full {
            message: chain(&*error),
        }),
        CommitError::Store(error @ StoreError::Full { .. }) => Applied::Failed(ApplyFailure::Full {
            message: error.to_string(),
        }),
        CommitError::Handler(HandlerError::Retry(error)) => Applied::Failed(ApplyFailure::Retry {
            message: chain(&*error),
        }),
        CommitError::Handler(HandlerError::Stop(error)) => Applied::Failed(ApplyFailure::Stop {
            message: chain(&*error),
        }),
        CommitError::Store(error) => match error.class() {
            ErrorClass::Retry => Applied::Failed(ApplyFailure::Retry {
                message: error.to_string(),
            }),
            ErrorClass::Reject | ErrorClass::Fatal => Applied::StoreFailed(error),
        },
    })
}

/// The runner is gone.
struct Gone;

/// The first payload that does not have the hash of its event, and its index.
fn altered(events: &[Event], from_authority: bool) -> Option<(usize, ApplyFailure)> {
    events.iter().enumerate().find_map(|(at, event)| {
        let found = PayloadHash::of(&event.payload);
        let (seq, expected) = (event.seq, event.payload_hash);
        let failure = ApplyFailure::Payload {
            seq,
            expected,
            found,
            from_authority,
        };
        (found != expected).then_some((at, failure))
    })
}

/// Whether the handler's statement failed because the disk is full.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let code = error
        .downcast_ref::<rusqlite::Error>()
        .and_then(rusqlite::Error::sqlite_error_code);
    code == Some(rusqlite::ErrorCode::DiskFull)
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
