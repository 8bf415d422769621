//! Load on the authority: events whose bytes follow from a seed, appended one by one or in bulk.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use spacetime_sync_bridge::authority::{Authority, AuthorityError, NewEvent};
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{IdempotencyKey, Kind, StreamId};

/// How large payloads are.
#[derive(Debug, Clone, Copy)]
pub enum Payload {
    /// All the same.
    Fixed(usize),
    /// From 1 byte to this, small ones more often.
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
    /// Keys hold `name`: two writers to one stream have different ones.
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

    /// The stream it writes to.
    pub fn stream_id(&self) -> &StreamId {
        &self.stream_id
    }

    /// Events appended so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Appends events in one transaction. Repeated while the authority is away: the keys make that harmless.
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
