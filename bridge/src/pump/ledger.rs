//! The ledger: writes down in the authority what is published. One task, so that an advance and a rewind of the same
//! stream never overtake one another, and many advances become one statement.

use std::collections::HashMap;
use std::time::Duration;

use spacetime_sync_proto::{Seq, StreamId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::backoff::Backoff;
use spacetime_sync_authority::Authority;
use spacetime_sync_proto::error_text;

/// How long advances are gathered. What is published and not yet written down is absorbed after a crash.
const GATHER: Duration = Duration::from_millis(20);
/// Wait after the authority could not be written to, or a writer held a row.
const RETRY: Duration = Duration::from_millis(100);
/// Most streams in one statement.
const STREAMS: usize = 1_000;
/// How long the end may take.
const FINISH: Duration = Duration::from_secs(5);

enum Entry {
    Advance(StreamId, Seq),
    Rewind(StreamId, Seq),
    Cap(StreamId, Seq),
    Settled(oneshot::Sender<()>),
}

/// Writes to the ledger.
#[derive(Clone)]
pub(super) struct Handle(mpsc::UnboundedSender<Entry>);

impl Handle {
    pub(super) fn advance(&self, stream_id: StreamId, seq: Seq) {
        let _ = self.0.send(Entry::Advance(stream_id, seq));
    }

    pub(super) fn rewind(&self, stream_id: StreamId, to: Seq) {
        let _ = self.0.send(Entry::Rewind(stream_id, to));
    }

    /// SpacetimeDB holds just this much: what waits to be written down and says more is of the past.
    pub(super) fn cap(&self, stream_id: StreamId, at: Seq) {
        let _ = self.0.send(Entry::Cap(stream_id, at));
    }

    /// Resolves when all that was said before is written down, but for rows that a writer holds.
    pub(super) async fn settled(&self) {
        let (done, is_done) = oneshot::channel();
        if self.0.send(Entry::Settled(done)).is_ok() {
            let _ = is_done.await;
        }
    }
}

pub(super) struct Ledger {
    handle: Handle,
}

impl Ledger {
    /// As one of `tasks`. `above_head` hears of streams whose log in the authority ends before what was acknowledged.
    pub(super) fn start(
        tasks: &mut JoinSet<()>,
        authority: Authority,
        above_head: impl Fn(Vec<StreamId>) + Send + 'static,
    ) -> Self {
        let (entries, book) = mpsc::unbounded_channel();
        let writer = Writer {
            authority,
            above_head,
            pending: HashMap::new(),
        };
        tasks.spawn(writer.run(book));
        Self {
            handle: Handle(entries),
        }
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    pub(super) fn advance(&self, stream_id: StreamId, seq: Seq) {
        self.handle.advance(stream_id, seq);
    }

    pub(super) fn rewind(&self, stream_id: StreamId, to: Seq) {
        self.handle.rewind(stream_id, to);
    }

    /// Writes down what is left, unless the authority does not let us.
    pub(super) async fn finish(&self) {
        if tokio::time::timeout(FINISH, self.handle.settled()).await.is_err() {
            tracing::warn!("not all that is published could be written down; the next start finds out");
        }
    }
}

struct Writer<F> {
    authority: Authority,
    above_head: F,
    pending: HashMap<StreamId, Seq>,
}

impl<F: Fn(Vec<StreamId>) + Send> Writer<F> {
    async fn run(mut self, mut book: mpsc::UnboundedReceiver<Entry>) {
        while let Some(first) = book.recv().await {
            let mut settled = Vec::new();
            self.take(first, &mut settled).await;
            let gathered = tokio::time::Instant::now() + GATHER;
            while settled.is_empty()
                && let Ok(Some(entry)) = tokio::time::timeout_at(gathered, book.recv()).await
            {
                self.take(entry, &mut settled).await;
            }
            while let Ok(entry) = book.try_recv() {
                self.take(entry, &mut settled).await;
            }
            while !self.write().await {
                tokio::time::sleep(RETRY).await;
                while let Ok(entry) = book.try_recv() {
                    self.take(entry, &mut settled).await;
                }
                // Rows that a writer holds for long must not hold up whoever waits for the rest.
                release(&mut settled);
            }
            release(&mut settled);
        }
    }

    async fn take(&mut self, entry: Entry, settled: &mut Vec<oneshot::Sender<()>>) {
        match entry {
            Entry::Advance(stream_id, seq) => {
                let pending = self.pending.entry(stream_id).or_insert(seq);
                *pending = seq.max(*pending);
            }
            Entry::Rewind(stream_id, to) => {
                // What was acknowledged before is not held any more.
                self.pending.remove(&stream_id);
                let mut backoff = Backoff::new();
                while let Err(error) = self.authority.rewind_published(&stream_id, to).await {
                    let wait = backoff.next();
                    tracing::warn!(error = error_text(&error), %stream_id, ?wait, "a rewind could not be written down");
                    tokio::time::sleep(wait).await;
                }
            }
            Entry::Cap(stream_id, at) => {
                if self.pending.get(&stream_id).is_some_and(|pending| *pending > at) {
                    self.pending.remove(&stream_id);
                }
            }
            Entry::Settled(done) => settled.push(done),
        }
    }

    /// Writes what is pending; false if some of it must be tried again.
    async fn write(&mut self) -> bool {
        let mut again = HashMap::new();
        let all: Vec<_> = self.pending.drain().collect();
        for part in all.chunks(STREAMS) {
            match self.authority.advance_published(part).await {
                Ok(advanced) => {
                    let locked = part.iter().filter(|(stream_id, _)| advanced.locked.contains(stream_id));
                    again.extend(locked.cloned());
                    if !advanced.above_head.is_empty() {
                        (self.above_head)(advanced.above_head);
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        error = error_text(&error),
                        "what is published could not be written down"
                    );
                    again.extend(part.iter().cloned());
                }
            }
        }
        self.pending = again;
        self.pending.is_empty()
    }
}

fn release(settled: &mut Vec<oneshot::Sender<()>>) {
    for done in settled.drain(..) {
        let _ = done.send(());
    }
}
