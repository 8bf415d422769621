//! SpacetimeDB alone: an SDK loop that appends to the module, with subscribers, and no Postgres anywhere.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use spacetime_sync_bindings::{DbConnection, SyncEventTableAccess, append_sync_events, read_events};
use spacetime_sync_proto::{Event, Frame, Seq, StreamId, wire};
use spacetimedb_sdk::__codegen::__sats::u256;
use spacetimedb_sdk::{Compression, DbContext, Table};
use tokio::sync::{Semaphore, oneshot};

use super::{Log, Size, rate};
use crate::lane::{Lane, stream};
use crate::postgres::Cluster;

/// Frames in flight while each holds many events, and while each holds one.
const IN_FLIGHT: (usize, usize) = (16, 64);
/// A file system in memory: where a run is not about the disk.
const IN_MEMORY: &str = "/dev/shm";

/// How a run cuts its log into frames.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// Events in a frame, at most.
    pub events: usize,
    /// Bytes in a frame, about.
    pub bytes: usize,
    /// Whether small frames are padded, as the contract does. Without, to show why.
    pub padded: bool,
    /// Whether the commit log is on the disk. In memory it shows what the size of the table costs, and not what the
    /// disk gives after its first burst.
    pub on_disk: bool,
}

impl Cut {
    /// What the bridge does when there is a backlog.
    pub const BACKLOG: Self = Self {
        events: 1_000,
        bytes: 256 * 1024,
        padded: true,
        on_disk: true,
    };
    /// What the bridge does when events come one at a time.
    pub const LIVE: Self = Self {
        events: 1,
        bytes: 256 * 1024,
        padded: true,
        on_disk: true,
    };

    fn encode(self, events: &[Event]) -> Vec<u8> {
        if self.padded {
            return Frame::encode(events).into();
        }
        let events = events.iter().map(|event| wire::Event {
            idempotency_key: event.idempotency_key.to_string(),
            kind: event.kind.to_string(),
            payload: event.payload.clone(),
            payload_hash: event.payload_hash.as_bytes().to_vec().into(),
            committed_at_us: event.committed_at_us,
        });
        prost::Message::encode_to_vec(&wire::EventFrame {
            events: events.collect(),
            padding: Default::default(),
        })
    }
}

/// What one run measured.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Events per second while the table was empty at first.
    pub empty: f64,
    /// The same with the events of before held.
    pub full: f64,
    /// Events held then.
    pub held: u64,
    /// Resident memory of the host at the end, in MB.
    pub host_mb: u64,
}

impl Run {
    /// How flat the rate is in the size of the table.
    pub fn flatness(&self) -> f64 {
        self.full / self.empty
    }
}

/// Appends `window` events to an empty table, fills it up to `held`, and appends `window` more; both windows are timed
/// until the last event is acknowledged as durable and every subscriber has it.
pub async fn run(size: Size, cut: Cut, window: u64, held: u64, subscribers: usize) -> anyhow::Result<Run> {
    let memory = Path::new(IN_MEMORY);
    let parent = if cut.on_disk || !memory.is_dir() {
        std::env::temp_dir()
    } else {
        memory.to_owned()
    };
    let lane = Lane::start_in(Cluster::shared().await, &parent).await?;
    let in_flight = if cut.events > 1 { IN_FLIGHT.0 } else { IN_FLIGHT.1 };
    let stream_id = stream(1);
    let bridge = connect(&lane, "bridge.token").await?;
    let mut received = Vec::new();
    for _ in 0..subscribers {
        received.push(subscribe(&lane, &stream_id).await?);
    }
    let mut log = Log::new(&stream_id, size);
    let mut sent = Seq::ZERO;
    // The first frames warm up connection, module and allocator.
    send(&bridge, &stream_id, make(&mut log, cut, window / 10), in_flight).await?;
    sent = sent.plus(window / 10);
    let mut timed = async |events: u64| -> anyhow::Result<f64> {
        let frames = make(&mut log, cut, events);
        let started = Instant::now();
        send(&bridge, &stream_id, frames, in_flight).await?;
        sent = sent.plus(events);
        let all = crate::until(Duration::from_secs(120), || {
            received
                .iter()
                .all(|(_, last)| last.load(Ordering::Relaxed) >= sent.get())
        });
        anyhow::ensure!(all.await, "a subscriber did not get everything");
        Ok(rate(events, started.elapsed()))
    };
    at_rest(&lane).await;
    let empty = timed(window).await?;
    let mut filled = window + window / 10;
    while filled < held {
        timed(window.min(held - filled)).await?;
        filled += window.min(held - filled);
    }
    // The engine begins a new segment with every gigabyte of log, and compresses the last one beside the work. One window
    // of three may meet that, so the middle one counts.
    let mut windows = Vec::new();
    for _ in 0..3 {
        at_rest(&lane).await;
        windows.push(timed(window).await?);
    }
    windows.sort_by(f64::total_cmp);
    let full = windows[1];
    let host_mb = lane
        .server
        .process()
        .and_then(|process| process.memory_mb())
        .map_or(0, |(now, _)| now);
    let _ = bridge.disconnect();
    Ok(Run {
        empty,
        full,
        held: filled,
        host_mb,
    })
}

/// Waits until the host does nothing: a full segment of its log is compressed behind its back, on a core of its own.
async fn at_rest(lane: &Lane) {
    let Some(process) = lane.server.process() else { return };
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut before = process.cpu();
    while Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = process.cpu();
        if let (Some(before), Some(now)) = (before, now)
            && now - before < Duration::from_millis(25)
        {
            return;
        }
        before = now;
    }
}

/// A frame on its way: first position, chain hash before it, bytes.
type Made = (u64, u256, Vec<u8>);

fn make(log: &mut Log, cut: Cut, events: u64) -> Vec<Made> {
    let mut frames = Vec::new();
    let mut left = usize::try_from(events).unwrap_or(usize::MAX);
    while left > 0 {
        let base = u256::from_be_bytes(*log.chain().as_bytes());
        let mut frame: Vec<Event> = Vec::new();
        let mut bytes = 0;
        while left > 0 && frame.len() < cut.events && bytes < cut.bytes {
            frame.extend(log.events(1));
            bytes += frame.last().map_or(0, |event| event.size() + 64);
            left -= 1;
        }
        frames.push((frame[0].seq.get(), base, cut.encode(&frame)));
    }
    frames
}

async fn send(bridge: &DbConnection, stream_id: &StreamId, frames: Vec<Made>, in_flight: usize) -> anyhow::Result<()> {
    let slots = Arc::new(Semaphore::new(in_flight));
    let failed = Arc::new(std::sync::Mutex::new(None));
    for (first_seq, base_chain, frame) in frames {
        let slot = slots.clone().acquire_owned().await?;
        let failed = failed.clone();
        bridge.reducers.append_sync_events_then(
            stream_id.as_str().to_owned(),
            first_seq,
            base_chain,
            frame,
            move |_, result| {
                if !matches!(result, Ok(Ok(()))) {
                    *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(format!("{result:?}"));
                }
                drop(slot);
            },
        )?;
    }
    let _all = slots.acquire_many(in_flight as u32).await?;
    let failure = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    match failure {
        None => Ok(()),
        Some(failure) => anyhow::bail!("an append failed: {failure}"),
    }
}

/// A plain SDK connection.
pub async fn connect(lane: &Lane, token_file: &str) -> anyhow::Result<Arc<DbConnection>> {
    let token = std::fs::read_to_string(lane.path(token_file)).context("no token")?;
    connect_as(lane.server.uri(), &lane.name, token.trim()).await
}

async fn connect_as(uri: &str, database: &str, token: &str) -> anyhow::Result<Arc<DbConnection>> {
    let (connected, is_connected) = oneshot::channel();
    let builder = DbConnection::builder()
        .with_uri(uri)
        .with_database_name(database)
        .with_token(Some(token))
        .with_compression(Compression::None)
        .with_confirmed_reads(true)
        .on_connect(move |_, _, _| {
            let _ = connected.send(());
        });
    let connection = Arc::new(tokio::task::spawn_blocking(move || builder.build()).await??);
    tokio::spawn({
        let connection = connection.clone();
        async move { connection.run_async().await }
    });
    is_connected.await?;
    Ok(connection)
}

/// A subscriber that looks at nothing but the position. It ends with the returned connection.
async fn subscribe(lane: &Lane, stream_id: &StreamId) -> anyhow::Result<(Arc<DbConnection>, Arc<AtomicU64>)> {
    let follower = lane.client(std::slice::from_ref(stream_id)).await?;
    let token = std::fs::read_to_string(follower.token_file())?;
    let connection = connect_as(lane.server.uri(), &lane.name, token.trim()).await?;
    let (answer, answered) = oneshot::channel();
    connection
        .procedures
        .read_events_then(stream_id.as_str().to_owned(), 0, move |_, result| {
            let _ = answer.send(result);
        });
    let page = answered
        .await?
        .map_err(|error| anyhow::anyhow!("{error}"))?
        .map_err(anyhow::Error::msg)?;
    let last = Arc::new(AtomicU64::new(0));
    connection.db.sync_event().on_insert({
        let last = last.clone();
        move |_, row| {
            last.fetch_max(row.last_seq, Ordering::Relaxed);
        }
    });
    let (applied, is_applied) = oneshot::channel();
    connection
        .subscription_builder()
        .on_applied(move |_| {
            let _ = applied.send(());
        })
        .subscribe(format!(
            "SELECT * FROM sync_event WHERE stream_key = {} AND last_seq > 0",
            page.stream_key
        ));
    is_applied.await.context("the subscription was refused")?;
    Ok((connection, last))
}
