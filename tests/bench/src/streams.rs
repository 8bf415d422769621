//! Many streams: as many events on many streams as on a few, and a few busy streams beside many that rest.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use spacetime_sync_proto::StreamId;
use spacetime_sync_tests::figures::rate;
use spacetime_sync_tests::lane::{Bridge, Lane, stream};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::process::Process;
use tokio::task::JoinSet;

use crate::busy::{self, cpu_of};
use crate::crowd::{Behaviour, Crowd, Member};
use crate::measure::{Log, Size};
use crate::report::{Report, two};

const LIMIT: Duration = Duration::from_secs(600);
const SIZE: Size = Size::Bytes(512);
const WRITERS: usize = 4;
/// Number of events per transaction.
const BATCH: u64 = 20;
/// Number of streams created in one transaction.
const CHUNK: usize = 5_000;

/// How much to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// How many streams, and how many events of each.
    spread: &'static [(usize, u64)],
    /// Streams that rest.
    resting: usize,
    /// What the busy streams beside them carry.
    busy: busy::Extent,
}

pub(crate) const FULL: Extent = Extent {
    spread: &[(4, 25_000), (1_000, 20), (5_000, 20)],
    resting: 100_000,
    busy: busy::Extent {
        bulk: 200_000,
        paced: (1_000, 10_000),
        rounds: 3,
    },
};

pub(crate) const QUICK: Extent = Extent {
    spread: &[(4, 5_000), (250, 20), (1_000, 20)],
    resting: 10_000,
    busy: busy::Extent {
        bulk: 50_000,
        paced: (1_000, 3_000),
        rounds: 1,
    },
};

/// What one client of many streams found.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Spread {
    /// Streams.
    streams: usize,
    /// Seconds until the client is live on all of them while they are empty.
    live_after: f64,
    /// Events of each stream in each of the three runs.
    events: u64,
    /// Events that are published and applied while writers commit them.
    live: Carried,
    /// The same of a committed backlog, from the start of the bridge.
    backlog: Carried,
    /// Twice as many events that a client reads which was away, from its start.
    away: Carried,
}

/// How fast events were carried, and at what cost.
#[derive(Debug, Clone, Copy, Serialize)]
struct Carried {
    /// Events per second.
    per_second: f64,
    /// Microseconds of CPU per event: bridge, host and client.
    cpu_us: [f64; 3],
    /// Connections that the client replaced because it held too many rows.
    replaced: u64,
}

/// Watches a bridge, a host and a client while events are carried.
struct Watch {
    started: Instant,
    processes: [Option<u32>; 3],
    before: [Duration; 3],
}

impl Watch {
    fn start(lane: &Lane, bridge: Option<&Bridge>, crowd: &Crowd) -> anyhow::Result<Self> {
        let bridge = bridge.map(|bridge| bridge.process.id());
        let host = lane.server.process().map(Process::id);
        let processes = [bridge, host, Some(crowd.id()?)];
        Ok(Self {
            started: Instant::now(),
            processes,
            before: Self::used(&processes),
        })
    }

    fn used(processes: &[Option<u32>; 3]) -> [Duration; 3] {
        processes.map(|process| process.map_or(Duration::ZERO, cpu_of))
    }

    /// Waits until the crowd has applied everything.
    async fn carried(self, mut crowd: Crowd, events: u64) -> anyhow::Result<Carried> {
        let reached = tokio::time::timeout(LIMIT, crowd.reached(events)).await;
        reached.context("the client took too long")??;
        let (took, after) = (self.started.elapsed(), Self::used(&self.processes));
        let replaced = crowd.done().await?.overfull;
        let us = |at: usize| two(after[at].saturating_sub(self.before[at]).as_secs_f64() * 1e6 / events as f64);
        Ok(Carried {
            per_second: rate(events, took).round(),
            cpu_us: [us(0), us(1), us(2)],
            replaced,
        })
    }
}

impl std::fmt::Display for Carried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [bridge, host, client] = self.cpu_us;
        write!(f, "{:.0} ({bridge:.1}/{host:.1}/{client:.1} µs", self.per_second)?;
        match self.replaced {
            0 => f.write_str(")"),
            replaced => write!(f, ", {replaced} connections replaced)"),
        }
    }
}

/// Commits so many events of each stream, in transactions of [`BATCH`].
async fn write(lane: &Lane, streams: &[StreamId], before: u64, each: u64) -> anyhow::Result<()> {
    let mut writers = JoinSet::new();
    for streams in streams.chunks(streams.len().div_ceil(WRITERS)) {
        let (authority, streams) = (lane.authority.clone(), streams.to_vec());
        writers.spawn(async move {
            let mut logs: Vec<_> = streams.iter().map(|id| (id, Log::after(id, SIZE, before))).collect();
            for _ in 0..each / BATCH {
                for (stream_id, log) in &mut logs {
                    let events = log.new_events(BATCH as usize);
                    authority.append_batch(stream_id, &events).await?;
                }
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(written) = writers.join_next().await {
        written??;
    }
    Ok(())
}

/// A lane with a bridge.
/// So many events on each of so many streams, of which one client sees all.
async fn spread(cluster: &Cluster, count: usize, each: u64) -> anyhow::Result<Spread> {
    let (lane, bridge) = busy::lane(cluster).await?;
    let streams: Vec<_> = (1..=count).map(stream).collect();
    let events = each * count as u64;
    // `held` is what the client has applied before, `events` what it is still to apply.
    let follow = |name: &'static str, member: Member, held: u64, events: u64| {
        let behaviour = Behaviour {
            until: Some(held + events),
            mark_every: Some(events),
            ..Behaviour::default()
        };
        Crowd::start(&lane, name, vec![member], behaviour)
    };

    let member = Member::new(&lane, &streams).await?;
    let started = Instant::now();
    let mut crowd = follow("live", member.clone(), 0, events)?;
    crowd.live().await?;
    let live_after = two(started.elapsed().as_secs_f64());
    let watch = Watch::start(&lane, Some(&bridge), &crowd)?;
    write(&lane, &streams, 0, each).await?;
    let live = watch.carried(crowd, events).await?;

    bridge.stop().await?;
    write(&lane, &streams, each, each).await?;
    let mut crowd = follow("backlog", member, events, events)?;
    crowd.live().await?;
    let bridge = lane.bridge()?;
    let watch = Watch::start(&lane, Some(&bridge), &crowd)?;
    let backlog = watch.carried(crowd, events).await?;

    let member = Member::new(&lane, &streams).await?;
    let crowd = follow("away", member, 0, 2 * events)?;
    let away = Watch::start(&lane, None, &crowd)?.carried(crowd, 2 * events).await?;
    Ok(Spread {
        streams: count,
        live_after,
        events: each,
        live,
        backlog,
        away,
    })
}

/// Creates streams that rest.
async fn create(lane: &Lane, resting: usize) -> anyhow::Result<()> {
    for first in (1..=resting).step_by(CHUNK) {
        let last = resting.min(first + CHUNK - 1);
        lane.sql(&format!(
            "select runtime.sync_append('bench.rests.' || n, 'first', 'run.event', convert_to('first', 'UTF8')) \
             from generate_series({first}, {last}) n"
        ))
        .await?;
    }
    anyhow::ensure!(lane.published(LIMIT).await, "{resting} streams were not published");
    Ok(())
}

impl Report {
    pub(crate) async fn streams(&mut self, extent: Extent) -> anyhow::Result<()> {
        self.say("events on few and on many streams, 512 B, one client; CPU per event of bridge/host/client");
        let mut spreads = Vec::new();
        for (count, each) in extent.spread {
            let found = spread(&self.cluster, *count, *each).await?;
            self.say(&format!(
                "  {count:>5} streams × {each}: {} per second while writers commit, {} of a backlog, {} of a client that was \
                 away; live on all after {:.2} s",
                found.live, found.backlog, found.away, found.live_after
            ));
            spreads.push(found);
        }
        self.say(&format!("four busy streams beside {} that rest", extent.resting));
        let (beside, ()) = busy::beside(&self.cluster, extent.busy, async |lane| {
            create(lane, extent.resting).await.map(|()| ((), ()))
        })
        .await?;
        let ratio = self.compared(&beside);
        self.put(
            "streams",
            json!({ "spread": spreads, "resting": extent.resting, "busy": beside, "ratio": ratio }),
        );
        Ok(())
    }
}
