//! What one hostile session costs an honest client: single events at a steady rate, applied through the gate, in windows
//! with and without somebody who does harm in one way.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum as _;
use serde::Serialize;
use spacetime_sync_proto::StreamId;
use spacetime_sync_tests::figures::{Percentiles, Samples};
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::gate::Gate;
use spacetime_sync_tests::hostile::{Hostile, Kind, Tally};
use spacetime_sync_tests::lane::{Bridge, Lane, stream};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::scene::ready;
use tokio::task::JoinSet;

use crate::measure::{Log, Size, now_us};

const LIMIT: Duration = Duration::from_secs(300);
const SIZE: Size = Size::Bytes(512);
/// Streams of the honest client.
const STREAMS: usize = 2;
/// What comes within this time after a hostile client is gone is its doing.
const AFTERMATH: Duration = Duration::from_secs(1);
/// The honest client applies for so long before anything counts.
const WARM_UP: Duration = Duration::from_secs(2);

/// How much to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Single events that are committed in a second.
    pub(crate) per_second: u64,
    /// Events of a stream that the hostile client may read, too, and the honest one does not follow.
    pub(crate) backlog: u64,
    /// How long it is quiet, before and after each hostile window.
    pub(crate) quiet: Duration,
    /// How long one kind of harm lasts.
    pub(crate) each: Duration,
    /// How long it lasts when a session does its worst.
    pub(crate) worst: Duration,
}

/// What one kind of harm costs.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Cost {
    pub(crate) kind: Kind,
    /// How long it lasted.
    pub(crate) seconds: f64,
    /// From commit to applied in the quiet windows beside it.
    pub(crate) quiet: Percentiles,
    /// The same with it.
    pub(crate) hostile: Percentiles,
    /// How many times as much that is, of the median and the 99th percentile.
    pub(crate) ratio: (f64, f64),
    /// CPU time of the hostile client itself.
    pub(crate) cpu_seconds: f64,
    /// What the hostile client did.
    pub(crate) tally: Tally,
}

/// From when to when, in microseconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Window {
    from_us: i64,
    to_us: i64,
}

/// A window in which somebody did harm.
struct Harm {
    kind: Kind,
    window: Window,
    lasted: Duration,
    cpu: Duration,
    tally: Tally,
}

/// An event: when it was committed, and how many microseconds later it was applied.
type Sample = (i64, i64);

/// Measures each kind of harm, the worst last.
pub(crate) async fn run(cluster: &Cluster, extent: Extent) -> anyhow::Result<Vec<Cost>> {
    let lane = Lane::start_with_tokens(cluster).await?;
    let bridge = lane.bridge()?;
    ready(&bridge, LIMIT).await?;
    let gate = lane.gate(&[])?;
    gate.until_ready(true).await?;
    let streams: Vec<StreamId> = (1..=STREAMS).map(stream).collect();
    let log = stream(STREAMS + 1);
    Log::new(&log, SIZE).append(&lane.authority, extent.backlog).await?;
    anyhow::ensure!(lane.published(LIMIT).await, "the backlog was not published");

    let mut honest = lane.client(&streams).await?.at(gate.address());
    honest.start()?;
    let writing = Writing::start(&lane, &streams, extent.per_second);
    honest.until_applied(extent.per_second, LIMIT).await?;
    tokio::time::sleep(WARM_UP).await;
    let readable: Vec<StreamId> = std::iter::once(log).chain(streams).collect();
    let mut quiet = vec![Window::of(extent.quiet).await];
    let mut harms = Vec::new();
    for kind in Kind::value_variants() {
        let lasts = if *kind == Kind::Worst {
            extent.worst
        } else {
            extent.each
        };
        harms.push(Harm::of(&lane, &bridge, &gate, *kind, &readable, lasts).await?);
        quiet.push(Window::of(extent.quiet).await);
    }
    let samples = writing.stop(&honest).await?;
    let verdict = honest.compare(&lane.authority).await?;
    anyhow::ensure!(verdict.is_equal(), "the honest client lost something: {verdict:?}");
    let costs = harms.iter().zip(quiet.windows(2));
    costs.map(|(harm, beside)| harm.cost(beside, &samples)).collect()
}

impl Window {
    async fn of(lasts: Duration) -> Self {
        let from_us = now_us();
        tokio::time::sleep(lasts).await;
        Self {
            from_us,
            to_us: now_us(),
        }
    }
}

impl Harm {
    async fn of(
        lane: &Lane,
        bridge: &Bridge,
        gate: &Gate,
        kind: Kind,
        readable: &[StreamId],
        lasts: Duration,
    ) -> anyhow::Result<Self> {
        let from_us = now_us();
        let hostile = Hostile::start(lane, bridge, gate, kind, readable).await?;
        let before = hostile.cpu();
        tokio::time::sleep(lasts).await;
        anyhow::ensure!(hostile.is_running(), "{} has given up", kind.name());
        let (cpu, tally) = (hostile.cpu().saturating_sub(before), hostile.tally());
        drop(hostile);
        tokio::time::sleep(AFTERMATH).await;
        let window = Window {
            from_us,
            to_us: now_us(),
        };
        Ok(Self {
            kind,
            window,
            lasted: lasts,
            cpu,
            tally,
        })
    }

    fn cost(&self, beside: &[Window], samples: &[Sample]) -> anyhow::Result<Cost> {
        let (quiet, hostile) = (figures(beside, samples)?, figures(&[self.window], samples)?);
        Ok(Cost {
            kind: self.kind,
            seconds: self.lasted.as_secs_f64(),
            quiet,
            hostile,
            ratio: (hostile.p50_ms / quiet.p50_ms, hostile.p99_ms / quiet.p99_ms),
            cpu_seconds: self.cpu.as_secs_f64(),
            tally: self.tally,
        })
    }
}

/// The latency of the events that were committed in some windows.
fn figures(windows: &[Window], samples: &[Sample]) -> anyhow::Result<Percentiles> {
    let within = |at_us: i64| {
        windows
            .iter()
            .any(|window| (window.from_us..window.to_us).contains(&at_us))
    };
    let mut latencies = Samples::default();
    for (_, took_us) in samples.iter().filter(|(at_us, _)| within(*at_us)) {
        latencies.record_us(*took_us);
    }
    latencies.latency().context("nothing was committed in a window")
}

/// Writers of single events, each in its own transaction and at its own times.
struct Writing {
    over: Arc<AtomicBool>,
    writers: JoinSet<anyhow::Result<(StreamId, Vec<i64>)>>,
}

impl Writing {
    fn start(lane: &Lane, streams: &[StreamId], per_second: u64) -> Self {
        let (over, mut writers) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        let pace = Duration::from_micros(1_000_000 * streams.len() as u64 / per_second);
        let offset = pace / u32::try_from(streams.len()).unwrap_or(1);
        for (at, stream_id) in (0u32..).zip(streams) {
            let (authority, stream_id, over) = (lane.authority.clone(), stream_id.clone(), over.clone());
            writers.spawn(async move {
                let mut log = Log::new(&stream_id, SIZE);
                let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + offset * at, pace);
                let mut committed_at_us = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    beat.tick().await;
                    authority.append(&stream_id, &log.new_event()).await?;
                    committed_at_us.push(now_us());
                }
                Ok::<_, anyhow::Error>((stream_id, committed_at_us))
            });
        }
        Self { over, writers }
    }

    /// Stops, and waits until a client has applied everything.
    async fn stop(mut self, honest: &Follower) -> anyhow::Result<Vec<Sample>> {
        self.over.store(true, Ordering::Relaxed);
        let mut committed: HashMap<StreamId, Vec<i64>> = HashMap::new();
        while let Some(written) = self.writers.join_next().await {
            let (stream_id, committed_at_us) = written??;
            committed.insert(stream_id, committed_at_us);
        }
        let count: usize = committed.values().map(Vec::len).sum();
        honest.until_applied(count as u64, LIMIT).await?;
        let mut samples = Vec::new();
        for (stream_id, committed_at_us) in committed {
            let applied_at_us = honest.applied_at_us(&stream_id, 1, committed_at_us.len() as u64)?;
            anyhow::ensure!(
                applied_at_us.len() == committed_at_us.len(),
                "the client did not apply every event"
            );
            let both = committed_at_us.into_iter().zip(applied_at_us);
            samples.extend(both.map(|(committed, applied)| (committed, applied - committed)));
        }
        Ok(samples)
    }
}
