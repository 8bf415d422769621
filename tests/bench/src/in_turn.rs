//! Busy streams without something and beside it, in turn, so that whatever else the machine does meanwhile affects both alike.

use std::cell::Cell;
use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use spacetime_sync_proto::StreamId;
use spacetime_sync_tests::figures::{Middle, median, middle};
use spacetime_sync_tests::lane::{Lane, stream};

use crate::background;
use crate::busy::{Extent, Figures, LIMIT, NUMBERS, SIZE, cpu_of, follower, one_by_one};
use crate::lane::{STREAMS, write};
use crate::measure::now_us;
use crate::report::Report;

/// For how long events in bulk are counted before it is the other's turn.
const TURN: Duration = Duration::from_millis(1_500);
/// Something has gone on, or rested, for this long before events are counted: what was under way is over.
const SETTLED: Duration = Duration::from_millis(300);

/// What busy streams carried without something and beside it.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct InTurn {
    without: Figures,
    beside: Figures,
    ratio: Figures,
    /// In bulk, of the ratios of all pairs of turns.
    of_pairs: Middle,
    pairs: usize,
}

/// What was carried in bulk in a turn.
#[derive(Debug, Clone, Copy, Default)]
struct Turn {
    is_beside: bool,
    events: f64,
    seconds: f64,
    /// CPU time of the host, in seconds.
    host: f64,
}

impl Turn {
    fn rate(&self) -> f64 {
        self.events / self.seconds
    }
}

/// Measures on one lane. `set` has something go on or rest. In bulk, it does so in turn while events flow, and each of its two turns is
/// compared with the other one next to it.
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
    let mut pairs = Vec::new();
    for _ in 0..extent.rounds {
        background::at_rest(lane).await;
        pairs.extend(in_bulk(lane, &streams(), extent.bulk, &mut set).await?);
    }
    anyhow::ensure!(!pairs.is_empty(), "too few events for a turn of each");
    let (mut p50, mut p99) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..extent.rounds {
        for is_beside in [round % 2 == 0, round % 2 == 1] {
            set(is_beside).await?;
            tokio::time::sleep(SETTLED).await;
            background::at_rest(lane).await;
            let (middle, slowest) = one_by_one(lane, &streams(), extent.paced).await?;
            p50[usize::from(is_beside)].push(middle);
            p99[usize::from(is_beside)].push(slowest);
        }
    }
    let mut figures = |at: usize| {
        let of = |what: fn(&Turn) -> f64| pairs.iter().map(|pair: &[Turn; 2]| what(&pair[at])).sum::<f64>();
        Figures {
            per_second: of(|turn| turn.events) / of(|turn| turn.seconds),
            host_us: of(|turn| turn.host) * 1e6 / of(|turn| turn.events),
            p50_ms: median(&mut p50[at]),
            p99_ms: median(&mut p99[at]),
        }
    };
    let (without, beside) = (figures(0), figures(1));
    let ratios = pairs.iter().map(|[without, beside]| beside.rate() / without.rate());
    Ok(InTurn {
        ratio: beside.of(&without),
        without,
        beside,
        of_pairs: middle(&mut ratios.collect::<Vec<_>>()),
        pairs: pairs.len(),
    })
}

/// Has bulk writers commit events, and counts what a client applies in the turns of one and the other. Returns pairs of turns next to
/// each other, the one without first.
async fn in_bulk(
    lane: &Lane,
    streams: &[StreamId],
    events: u64,
    set: &mut impl AsyncFnMut(bool) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<[Turn; 2]>> {
    let crowd = follower(lane, streams, events, true).await?;
    let host = lane.server.process().context("the host is not ours")?.id();
    let mut turns = Vec::new();
    let alternate = async {
        loop {
            // What becomes slower all the time affects both alike in this order: beside, without, without, beside.
            let is_beside = matches!(turns.len() % 4, 0 | 3);
            set(is_beside).await?;
            tokio::time::sleep(SETTLED).await;
            let (from_us, before) = (now_us(), cpu_of(host));
            tokio::time::sleep(TURN).await;
            let host = cpu_of(host).saturating_sub(before).as_secs_f64();
            turns.push((is_beside, from_us..now_us(), host));
        }
        #[expect(unreachable_code, reason = "it says what the block returns")]
        anyhow::Ok::<Infallible>(unreachable!())
    };
    tokio::select! {
        written = write(&lane.authority, streams, events, SIZE) => written?,
        failed = alternate => match failed? {},
    }
    // Once the writers are done, the client has their part of the machine, too.
    let written_us = now_us();
    let report = tokio::time::timeout(LIMIT, crowd.done()).await;
    let report = report.context("the client took too long")??;
    let mut applied: Vec<i64> = report.applied_at_us.into_values().flatten().collect();
    applied.sort_unstable();
    let before = |at_us: i64| applied.partition_point(|applied_us| *applied_us < at_us);
    let whole = turns.into_iter().filter(|(_, time, _)| time.end <= written_us);
    let turns: Vec<Turn> = whole
        .map(|(is_beside, time, host)| Turn {
            is_beside,
            events: (before(time.end) - before(time.start)) as f64,
            seconds: (time.end - time.start) as f64 / 1e6,
            host,
        })
        .collect();
    let pair = |two: &[Turn]| {
        let mut pair = [Turn::default(); 2];
        two.iter().for_each(|turn| pair[usize::from(turn.is_beside)] = *turn);
        pair
    };
    Ok(turns.chunks_exact(2).map(pair).collect())
}

impl Report {
    /// Tells what busy streams did without something and beside it. Returns the ratio in bulk, of the pairs.
    pub(crate) fn in_turn(&self, found: &InTurn) -> Middle {
        self.figures("without", &found.without);
        self.figures("beside", &found.beside);
        self.ratios(&found.ratio);
        let Middle { median, low, high } = found.of_pairs;
        self.say(&format!(
            "  in bulk, the median of {} pairs is {median:.2}, and lies between {low:.2} and {high:.2} with a certainty of 95 %",
            found.pairs
        ));
        found.of_pairs
    }
}
