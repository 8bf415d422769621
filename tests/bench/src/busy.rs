//! Four busy streams beside whatever else there is: how many events they carry in bulk, and how long single events take.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use spacetime_sync_proto::StreamId;
use spacetime_sync_tests::figures::{median, rate};
use spacetime_sync_tests::lane::{Bridge, Lane, stream};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::process::Cpu;
use spacetime_sync_tests::scene::ready;

use crate::background;
use crate::crowd::{Behaviour, Crowd, Member};
use crate::lane::{STREAMS, between, write, write_paced};
use crate::measure::Size;
use crate::report::{Report, two};

pub(crate) const LIMIT: Duration = Duration::from_secs(600);
pub(crate) const SIZE: Size = Size::Bytes(512);
/// The numbers of busy streams begin here, beyond those of all streams that rest.
pub(crate) const NUMBERS: usize = 1_000_000;

/// How much to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Events in bulk.
    pub(crate) bulk: u64,
    /// How many single events are committed in a second, and how many in all.
    pub(crate) paced: (u64, u64),
    /// How often each is measured. The median counts.
    pub(crate) rounds: usize,
}

/// What the busy streams carried.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Figures {
    /// Events per second with bulk writers, from the first commit until the last event is applied.
    pub(crate) per_second: f64,
    /// Microseconds of the host's CPU for each of them.
    pub(crate) host_us: f64,
    /// From the commit of a single event until it is applied: the median.
    pub(crate) p50_ms: f64,
    /// The 99th percentile.
    pub(crate) p99_ms: f64,
}

impl Figures {
    /// These figures divided by others.
    pub(crate) fn of(&self, others: &Self) -> Self {
        Self {
            per_second: self.per_second / others.per_second,
            host_us: self.host_us / others.host_us,
            p50_ms: self.p50_ms / others.p50_ms,
            p99_ms: self.p99_ms / others.p99_ms,
        }
    }
}

/// What busy streams carried without others, beside something, and without others again.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Beside {
    before: Figures,
    beside: Figures,
    after: Figures,
}

/// An empty lane with a bridge.
pub(crate) async fn lane(cluster: &Cluster) -> anyhow::Result<(Lane, Bridge)> {
    let lane = Lane::start_on(cluster).await?;
    let bridge = lane.bridge()?;
    ready(&bridge, LIMIT).await?;
    Ok((lane, bridge))
}

/// Measures on three new lanes. `rest` brings to the second what busy streams are to run beside; that stays until they
/// are measured.
pub(crate) async fn beside<T, F>(
    cluster: &Cluster,
    extent: Extent,
    rest: impl AsyncFnOnce(&Lane) -> anyhow::Result<(T, F)>,
) -> anyhow::Result<(Beside, F)> {
    let without = async || {
        let (lane, _bridge) = lane(cluster).await?;
        measure(&lane, extent).await
    };
    let before = without().await?;
    let (lane, bridge) = lane(cluster).await?;
    let (resting, found) = rest(&lane).await?;
    let beside = measure(&lane, extent).await?;
    drop((resting, bridge, lane));
    let after = without().await?;
    Ok((Beside { before, beside, after }, found))
}

impl Report {
    /// Tells what busy streams did beside something. Returns the ratio to what they did without it.
    pub(crate) fn compared(&self, found: &Beside) -> Figures {
        let Beside { before, beside, after } = found;
        let mean = |of: fn(&Figures) -> f64| f64::midpoint(of(before), of(after));
        let without = Figures {
            per_second: mean(|figures| figures.per_second),
            host_us: mean(|figures| figures.host_us),
            p50_ms: mean(|figures| figures.p50_ms),
            p99_ms: mean(|figures| figures.p99_ms),
        };
        for (what, figures) in [("before", before), ("beside", beside), ("after", after)] {
            self.figures(what, figures);
        }
        self.ratios(&beside.of(&without))
    }

    pub(crate) fn figures(&self, what: &str, figures: &Figures) {
        self.say(&format!(
            "  {what}: {:.0} in bulk per second, CPU of the host {:.2} µs per event; single events p50 {:.2} ms, p99 {:.2} ms",
            figures.per_second, figures.host_us, figures.p50_ms, figures.p99_ms
        ));
    }

    pub(crate) fn ratios(&self, ratio: &Figures) -> Figures {
        self.say(&format!(
            "  ratios: {:.2} in bulk, CPU of the host {:.2}, p50 {:.2}, p99 {:.2}",
            ratio.per_second, ratio.host_us, ratio.p50_ms, ratio.p99_ms
        ));
        Figures {
            per_second: two(ratio.per_second),
            host_us: two(ratio.host_us),
            p50_ms: two(ratio.p50_ms),
            p99_ms: two(ratio.p99_ms),
        }
    }
}

/// Measures on a lane whose bridge runs and which has no busy streams yet.
async fn measure(lane: &Lane, extent: Extent) -> anyhow::Result<Figures> {
    let (mut rates, mut host_us, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let streams = |first: usize| (first..first + STREAMS).map(stream).collect::<Vec<_>>();
    let mut first = NUMBERS;
    while rates.len() < extent.rounds {
        background::at_rest(lane).await;
        let segments = background::segments(lane);
        let (rate, us) = in_bulk(lane, &streams(first), extent.bulk).await?;
        let (median, slowest) = one_by_one(lane, &streams(first + STREAMS), extent.paced).await?;
        first += 2 * STREAMS;
        if background::segments(lane) == segments {
            rates.push(rate);
            host_us.push(us);
            p50.push(median);
            p99.push(slowest);
        }
    }
    Ok(Figures {
        per_second: median(&mut rates),
        host_us: median(&mut host_us),
        p50_ms: median(&mut p50),
        p99_ms: median(&mut p99),
    })
}

/// A client that is live on these streams, which are new.
pub(crate) async fn follower(lane: &Lane, streams: &[StreamId], events: u64, each: bool) -> anyhow::Result<Crowd> {
    let member = Member::new(lane, streams).await?;
    let behaviour = Behaviour {
        until: Some(events),
        each,
        ..Behaviour::default()
    };
    let mut crowd = Crowd::start(lane, streams[0].as_str(), vec![member], behaviour)?;
    tokio::time::timeout(LIMIT, crowd.live())
        .await
        .context("the client did not become live")??;
    Ok(crowd)
}

async fn in_bulk(lane: &Lane, streams: &[StreamId], events: u64) -> anyhow::Result<(f64, f64)> {
    let crowd = follower(lane, streams, events, false).await?;
    let host = lane.server.process().context("the host is not ours")?.id();
    let (started, before) = (Instant::now(), cpu_of(host));
    write(&lane.authority, streams, events, SIZE).await?;
    tokio::time::timeout(LIMIT, crowd.done())
        .await
        .context("the client took too long")??;
    let host_us = cpu_of(host).saturating_sub(before).as_secs_f64() * 1e6 / events as f64;
    Ok((rate(events, started.elapsed()), host_us))
}

/// CPU time of a process so far.
pub(crate) fn cpu_of(process: u32) -> Duration {
    Cpu::of(&process.to_string()).unwrap_or_default().whole()
}

pub(crate) async fn one_by_one(lane: &Lane, streams: &[StreamId], paced: (u64, u64)) -> anyhow::Result<(f64, f64)> {
    let (per_second, events) = paced;
    let crowd = follower(lane, streams, events, true).await?;
    let (written, report) = tokio::join!(
        write_paced(&lane.authority, streams, per_second, events, SIZE),
        tokio::time::timeout(LIMIT, crowd.done())
    );
    let report = report.context("the client took too long")??;
    let latency = between(&written?.committed_at_us, &report.applied_at_us)?;
    Ok((latency.p50_ms, latency.p99_ms))
}
