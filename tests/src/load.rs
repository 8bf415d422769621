//! Load on the authority: events whose bytes follow from a seed, appended one by one or in bulk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use spacetime_sync_authority::{Authority, AuthorityError, NewEvent};
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{IdempotencyKey, Kind, StreamId};
use tokio::task::JoinHandle;

/// Largest payload of each stream under [`Load`], in turn.
pub const PAYLOADS: [usize; 4] = [64, 1_000, 8_000, 100_000];
/// Approximate size of a writer's transaction under [`Load`].
const TRANSACTION: usize = 64 * 1024;

/// The sizes of payloads.
#[derive(Debug, Clone, Copy)]
pub enum Payload {
    /// All payloads have this size.
    Fixed(usize),
    /// From 1 byte to this size, with small ones more often.
    UpTo(usize),
}

/// A writer to one stream.
#[derive(Debug)]
pub struct Writer {
    authority: Authority,
    stream_id: StreamId,
    payload: Payload,
    random: StdRng,
    name: String,
    written: u64,
}

impl Writer {
    /// Creates a writer. Keys contain `name`, so two writers to one stream need different names.
    pub fn new(authority: &Authority, stream_id: &StreamId, name: &str, payload: Payload, seed: u64) -> Self {
        Self {
            authority: authority.clone(),
            stream_id: stream_id.clone(),
            payload,
            random: StdRng::seed_from_u64(seed),
            name: name.to_owned(),
            written: 0,
        }
    }

    /// The writer's stream.
    pub fn stream_id(&self) -> &StreamId {
        &self.stream_id
    }

    /// Number of events appended so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Appends events in one transaction. Retries while the authority is away, which is harmless because of the keys.
    pub async fn append(&mut self, events: usize) -> Result<(), AuthorityError> {
        let batch: Vec<NewEvent> = (0..events).map(|at| self.event(self.written + at as u64)).collect();
        loop {
            match self.authority.append_batch(&self.stream_id, &batch).await {
                Ok(_) => break,
                Err(error) if error.class() == RefusalClass::Retry => tokio::time::sleep(crate::STEP).await,
                Err(error) => return Err(error),
            }
        }
        self.written += events as u64;
        Ok(())
    }

    /// Appends so many events in transactions of random size up to `most`.
    pub async fn append_all(&mut self, events: u64, most: usize) -> Result<(), AuthorityError> {
        let end = self.written + events;
        while self.written < end {
            let left = usize::try_from(end - self.written).unwrap_or(usize::MAX);
            let size = self.random.random_range(1..=most).min(left);
            self.append(size).await?;
        }
        Ok(())
    }

    fn event(&mut self, number: u64) -> NewEvent {
        let length = match self.payload {
            Payload::Fixed(length) => length,
            Payload::UpTo(most) => {
                let bound = self.random.random_range(1..=most);
                self.random.random_range(1..=bound)
            }
        };
        let mut payload = vec![0; length];
        self.random.fill_bytes(&mut payload);
        let named = |text: String| IdempotencyKey::new(&text).unwrap_or_else(|error| panic!("{error}"));
        NewEvent {
            idempotency_key: named(format!("{}:{number}", self.name)),
            kind: Kind::new("run.event").unwrap_or_else(|error| panic!("{error}")),
            payload: Bytes::from(payload),
        }
    }
}

/// How a writer writes.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// Transactions and payloads of all sizes, with pauses.
    Mixed,
    /// Like [`Pace::Mixed`], a few per second: a busy machine can carry this for any length of time.
    Gentle,
    /// Small events one by one without a pause, so that some are always in flight.
    Dense,
}

impl Pace {
    /// Largest payload, most events of a transaction, and the milliseconds between two transactions.
    fn of(self, payload: usize) -> (usize, usize, std::ops::Range<u64>) {
        let most = |bytes: usize| (TRANSACTION / bytes).clamp(1, 20);
        match self {
            Self::Mixed => (payload, most(payload), 1..25),
            Self::Gentle => (payload, most(4 * payload), 20..100),
            Self::Dense => (PAYLOADS[0], 1, 0..1),
        }
    }
}

/// Running writers, one for each stream.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Result<u64, AuthorityError>>>,
}

impl Load {
    /// Starts to write.
    pub fn start(authority: &Authority, streams: &[StreamId], pace: Pace, random: &mut StdRng) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |(stream_id, payload): (&StreamId, usize)| {
            let (largest, most, pauses) = pace.of(payload);
            let seed = random.random();
            let name = format!("load-{seed}");
            let writer = Writer::new(authority, stream_id, &name, Payload::UpTo(largest), seed);
            let (random, stop) = (StdRng::seed_from_u64(seed), stop.clone());
            tokio::spawn(write(writer, most, pauses, random, stop))
        };
        let writers = streams.iter().zip(PAYLOADS.into_iter().cycle()).map(writer).collect();
        Self { stop, writers }
    }

    /// Stops all writers, and returns how many events they committed.
    pub async fn stop(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut committed = 0;
        for writer in self.writers {
            committed += writer.await??;
        }
        Ok(committed)
    }
}

async fn write(
    mut writer: Writer,
    most: usize,
    pauses: std::ops::Range<u64>,
    mut random: StdRng,
    stop: Arc<AtomicBool>,
) -> Result<u64, AuthorityError> {
    while !stop.load(Ordering::Relaxed) {
        writer.append(random.random_range(1..=most)).await?;
        let pause = random.random_range(pauses.clone());
        if pause > 0 {
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
    Ok(writer.written())
}
