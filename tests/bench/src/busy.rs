//! Four busy streams beside whatever else there is: how many events they carry in bulk, and how long single events take.

use std::cell::Cell;
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

const LIMIT: Duration = Duration::from_secs(600);
const SIZE: Size = Size::Bytes(512);
/// The numbers of busy streams begin here, beyond those of all streams that rest.
const NUMBERS: usize = 1_000_000;
/// How long something has gone on, or rested, before it is measured.
const SETTLED: Duration = Duration::from_secs(1);

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

/// What busy streams carried without something and beside it, in turn.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct InTurn {
    without: Figures,
    beside: Figures,
    ratio: Figures,
    /// The lowest and the highest ratio of a pair, in bulk: how much the machine does besides.
    between: (f64, f64),
}

/// Measures on one lane in pairs, without something and beside it, so that what else the machine does meanwhile affects both of a
/// pair. `set` has it go on or rest.
pub(crate) async fn in_turn(
    lane: &Lane,
    extent: Extent,
    mut set: impl AsyncFnMut(bool) -> anyhow::Result<()>,
) -> anyhow::Result<InTurn> {
    let numbers = Cell::new(NUMBERS);
    let streams = || {
        let first = numbers.replace(numbers.get() + STREAMS);
        (first..first + STREAMS).map(stream).collect::<Vec<_>>()
    };
    let bulk = async || in_bulk(lane, &streams(), extent.bulk).await;
    let bulk = pairs(lane, extent.rounds, &mut set, bulk).await?;
    let single = async || one_by_one(lane, &streams(), extent.paced).await;
    let single = pairs(lane, extent.rounds, &mut set, single).await?;
    let figures = |at: usize| {
        let middle =
            |pairs: &[Pair], of: fn(Two) -> f64| median(&mut pairs.iter().map(|pair| of(pair[at])).collect::<Vec<_>>());
        // All events by all seconds.
        let seconds: f64 = bulk.iter().map(|pair| pair[at].0.recip()).sum();
        Figures {
            per_second: bulk.len() as f64 / seconds,
            host_us: middle(&bulk, |two| two.1),
            p50_ms: middle(&single, |two| two.0),
            p99_ms: middle(&single, |two| two.1),
        }
    };
    let (without, beside) = (figures(0), figures(1));
    let ratios = bulk.iter().map(|[without, beside]| beside.0 / without.0);
    let between = ratios.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), ratio| {
        (low.min(ratio), high.max(ratio))
    });
    Ok(InTurn {
        ratio: beside.of(&without),
        without,
        beside,
        between: (two(between.0), two(between.1)),
    })
}

/// Two figures of one measurement.
type Two = (f64, f64);
/// Without something, and beside it.
type Pair = [Two; 2];

async fn pairs(
    lane: &Lane,
    rounds: usize,
    set: &mut impl AsyncFnMut(bool) -> anyhow::Result<()>,
    measure: impl AsyncFn() -> anyhow::Result<Two>,
) -> anyhow::Result<Vec<Pair>> {
    let (mut pairs, mut begins_beside) = (Vec::new(), false);
    while pairs.len() < rounds {
        begins_beside = !begins_beside;
        let segments = background::segments(lane);
        let mut pair = [(0.0, 0.0); 2];
        for is_beside in [begins_beside, !begins_beside] {
            set(is_beside).await?;
            tokio::time::sleep(SETTLED).await;
            background::at_rest(lane).await;
            pair[usize::from(is_beside)] = measure().await?;
        }
        // What the engine does in the background would count for one of the two.
        if background::segments(lane) == segments {
            pairs.push(pair);
        }
    }
    Ok(pairs)
}

impl Report {
    /// Tells what busy streams did without something and beside it, in turn. Returns the ratio.
    pub(crate) fn in_turn(&self, found: &InTurn) -> Figures {
        self.figures("without", &found.without);
        self.figures("beside", &found.beside);
        let (low, high) = found.between;
        self.say(&format!(
            "  in bulk, the ratios of pairs lie between {low:.2} and {high:.2}"
        ));
        self.ratios(&found.ratio)
    }

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

    fn figures(&self, what: &str, figures: &Figures) {
        self.say(&format!(
            "  {what}: {:.0} in bulk per second, CPU of the host {:.2} µs per event; single events p50 {:.2} ms, p99 {:.2} ms",
            figures.per_second, figures.host_us, figures.p50_ms, figures.p99_ms
        ));
    }

    fn ratios(&self, ratio: &Figures) -> Figures {
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
async fn follower(lane: &Lane, streams: &[StreamId], events: u64, each: bool) -> anyhow::Result<Crowd> {
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

async fn one_by_one(lane: &Lane, streams: &[StreamId], paced: (u64, u64)) -> anyhow::Result<(f64, f64)> {
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
