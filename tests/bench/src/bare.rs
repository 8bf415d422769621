//! SpacetimeDB alone: an SDK loop that appends to the module, with subscribers and without Postgres.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use spacetime_sync_bindings::{DbConnection, SyncEventTableAccess, append_sync_events, read_events};
use spacetime_sync_proto::{Event, Frame, Seq, StreamId};
use spacetimedb_sdk::__codegen::__sats::u256;
use spacetimedb_sdk::{Compression, DbContext, Table};
use tokio::sync::{Semaphore, oneshot};

use crate::background;
use crate::measure::{Log, Size, in_memory};
use crate::report::two;
use spacetime_sync_tests::figures::{median, rate};
use spacetime_sync_tests::lane::{Lane, stream};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::words;

/// Most frames in flight, for frames of many events and for frames of one event.
const IN_FLIGHT: (usize, usize) = (16, 64);
/// Approximate bytes of an event in a frame beyond its payload.
const EVENT_OVERHEAD: u64 = 64;

/// Subscriptions of which the median counts.
const SUBSCRIPTIONS: u64 = 50;
/// How far they reach: as a client's that has seen no event.
const REACH: u64 = 1_024;

/// How a run cuts its log into frames.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    /// Most events in a frame.
    pub(crate) events: usize,
    /// Approximate bytes in a frame.
    pub(crate) bytes: usize,
    /// Whether the commit log is on disk. In memory, a run shows the cost of a growing table and not the speed of the
    /// disk after its first burst.
    pub(crate) on_disk: bool,
}

impl Cut {
    /// As the bridge cuts a backlog.
    pub(crate) const BACKLOG: Self = Self {
        events: 1_000,
        bytes: 256 * 1024,
        on_disk: true,
    };
    /// As the bridge cuts events that come one at a time.
    pub(crate) const LIVE: Self = Self {
        events: 1,
        bytes: 256 * 1024,
        on_disk: true,
    };
}

/// How much is timed at once, and how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Most events in a window.
    pub(crate) events: u64,
    /// Approximate upper bound of the bytes in a window.
    pub(crate) bytes: u64,
    /// Number of pairs of windows: one on the empty table of a fresh SpacetimeDB, then one on the full table.
    pub(crate) samples: usize,
}

impl Window {
    fn events(self, size: Size) -> u64 {
        self.events.min(self.bytes / (size.mean() + EVENT_OVERHEAD)).max(1)
    }
}

/// The result of a window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Events per second.
    pub(crate) rate: f64,
    /// Microseconds of the host's user CPU time per event; 0 if this run did not start the host.
    pub(crate) user_us: f64,
}

/// The result of a run.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// Pairs of windows: one on an empty table, one on a table that already holds events.
    pub(crate) pairs: Vec<(Pace, Pace)>,
    /// How many events the full table holds.
    pub(crate) held: u64,
    /// Events per second in windows during which the engine began a new segment of its log, and so took a snapshot and
    /// compressed the previous segment at the same time. These windows count nowhere else.
    pub(crate) beside_compression: Vec<f64>,
    /// Resident memory of the host at the end, in MB.
    pub(crate) host_mb: u64,
}

impl Run {
    /// Events per second on an empty table: the median.
    pub(crate) fn empty(&self) -> f64 {
        self.middle(|(empty, _)| empty.rate)
    }

    /// Events per second on the full table: the median.
    pub(crate) fn full(&self) -> f64 {
        self.middle(|(_, full)| full.rate)
    }

    /// How little the rate depends on the size of the table: the median of the pairs. Other load on the machine affects
    /// both windows of a pair.
    pub(crate) fn flatness(&self) -> f64 {
        self.middle(|(empty, full)| full.rate / empty.rate)
    }

    /// User CPU time per event on an empty table, divided by the same on a full one. It shows the cost of the table
    /// alone: memory and disk are the kernel's.
    pub(crate) fn cpu_flatness(&self) -> f64 {
        self.middle(|(empty, full)| empty.user_us / full.user_us)
    }

    fn middle(&self, of: impl Fn(&(Pace, Pace)) -> f64) -> f64 {
        median(&mut self.pairs.iter().map(of).collect::<Vec<_>>())
    }
}

/// Measures one window on an empty table.
pub(crate) async fn empty(size: Size, cut: Cut, window: Window, subscribers: usize) -> anyhow::Result<Pace> {
    let mut bare = Bare::start(size, cut, subscribers).await?;
    bare.warm_up(window.events(size) / 10).await?;
    bare.timed(window.events(size)).await
}

/// Fills a table up to `held` events, then measures windows on empty tables and on this one in turn. A window ends when
/// the last event is acknowledged as durable and every subscriber has it.
pub(crate) async fn run(size: Size, cut: Cut, window: Window, held: u64, subscribers: usize) -> anyhow::Result<Run> {
    let events = window.events(size);
    let mut bare = Bare::start(size, cut, subscribers).await?;
    while bare.sent.get() < held {
        bare.timed(events.min(held - bare.sent.get())).await?;
    }
    let (mut pairs, mut beside_compression) = (Vec::new(), Vec::new());
    while pairs.len() < window.samples && beside_compression.len() < window.samples {
        let empty = empty(size, cut, window, subscribers).await?;
        background::at_rest(&bare.lane).await;
        let segments = background::segments(&bare.lane);
        let full = bare.timed(events).await?;
        if background::segments(&bare.lane) == segments {
            pairs.push((empty, full));
        } else {
            beside_compression.push(full.rate);
        }
    }
    anyhow::ensure!(!pairs.is_empty(), "the engine began a new log segment in every window");
    Ok(Run {
        pairs,
        held,
        beside_compression,
        host_mb: bare.host_mb(),
    })
}

/// What a subscription costs on a stream of so many frames.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Subscription {
    /// Frames of one event each.
    pub(crate) frames: u64,
    /// Until the answer, in milliseconds.
    pub(crate) answer_ms: f64,
    /// Milliseconds of the host's CPU.
    pub(crate) host_ms: f64,
}

/// Subscribes to the end of a stream, as a client does, while the stream grows.
pub(crate) async fn subscriptions(frames: &[u64]) -> anyhow::Result<Vec<Subscription>> {
    let cut = Cut {
        events: 1,
        ..Cut::BACKLOG
    };
    let mut bare = Bare::start(Size::Bytes(64), cut, 0).await?;
    let (reader, stream_key) = reader(&bare.lane, &bare.stream_id).await?;
    let mut found = Vec::new();
    for held in frames {
        bare.timed(held - bare.sent.get()).await?;
        background::at_rest(&bare.lane).await;
        let (mut took, before) = (Vec::new(), background::cpu(&bare.lane).whole());
        for ago in 0..SUBSCRIPTIONS {
            let after = held - ago;
            let started = Instant::now();
            subscribed(&reader, words::frames(stream_key, after, after + REACH)).await?;
            took.push(started.elapsed().as_secs_f64() * 1e3);
        }
        let spent = background::cpu(&bare.lane).whole().saturating_sub(before);
        found.push(Subscription {
            frames: *held,
            answer_ms: two(median(&mut took)),
            host_ms: two(spent.as_secs_f64() * 1e3 / SUBSCRIPTIONS as f64),
        });
    }
    Ok(found)
}

/// A host, an SDK connection that appends like the bridge, and subscribers.
struct Bare {
    lane: Lane,
    bridge: Arc<DbConnection>,
    stream_id: StreamId,
    received: Vec<(Arc<DbConnection>, Arc<AtomicU64>)>,
    log: Log,
    cut: Cut,
    sent: Seq,
}

impl Bare {
    async fn start(size: Size, cut: Cut, subscribers: usize) -> anyhow::Result<Self> {
        let parent = if cut.on_disk { std::env::temp_dir() } else { in_memory() };
        let lane = Lane::start_in(Cluster::shared().await, &parent).await?;
        let stream_id = stream(1);
        let bridge = connect(&lane, "bridge.token").await?;
        let mut received = Vec::new();
        for _ in 0..subscribers {
            received.push(subscribe(&lane, &stream_id).await?);
        }
        Ok(Self {
            log: Log::new(&stream_id, size),
            lane,
            bridge,
            stream_id,
            received,
            cut,
            sent: Seq::ZERO,
        })
    }

    /// Warms up connection, module and allocator.
    async fn warm_up(&mut self, events: u64) -> anyhow::Result<()> {
        self.timed(events).await?;
        background::at_rest(&self.lane).await;
        Ok(())
    }

    async fn timed(&mut self, events: u64) -> anyhow::Result<Pace> {
        let frames = make(&mut self.log, self.cut, events);
        let in_flight = if self.cut.events > 1 { IN_FLIGHT.0 } else { IN_FLIGHT.1 };
        let (started, cpu) = (Instant::now(), background::cpu(&self.lane));
        send(&self.bridge, &self.stream_id, frames, in_flight).await?;
        self.sent = self.sent.plus(events);
        let all = spacetime_sync_tests::until(Duration::from_secs(120), || {
            self.received
                .iter()
                .all(|(_, last)| last.load(Ordering::Relaxed) >= self.sent.get())
        });
        anyhow::ensure!(all.await, "a subscriber did not receive every event");
        let rate = rate(events, started.elapsed());
        let user = background::cpu(&self.lane).user.saturating_sub(cpu.user);
        Ok(Pace {
            rate,
            user_us: user.as_secs_f64() * 1e6 / events as f64,
        })
    }

    /// Resident memory of the host, in MB.
    fn host_mb(&self) -> u64 {
        let process = self.lane.server.process();
        process
            .and_then(|process| process.memory_mb())
            .map_or(0, |(now, _)| now)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.bridge.disconnect();
    }
}

/// A frame to send, and what the call states about it.
pub(crate) struct Made {
    first_seq: u64,
    last_seq: u64,
    base_chain: u256,
    last_chain: u256,
    last_at: i64,
    frame: Vec<u8>,
}

impl Made {
    /// The arguments of `append_sync_events`.
    pub(crate) fn arguments(&self, stream_id: &StreamId) -> Vec<u8> {
        words::arguments(&(
            stream_id.as_str(),
            self.first_seq,
            self.last_seq,
            self.base_chain,
            self.last_chain,
            self.last_at,
            self.frame.as_slice(),
        ))
    }
}

/// The next events of a log, in frames.
pub(crate) fn make(log: &mut Log, cut: Cut, events: u64) -> Vec<Made> {
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
        let (first, last) = (&frame[0], &frame[frame.len() - 1]);
        frames.push(Made {
            first_seq: first.seq.get(),
            last_seq: last.seq.get(),
            base_chain: base,
            last_chain: u256::from_be_bytes(*last.chain_hash.as_bytes()),
            last_at: last.committed_at_us,
            frame: Frame::encode(&frame, None).into(),
        });
    }
    frames
}

async fn send(bridge: &DbConnection, stream_id: &StreamId, frames: Vec<Made>, in_flight: usize) -> anyhow::Result<()> {
    let slots = Arc::new(Semaphore::new(in_flight));
    let failed = Arc::new(std::sync::Mutex::new(None));
    for made in frames {
        let slot = slots.clone().acquire_owned().await?;
        let failed = failed.clone();
        bridge.reducers.append_sync_events_then(
            stream_id.as_str().to_owned(),
            made.first_seq,
            made.last_seq,
            made.base_chain,
            made.last_chain,
            made.last_at,
            made.frame,
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

/// Opens a plain SDK connection.
pub(crate) async fn connect(lane: &Lane, token_file: &str) -> anyhow::Result<Arc<DbConnection>> {
    let token = std::fs::read_to_string(lane.path(token_file)).context("cannot read the token file")?;
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

/// A connection that may read a stream, and the stream's key.
async fn reader(lane: &Lane, stream_id: &StreamId) -> anyhow::Result<(Arc<DbConnection>, u64)> {
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
    Ok((connection, page.stream_key))
}

/// Subscribes, and waits for the answer.
async fn subscribed(connection: &DbConnection, queries: Vec<String>) -> anyhow::Result<()> {
    let (applied, is_applied) = oneshot::channel();
    connection
        .subscription_builder()
        .on_applied(move |_| {
            let _ = applied.send(());
        })
        .subscribe(queries);
    is_applied.await.context("the subscription was refused")
}

/// Starts a subscriber that only notes the last seq. It ends with the returned connection.
async fn subscribe(lane: &Lane, stream_id: &StreamId) -> anyhow::Result<(Arc<DbConnection>, Arc<AtomicU64>)> {
    let (connection, stream_key) = reader(lane, stream_id).await?;
    let last = Arc::new(AtomicU64::new(0));
    connection.db.sync_event().on_insert({
        let last = last.clone();
        move |_, row| {
            last.fetch_max(row.last_seq, Ordering::Relaxed);
        }
    });
    let whole = format!("SELECT * FROM sync_event WHERE stream_key = {stream_key} AND last_seq > 0");
    subscribed(&connection, vec![whole]).await?;
    Ok((connection, last))
}
