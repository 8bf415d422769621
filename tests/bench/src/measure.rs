//! The tools of the measurements: payloads, logs made in advance, and the speed of the machine itself.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use spacetime_sync_proto::{ChainHash, Event, IdempotencyKey, Kind, PayloadHash, Seq, StreamId};
use spacetime_sync_tests::figures::median;

const MIX: [usize; 10] = [64, 64, 64, 256, 256, 512, 512, 1_024, 1_024, 4_096];
/// A file system in memory, for runs that are not about the disk.
const IN_MEMORY: &str = "/dev/shm";

/// How large the payloads of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// All of this size.
    Bytes(usize),
    /// 64 to 4,096 bytes, small ones more often.
    Mix,
}

impl Size {
    /// All sizes that are measured.
    pub(crate) const ALL: [Self; 6] = [
        Self::Bytes(64),
        Self::Bytes(256),
        Self::Bytes(512),
        Self::Bytes(1_024),
        Self::Bytes(4_096),
        Self::Mix,
    ];

    /// The name in the report.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Bytes(bytes) => bytes.to_string(),
            Self::Mix => "mix".to_owned(),
        }
    }

    /// Mean bytes of a payload.
    pub(crate) fn mean(self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes as u64,
            Self::Mix => MIX.iter().sum::<usize>() as u64 / MIX.len() as u64,
        }
    }

    /// A payload of random bytes.
    pub(crate) fn payload(self, random: &mut StdRng) -> Bytes {
        let length = match self {
            Self::Bytes(bytes) => bytes,
            Self::Mix => MIX[random.random_range(0..MIX.len())],
        };
        let mut payload = vec![0; length];
        random.fill_bytes(&mut payload);
        Bytes::from(payload)
    }
}

/// An endless log of a stream, made before the measurement begins.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) stream_id: StreamId,
    pub(crate) size: Size,
    pub(crate) random: StdRng,
    pub(crate) seq: Seq,
    chain: ChainHash,
}

impl Log {
    /// The log of a stream, from its first event.
    pub(crate) fn new(stream_id: &StreamId, size: Size) -> Self {
        Self {
            stream_id: stream_id.clone(),
            size,
            random: StdRng::seed_from_u64(7),
            seq: Seq::ZERO,
            chain: ChainHash::genesis(stream_id),
        }
    }

    /// The log of a stream that holds so many events, of which only the authority's functions know the chain.
    pub(crate) fn after(stream_id: &StreamId, size: Size, held: u64) -> Self {
        Self {
            seq: Seq::ZERO.plus(held),
            ..Self::new(stream_id, size)
        }
    }

    /// The chain hash of the last event made.
    pub(crate) fn chain(&self) -> ChainHash {
        self.chain
    }

    /// The next events.
    pub(crate) fn events(&mut self, count: usize) -> Vec<Event> {
        (0..count).map(|_| self.event()).collect()
    }

    fn event(&mut self) -> Event {
        self.seq = self.seq.next();
        let name = |text: String| IdempotencyKey::new(&text).unwrap_or_else(|error| panic!("{error}"));
        let idempotency_key = name(format!("run:42:events:{}", self.seq));
        let kind = Kind::new("run.event").unwrap_or_else(|error| panic!("{error}"));
        let payload = self.size.payload(&mut self.random);
        let payload_hash = PayloadHash::of(&payload);
        let committed_at_us = self.seq.get() as i64;
        self.chain = self
            .chain
            .link(self.seq, committed_at_us, &payload_hash, &idempotency_key, &kind);
        Event {
            seq: self.seq,
            idempotency_key,
            kind,
            payload,
            payload_hash,
            chain_hash: self.chain,
            committed_at_us,
        }
    }
}

/// A folder that the disk does not slow down; the temporary folder, if this machine has none.
pub(crate) fn in_memory() -> PathBuf {
    let memory = Path::new(IN_MEMORY);
    if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}

/// Milliseconds that the temporary folder's disk takes to make 8 kB durable: the lower bound of a commit.
pub(crate) fn fsync_ms() -> std::io::Result<f64> {
    let mut file = tempfile::tempfile()?;
    let mut took = Vec::new();
    for _ in 0..100 {
        file.write_all(&[1; 8_192])?;
        let started = Instant::now();
        file.sync_data()?;
        took.push(started.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(median(&mut took))
}

/// The speed of the machine's memory in MB per second: on first use, and on second use. A virtual machine may get its
/// memory page by page from its host, and return it as soon as it is free.
pub(crate) fn memory_mb_per_second() -> (f64, f64) {
    const MB: usize = 256;
    let mut memory = vec![0_u8; MB << 20];
    let mut fill = |value| {
        let started = Instant::now();
        memory.fill(value);
        std::hint::black_box(&memory);
        MB as f64 / started.elapsed().as_secs_f64()
    };
    (fill(1), fill(2))
}

/// Microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as i64)
}
