//! The peers of the lane beside it: every contender does the same measures, in turn in every round. Tells medians, and what
//! each acknowledgement means.

mod contender;
mod debezium;
mod driven;
mod server;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use spacetime_sync_tests::figures::{median, since};
use spacetime_sync_tests::postgres::Cluster;

use crate::lane::{Runner, Times, Written, between};
use crate::measure::{Size, fsync_ms, memory_mb_per_second};
use crate::report::two;
use contender::Contender;

/// The payload of every event.
const SIZE: Size = Size::Bytes(512);
/// Single events per second.
const PACE: u64 = 1_000;
/// Streams of the measure with many, and with single events.
const MANY_STREAMS: usize = 16;
const PACED_STREAMS: usize = 4;
/// Subscribers of the measure with many.
const SUBSCRIBERS: usize = 20;

/// The first column of single events that begins with the acknowledgement.
const FROM_ACKNOWLEDGEMENT: usize = 2;
/// Below this, such a latency has no ratio: the consumer has an event when its writer's acknowledgement comes, or before.
const AT_ONCE_MS: f64 = 0.1;

/// How much to measure.
#[derive(Debug, Clone, Copy)]
struct Extent {
    rounds: usize,
    /// Events in bulk.
    events: u64,
    /// Events for each of many subscribers.
    events_for_many: u64,
    /// Events that a consumer has missed: so many that its start does not count for much.
    events_missed: u64,
    /// How long to publish single events.
    paced: Duration,
}

const FULL: Extent = Extent {
    rounds: 3,
    events: 400_000,
    events_for_many: 100_000,
    events_missed: 400_000,
    paced: Duration::from_secs(15),
};

const QUICK: Extent = Extent {
    rounds: 1,
    events: 80_000,
    events_for_many: 20_000,
    events_missed: 200_000,
    paced: Duration::from_secs(5),
};

/// What every contender does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Measure {
    /// Publish and consume at once.
    OneStream,
    ManyStreams,
    /// The same with many subscribers, each of which gets everything.
    Subscribers,
    /// Single events at a fixed rate.
    Single,
    /// A consumer that was away, with the work of a client of the lane.
    Away,
}

impl Measure {
    const ALL: [Self; 5] = [
        Self::OneStream,
        Self::ManyStreams,
        Self::Subscribers,
        Self::Single,
        Self::Away,
    ];

    fn key(self) -> &'static str {
        match self {
            Self::OneStream => "one_stream",
            Self::ManyStreams => "many_streams",
            Self::Subscribers => "subscribers",
            Self::Single => "single_events",
            Self::Away => "away",
        }
    }

    fn title(self) -> String {
        match self {
            Self::OneStream => "publish and consume at once, 1 stream".to_owned(),
            Self::ManyStreams => format!("publish and consume at once, {MANY_STREAMS} streams"),
            Self::Subscribers => format!("publish and consume at once, 1 stream, {SUBSCRIBERS} subscribers, each"),
            Self::Single => format!("{PACE} single events per second, {PACED_STREAMS} streams"),
            Self::Away => "a consumer that was away, with hashes, checkpoint and tally in SQLite".to_owned(),
        }
    }

    /// What its figures are.
    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::OneStream | Self::ManyStreams | Self::Subscribers | Self::Away => &["events/s"],
            Self::Single => &[
                "from publish p50 ms",
                "from publish p99 ms",
                "from acknowledgement p50 ms",
                "from acknowledgement p99 ms",
            ],
        }
    }

    /// The least figure of a peer that the lane's is divided by.
    fn least(self, column: usize) -> f64 {
        match self {
            Self::Single if column >= FROM_ACKNOWLEDGEMENT => AT_ONCE_MS,
            Self::OneStream | Self::ManyStreams | Self::Subscribers | Self::Single | Self::Away => f64::MIN_POSITIVE,
        }
    }
}

/// The figures of one run, one for each column of its measure.
type Figures = Vec<f64>;

/// The figures of single events.
fn latencies(written: &Written, consumed_at_us: &Times) -> anyhow::Result<Figures> {
    let published = between(&written.begun_at_us, consumed_at_us)?;
    let acknowledged = between(&written.committed_at_us, consumed_at_us)?;
    Ok(vec![
        published.p50_ms,
        published.p99_ms,
        acknowledged.p50_ms,
        acknowledged.p99_ms,
    ])
}

/// The lane itself.
async fn ours(cluster: &Cluster, measure: Measure, extent: &Extent) -> anyhow::Result<Figures> {
    let (events, many) = (extent.events, extent.events_for_many);
    match measure {
        Measure::OneStream => Ok(vec![Runner::start_with(cluster, 1).await?.live(events, SIZE, 1).await?]),
        Measure::ManyStreams => {
            let runner = Runner::start_with(cluster, MANY_STREAMS).await?;
            Ok(vec![runner.live(events, SIZE, 1).await?])
        }
        Measure::Subscribers => {
            let runner = Runner::start_with(cluster, 1).await?;
            Ok(vec![runner.live(many, SIZE, SUBSCRIBERS).await?])
        }
        Measure::Single => {
            let runner = Runner::start_with(cluster, PACED_STREAMS).await?;
            let (_, written, applied_at_us) = runner.paced(PACE, PACE * extent.paced.as_secs(), SIZE).await?;
            latencies(&written, &applied_at_us)
        }
        Measure::Away => {
            let runner = Runner::start_with(cluster, 1).await?;
            runner.write(extent.events_missed, SIZE).await?;
            Ok(vec![runner.catch_up(extent.events_missed).await?.events_per_second])
        }
    }
}

/// Measures the lane and every peer that is installed; one line of JSON at the end if requested.
pub(crate) async fn run(quick: bool, as_json: bool) -> anyhow::Result<()> {
    let (extent, started) = (if quick { &QUICK } else { &FULL }, Instant::now());
    let say = |text: &str| {
        if as_json {
            eprintln!("{} {text}", since(started));
        } else {
            println!("{} {text}", since(started));
        }
    };
    let cluster = Cluster::start().await?;
    let ((first, again), sync) = (memory_mb_per_second(), fsync_ms()?);
    say(&format!(
        "the machine: memory {first:.0} MB/s on first use, {again:.0} MB/s after; the disk takes {sync:.2} ms to sync"
    ));
    let (mut contenders, mut skipped) = (Vec::new(), Map::new());
    for contender in Contender::ALL {
        match contender.missing(&cluster) {
            None => contenders.push(contender),
            Some(why) => {
                say(&format!("{} is skipped: {why}", contender.name()));
                skipped.insert(contender.name().to_owned(), why.into());
            }
        }
    }
    for contender in &contenders {
        say(&format!("{}: {}", contender.name(), contender.acknowledges()));
    }
    let (mut runs, mut failed) = (Runs::new(), 0);
    for round in 1..=extent.rounds {
        for measure in Measure::ALL {
            for contender in contenders.iter().filter(|contender| contender.does(measure)) {
                let who = format!("round {round}: {}: {}", measure.title(), contender.name());
                match contender.measure(&cluster, measure, extent).await {
                    Ok(figures) => {
                        say(&format!("{who}: {}", told(measure, &figures)));
                        runs.entry((measure, *contender)).or_default().push(figures);
                    }
                    Err(error) => {
                        failed += 1;
                        say(&format!("{who}: FAILED: {error:#}"));
                    }
                }
            }
        }
    }
    let mut report = Map::new();
    for measure in Measure::ALL {
        say(&format!("{}, medians:", measure.title()));
        let mut of_measure = Map::new();
        for contender in &contenders {
            let Some(compared) = Compared::of(&runs, measure, *contender) else {
                continue;
            };
            say(&format!("  {:<27} {}", contender.name(), compared.text(measure)));
            of_measure.insert(contender.name().to_owned(), compared.json(measure));
        }
        report.insert(measure.key().to_owned(), of_measure.into());
    }
    if as_json {
        let acknowledges: Map<_, _> = contenders
            .iter()
            .map(|contender| (contender.name().to_owned(), contender.acknowledges().into()))
            .collect();
        let sync_ms = two(sync);
        println!(
            "{}",
            json!({ "peers": report, "acknowledges": acknowledges, "skipped": skipped, "sync_ms": sync_ms })
        );
    }
    anyhow::ensure!(failed == 0, "{failed} runs failed, see above");
    Ok(())
}

/// All figures so far.
type Runs = BTreeMap<(Measure, Contender), Vec<Figures>>;

/// A contender's medians, and those of the lane divided by them.
struct Compared {
    medians: Figures,
    ratios: Vec<Option<f64>>,
    runs: Vec<Figures>,
}

impl Compared {
    fn of(runs: &Runs, measure: Measure, contender: Contender) -> Option<Self> {
        let runs_of = |contender| runs.get(&(measure, contender));
        let own = medians(runs_of(contender)?);
        let ours = runs_of(Contender::Lane).filter(|_| contender != Contender::Lane);
        let ours = ours.map(|runs| medians(runs)).unwrap_or_default();
        let ratio =
            |(column, (ours, peer)): (usize, (&f64, &f64))| (*peer >= measure.least(column)).then(|| ours / peer);
        Some(Self {
            ratios: ours.iter().zip(&own).enumerate().map(ratio).collect(),
            medians: own,
            runs: runs_of(contender)?.clone(),
        })
    }

    fn text(&self, measure: Measure) -> String {
        let ratios: Vec<_> = self
            .ratios
            .iter()
            .map(|ratio| ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")))
            .collect();
        let told = told(measure, &self.medians);
        if ratios.is_empty() {
            told
        } else {
            format!("{told}; ours/peer {}", ratios.join(" / "))
        }
    }

    fn json(&self, measure: Measure) -> Value {
        let ratios: Map<_, _> = measure
            .columns()
            .iter()
            .zip(&self.ratios)
            .map(|(column, ratio)| ((*column).to_owned(), json!(ratio.map(two))))
            .collect();
        let medians: Map<_, _> = measure
            .columns()
            .iter()
            .zip(&self.medians)
            .map(|(column, figure)| ((*column).to_owned(), two(*figure).into()))
            .collect();
        json!({ "medians": medians, "ours_of_peer": ratios, "runs": self.runs })
    }
}

/// The median of each column.
fn medians(runs: &[Figures]) -> Figures {
    let columns = runs.first().map_or(0, Vec::len);
    (0..columns)
        .map(|column| median(&mut runs.iter().map(|figures| figures[column]).collect::<Vec<_>>()))
        .collect()
}

fn told(measure: Measure, figures: &[f64]) -> String {
    let decimals = if measure == Measure::Single { 2 } else { 0 };
    let columns = measure.columns().iter().zip(figures);
    let told: Vec<_> = columns
        .map(|(column, figure)| format!("{column} {figure:.decimals$}"))
        .collect();
    told.join(", ")
}
