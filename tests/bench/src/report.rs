//! Runs all measurements in order, prints each result as it comes, and a summary at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::ValueEnum as _;
use serde_json::{Map, Value, json};

use crate::bare::{self, Cut, Window};
use crate::lane::{Run, Runner, between};
use crate::measure::{Size, fsync_ms, in_memory, memory_mb_per_second};
use crate::{documents, fan, gate, hostile, idle, long, minting, project, reconnect, sessions, streams};
use spacetime_sync_tests::figures::{median, rate, since};
use spacetime_sync_tests::postgres::Cluster;

/// Events per second at which to measure latency.
const PACE: u64 = 1_000;

/// How much to measure.
struct Extent {
    /// Payload sizes for SpacetimeDB alone.
    sizes: &'static [Size],
    /// Payload sizes for the whole lane.
    lane_sizes: &'static [Size],
    /// What is timed at once.
    window: Window,
    /// Events that a full table holds.
    held: u64,
    /// The window and the events held for runs of single events, which take longer, and their payload sizes.
    live: (Window, u64),
    live_sizes: &'static [Size],
    /// Events in a run of the whole lane.
    lane: u64,
    /// Runs of the lane and of SpacetimeDB alone, in turn.
    rounds: usize,
    /// Clients in the run with many.
    many: usize,
    /// How long to commit single events at a fixed rate.
    paced: Duration,
    /// How long to request tokens.
    minting: Duration,
    /// Stream counts of a bridge that loses its link, and how often it does.
    reconnect: (&'static [usize], usize),
    /// What goes through the gate, and without it.
    gate: gate::Extent,
    /// How long an honest client is measured beside a hostile one.
    hostile: hostile::Extent,
}

const FULL: Extent = Extent {
    sizes: &Size::ALL,
    lane_sizes: &Size::ALL,
    window: Window {
        events: 100_000,
        bytes: 128 << 20,
        samples: 5,
    },
    held: 500_000,
    live: (
        Window {
            events: 25_000,
            bytes: 128 << 20,
            samples: 5,
        },
        500_000,
    ),
    live_sizes: &[Size::Bytes(256), Size::Bytes(480), Size::Mix],
    lane: 400_000,
    rounds: 3,
    many: 20,
    paced: Duration::from_secs(30),
    minting: Duration::from_secs(20),
    reconnect: (&[1_000, 10_000, 100_000], 5),
    gate: gate::Extent {
        events: 400_000,
        rounds: 5,
        paced: (1_000, 30_000),
        idle: 2_000,
    },
    hostile: hostile::Extent {
        per_second: 200,
        backlog: 100_000,
        quiet: Duration::from_secs(6),
        each: Duration::from_secs(10),
        worst: Duration::from_secs(60),
    },
};

const QUICK: Extent = Extent {
    sizes: &[Size::Bytes(64), Size::Bytes(512), Size::Mix],
    lane_sizes: &[Size::Bytes(512)],
    window: Window {
        events: 100_000,
        bytes: 128 << 20,
        samples: 3,
    },
    held: 500_000,
    live: (
        Window {
            events: 10_000,
            bytes: 128 << 20,
            samples: 3,
        },
        50_000,
    ),
    live_sizes: &[Size::Bytes(480)],
    lane: 200_000,
    rounds: 1,
    many: 5,
    paced: Duration::from_secs(6),
    minting: Duration::from_secs(5),
    reconnect: (&[1_000], 3),
    gate: gate::Extent {
        events: 200_000,
        rounds: 3,
        paced: (1_000, 6_000),
        idle: 500,
    },
    hostile: hostile::Extent {
        per_second: 200,
        backlog: 100_000,
        quiet: Duration::from_secs(1),
        each: Duration::from_millis(1_500),
        worst: Duration::from_secs(5),
    },
};

/// A part of the report. Each part can run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// SpacetimeDB without Postgres, with frames as for a backlog.
    Alone,
    /// The same with one event per frame.
    Live,
    /// A committed backlog through the whole lane.
    Lane,
    /// The same with many clients.
    Many,
    /// Bulk writers at the same time.
    Stream,
    /// A client that was away.
    Away,
    /// The time from commit to applied of single events.
    Latency,
    /// Documents of projectors and tables, beside plain appends and plain writes.
    Project,
    /// The first sync of documents.
    Documents,
    /// Tokens issued by a bridge on one core.
    Minting,
    /// The first event after the bridge has lost its link, by number of streams.
    Reconnect,
    /// The same client through the gate and without it.
    Gate,
    /// An honest client through the gate beside a hostile one.
    Hostile,
    /// Many subscribers of one stream.
    Fan,
    /// Many streams, and busy streams beside many that rest.
    Streams,
    /// Clients that rest, and busy streams beside them.
    Idle,
    /// Sessions that say how they are and assignments that change, busy streams beside them, and what each call costs.
    Sessions,
    /// One long stream.
    Long,
}

/// Measures these parts, or all, and prints the results; one line of JSON at the end if requested.
pub(crate) async fn run(quick: bool, as_json: bool, only: &[Part]) -> anyhow::Result<()> {
    let mut report = Report {
        extent: if quick { &QUICK } else { &FULL },
        as_json,
        started: Instant::now(),
        cluster: Cluster::start().await?,
        json: Map::new(),
        runs: Vec::new(),
    };
    report.machine()?;
    for part in Part::value_variants() {
        if !only.is_empty() && !only.contains(part) {
            continue;
        }
        match part {
            Part::Alone => report.alone().await?,
            Part::Live => report.live().await?,
            Part::Lane => report.lane().await?,
            Part::Many => report.many().await?,
            Part::Stream => report.stream().await?,
            Part::Away => report.away().await?,
            Part::Latency => report.latency().await?,
            Part::Project => {
                project::run(
                    &mut report,
                    if quick {
                        Duration::from_secs(2)
                    } else {
                        Duration::from_secs(10)
                    },
                )
                .await?
            }
            Part::Documents => documents::run(&mut report, if quick { 10_000 } else { 100_000 }).await?,
            Part::Minting => report.minting().await?,
            Part::Reconnect => report.reconnect().await?,
            Part::Gate => report.gate().await?,
            Part::Hostile => report.hostile().await?,
            Part::Fan => report.fan(if quick { fan::QUICK } else { fan::FULL }).await?,
            Part::Streams => {
                report
                    .streams(if quick { streams::QUICK } else { streams::FULL })
                    .await?
            }
            Part::Idle => report.idle(if quick { idle::QUICK } else { idle::FULL }).await?,
            Part::Sessions => {
                report
                    .sessions(if quick { sessions::QUICK } else { sessions::FULL })
                    .await?
            }
            Part::Long => report.long(if quick { long::QUICK } else { long::FULL }).await?,
        }
    }
    if as_json {
        report.put("peak_rss_mb", peaks(report.runs.iter()));
        println!("{}", Value::Object(report.json));
    }
    Ok(())
}

pub(crate) struct Report {
    extent: &'static Extent,
    as_json: bool,
    started: Instant,
    pub(crate) cluster: Cluster,
    json: Map<String, Value>,
    /// The runs whose memory the summary reports.
    runs: Vec<Run>,
}

impl Report {
    pub(crate) fn say(&self, text: &str) {
        if self.as_json {
            eprintln!("{} {text}", since(self.started));
        } else {
            println!("{} {text}", since(self.started));
        }
    }

    pub(crate) fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.json.insert(key.to_owned(), value.into());
    }

    /// Measures the machine: the same program on the same machine may be five times slower at another hour.
    fn machine(&mut self) -> anyhow::Result<()> {
        let ((first, again), sync) = (memory_mb_per_second(), fsync_ms()?);
        self.say(&format!(
            "the machine: memory {first:.0} MB/s on first use, {again:.0} MB/s after; the disk takes \
             {sync:.2} ms to sync"
        ));
        self.put(
            "machine",
            json!({ "first_use_mb_per_second": first.round(), "memory_mb_per_second": again.round(), "sync_ms": two(sync) }),
        );
        Ok(())
    }

    async fn alone(&mut self) -> anyhow::Result<()> {
        self.say("SpacetimeDB alone: frames as for a backlog; events per second, the median of several windows");
        let Extent { window, held, .. } = *self.extent;
        let (mut flatness, mut cpu_flatness) = (BTreeMap::new(), BTreeMap::new());
        let in_memory = Cut {
            on_disk: false,
            ..Cut::BACKLOG
        };
        for size in self.extent.sizes {
            // Without subscribers: a plain subscriber keeps everything it gets, and would become the bottleneck.
            let run = bare::run(*size, in_memory, window, held, 0).await?;
            self.say(&format!("  {:>5} B, log in memory: {}", size.name(), flat(&run)));
            flatness.insert(size.name(), two(run.flatness()));
            cpu_flatness.insert(size.name(), two(run.cpu_flatness()));
        }
        let alone = bare::run(Size::Bytes(512), Cut::BACKLOG, window, held, 0).await?;
        self.say(&format!("    512 B, log on disk:   {}", flat(&alone)));
        self.put("flatness", json!(flatness));
        self.put("cpu_flatness", json!(cpu_flatness));
        Ok(())
    }

    async fn live(&mut self) -> anyhow::Result<()> {
        self.say("SpacetimeDB alone: one event per frame, as live");
        let (window, held) = self.extent.live;
        let mut flatness = BTreeMap::new();
        for size in self.extent.live_sizes {
            let in_memory = Cut {
                on_disk: false,
                ..Cut::LIVE
            };
            let run = bare::run(*size, in_memory, window, held, 0).await?;
            self.say(&format!("  {:>5} B: {}", size.name(), flat(&run)));
            flatness.insert(size.name(), two(run.flatness()));
        }
        self.put("flatness_single_events", json!(flatness));
        Ok(())
    }

    async fn lane(&mut self) -> anyhow::Result<()> {
        self.say("the whole lane: a committed backlog, one client; beside SpacetimeDB alone with one subscriber");
        let events = self.extent.lane;
        // As many events at once as the lane carries: a short burst would not meet a busy disk or used memory.
        let as_much = Window {
            events,
            bytes: u64::MAX,
            samples: 1,
        };
        let (mut bare_rates, mut lane_rates) = (BTreeMap::new(), BTreeMap::new());
        for size in self.extent.lane_sizes {
            // The two run in turn, so that other load on the machine affects both.
            let (mut bare, mut lane, mut written, mut last) = (Vec::new(), Vec::new(), Vec::new(), None);
            for _ in 0..self.extent.rounds {
                bare.push(bare::empty(*size, Cut::BACKLOG, as_much, 1).await?.rate);
                let runner = Runner::start(&self.cluster).await?;
                let (took, writing) = runner.write_measured(events, *size).await?;
                written.push(rate(events, took));
                let mut run = runner.drain(events, 1).await?;
                run.cpu.writing = writing;
                lane.push(run.events_per_second);
                last = Some(run);
            }
            let (bare, lane) = (median(&mut bare), median(&mut lane));
            let Some(run) = last else { continue };
            self.say(&format!(
                "  {:>5} B: {lane:>7.0}, alone {bare:>7.0} (ratio {:.2}); written at {:.0}; {}; {}",
                size.name(),
                lane / bare,
                median(&mut written),
                run.cpu,
                memory(&run)
            ));
            bare_rates.insert(size.name(), bare.round());
            lane_rates.insert(size.name(), lane.round());
            if *size == Size::Bytes(512) {
                self.put("bare_events_per_second", bare.round());
                self.put("lane_events_per_second", lane.round());
                self.put("lane_of_bare", two(lane / bare));
                self.put("cpu_us_drain", run.cpu.json());
                self.runs.push(run);
            }
        }
        self.put("bare_by_payload", json!(bare_rates));
        self.put("lane_by_payload", json!(lane_rates));
        Ok(())
    }

    async fn many(&mut self) -> anyhow::Result<()> {
        let (events, clients) = (self.extent.lane / 2, self.extent.many);
        self.say(&format!(
            "the whole lane: a committed backlog, 512 B, {clients} clients"
        ));
        let runner = Runner::start(&self.cluster).await?;
        runner.write(events, Size::Bytes(512)).await?;
        let run = runner.drain(events, clients).await?;
        self.say(&format!(
            "  {:>7.0} each, {:.0} deliveries per second",
            run.events_per_second,
            run.events_per_second * clients as f64
        ));
        self.put(
            "clients",
            json!({ "many": clients, "events_per_second_each": run.events_per_second.round() }),
        );
        Ok(())
    }

    async fn stream(&mut self) -> anyhow::Result<()> {
        self.say("the whole lane with bulk writers at the same time, 512 B, one client");
        let runner = Runner::start(&self.cluster).await?;
        let run = runner.stream(self.extent.lane, Size::Bytes(512), 1).await?;
        self.say(&format!(
            "  {:>7.0} committed, published and applied per second; {}; {}",
            run.events_per_second,
            run.cpu,
            memory(&run)
        ));
        self.put("cpu_us_stream", run.cpu.json());
        self.put("streaming_events_per_second", run.events_per_second.round());
        self.runs.push(run);
        Ok(())
    }

    async fn away(&mut self) -> anyhow::Result<()> {
        self.say("a client that was away, 512 B");
        let runner = Runner::start(&self.cluster).await?;
        runner.write(self.extent.lane, Size::Bytes(512)).await?;
        let run = runner.catch_up(self.extent.lane).await?;
        self.say(&format!(
            "  {:>7.0} events per second from start to live; {}",
            run.events_per_second,
            memory(&run)
        ));
        self.put("catch_up_events_per_second", run.events_per_second.round());
        self.runs.push(run);
        Ok(())
    }

    async fn latency(&mut self) -> anyhow::Result<()> {
        self.say(&format!(
            "latency at {PACE} single events per second, 512 B, commit to applied"
        ));
        let events = PACE * self.extent.paced.as_secs();
        let memory_only = Cluster::start_in(&in_memory()).await?;
        for (cluster, parent, place, key) in [
            (&self.cluster, std::env::temp_dir(), "on the disk", ""),
            (&memory_only, in_memory(), "in memory  ", "_in_memory"),
        ] {
            let runner = Runner::start_in(cluster, &parent).await?;
            let (run, written, applied_at_us) = runner.paced(PACE, events, Size::Bytes(512)).await?;
            let from_commit = between(&written.committed_at_us, &applied_at_us)?;
            let from_append = run.clients[0].from_append;
            self.say(&format!(
                "  {place}: from commit {from_commit}; from append {from_append}; {}; {}",
                run.cpu,
                memory(&run)
            ));
            self.json.insert(format!("cpu_us_single{key}"), run.cpu.json());
            for (name, value) in [
                ("p50_ms", from_commit.p50_ms),
                ("p99_ms", from_commit.p99_ms),
                ("p999_ms", from_commit.p999_ms),
                ("max_ms", from_commit.max_ms),
                ("p50_ms_from_append", from_append.p50_ms),
                ("p99_ms_from_append", from_append.p99_ms),
                ("p999_ms_from_append", from_append.p999_ms),
                ("max_ms_from_append", from_append.max_ms),
            ] {
                self.json.insert(format!("{name}{key}"), two(value).into());
            }
            self.runs.push(run);
        }
        Ok(())
    }

    async fn minting(&mut self) -> anyhow::Result<()> {
        self.say("tokens: a bridge on one core, many sessions over kept connections");
        let minted = minting::run(&self.cluster, self.extent.minting).await?;
        self.say(&format!(
            "  {:>7.0} per second, {}; bridge {} MB",
            minted.per_second, minted.took, minted.bridge_mb
        ));
        self.put("minting_per_second", minted.per_second.round());
        self.put("minting_p50_ms", two(minted.took.p50_ms));
        self.put("minting_p99_ms", two(minted.took.p99_ms));
        Ok(())
    }

    async fn gate(&mut self) -> anyhow::Result<()> {
        self.say("the gate: the same client without it and through it");
        let cost = gate::run(&self.cluster, self.extent.gate).await?;
        let ratio = cost.gated_per_second / cost.direct_per_second;
        self.say(&format!(
            "  a client that was away: {:.0}/s without, {:.0}/s through the gate, {ratio:.2}",
            cost.direct_per_second, cost.gated_per_second
        ));
        let ratio = cost.live_gated_per_second / cost.live_direct_per_second;
        self.say(&format!(
            "  a client that follows bulk writers: {:.0}/s without, {:.0}/s through the gate, {ratio:.2}",
            cost.live_direct_per_second, cost.live_gated_per_second
        ));
        self.say(&format!(
            "  the same single events: {} without; {} through the gate",
            cost.direct, cost.gated
        ));
        self.say(&format!(
            "  {:.1} KB for each of {} silent clients",
            cost.idle_kb, cost.idle
        ));
        self.put("gate", json!(cost));
        Ok(())
    }

    async fn hostile(&mut self) -> anyhow::Result<()> {
        let extent = self.extent.hostile;
        self.say(&format!(
            "one hostile session beside a client that applies {} single events per second through the gate; from commit, \
             quiet and hostile windows in turn",
            extent.per_second
        ));
        let costs = hostile::run(&self.cluster, extent).await?;
        for cost in &costs {
            let (of_p50, of_p99) = cost.ratio;
            self.say(&format!(
                "  {:>14} for {:>4.1} s: {}, beside {} ({of_p50:.2} and {of_p99:.2} times p50 and p99); it said {} things, \
                 {} were refused, {} times closed, {:.2} s of CPU",
                cost.kind.name(),
                cost.seconds,
                cost.hostile,
                cost.quiet,
                cost.tally.said,
                cost.tally.refused,
                cost.tally.closed,
                cost.cpu_seconds
            ));
        }
        self.put("hostile", json!(costs));
        Ok(())
    }

    async fn reconnect(&mut self) -> anyhow::Result<()> {
        self.say("a bridge that loses its link: time until a client has the next event");
        let (counts, cuts) = self.extent.reconnect;
        let mut seconds = BTreeMap::new();
        for streams in counts {
            let found = reconnect::run(&self.cluster, *streams, cuts).await?;
            self.say(&format!(
                "  {streams:>7} streams: median {:.2} s, longest {:.2} s; publishing their first events took {:.1} s",
                found.delivered.as_secs_f64(),
                found.longest.as_secs_f64(),
                found.publish.as_secs_f64()
            ));
            seconds.insert(streams.to_string(), two(found.delivered.as_secs_f64()));
        }
        self.put("reconnect_seconds_by_streams", json!(seconds));
        Ok(())
    }
}

fn flat(run: &bare::Run) -> String {
    let compression = if run.beside_compression.is_empty() {
        String::new()
    } else {
        let rates: Vec<_> = run.beside_compression.iter().map(|rate| format!("{rate:.0}")).collect();
        format!("; during the engine's compression {}", rates.join(", "))
    };
    format!(
        "{:>7.0} on an empty table, {:>7.0} with {} held: flatness {:.2}, CPU flatness {:.2}; host {} MB{compression}",
        run.empty(),
        run.full(),
        run.held,
        run.flatness(),
        run.cpu_flatness(),
        run.host_mb
    )
}

fn memory(run: &Run) -> String {
    let client = run.clients.iter().map(|client| client.peak_rss_mb).max().unwrap_or(0);
    format!(
        "peak memory: bridge {} MB, host {} MB, client {client} MB",
        run.bridge_mb, run.host_mb
    )
}

fn peaks<'a>(runs: impl Iterator<Item = &'a Run> + Clone) -> Value {
    let most = |of: fn(&Run) -> u64| runs.clone().map(of).max().unwrap_or(0);
    json!({
        "bridge": most(|run| run.bridge_mb),
        "host": most(|run| run.host_mb),
        "client": most(|run| run.clients.iter().map(|client| client.peak_rss_mb).max().unwrap_or(0)),
    })
}

pub(crate) fn two(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
