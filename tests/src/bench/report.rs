//! All measurements in their order, told as they come and summed up in the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::bare::{self, Cut};
use super::lane::{Run, Runner};
use super::minting;
use super::{Size, since};
use crate::postgres::Cluster;

/// Events per second at which the latency is measured.
const PACE: u64 = 1_000;

/// How much is measured.
struct Extent {
    /// Sizes of payload for SpacetimeDB alone.
    sizes: &'static [Size],
    /// Sizes for the whole lane.
    lane_sizes: &'static [Size],
    /// Events of a timed window.
    window: u64,
    /// Events held before the last window.
    held: u64,
    /// The same for single events, which take longer.
    live: (u64, u64),
    /// Events of a run of the whole lane.
    lane: u64,
    /// Clients of the run with many.
    many: usize,
    /// How long single events are paced.
    paced: Duration,
    /// How long tokens are asked for.
    minting: Duration,
}

const FULL: Extent = Extent {
    sizes: &Size::ALL,
    lane_sizes: &Size::ALL,
    window: 100_000,
    held: 500_000,
    live: (25_000, 500_000),
    lane: 400_000,
    many: 20,
    paced: Duration::from_secs(30),
    minting: Duration::from_secs(20),
};

const QUICK: Extent = Extent {
    sizes: &[Size::Bytes(64), Size::Bytes(512), Size::Bytes(4_096), Size::Mix],
    lane_sizes: &[Size::Bytes(512)],
    window: 50_000,
    held: 500_000,
    live: (10_000, 50_000),
    lane: 200_000,
    many: 5,
    paced: Duration::from_secs(8),
    minting: Duration::from_secs(5),
};

/// Measures, tells, and ends with one line of JSON if asked to.
pub async fn run(quick: bool, as_json: bool) -> anyhow::Result<()> {
    let extent = if quick { &QUICK } else { &FULL };
    let started = Instant::now();
    let say = |text: String| {
        if as_json {
            eprintln!("{} {text}", since(started));
        } else {
            println!("{} {text}", since(started));
        }
    };

    say("SpacetimeDB alone: frames as for a backlog, one subscriber; events per second".to_owned());
    let mut flatness = BTreeMap::new();
    let mut bare_rates = BTreeMap::new();
    for size in extent.sizes {
        let bare = bare::run(*size, Cut::BACKLOG, extent.window, 0, 1).await?;
        let in_memory = Cut {
            on_disk: false,
            ..Cut::BACKLOG
        };
        // Nobody subscribes: a plain subscriber keeps all it gets, and would be what slows down.
        let run = bare::run(*size, in_memory, extent.window, extent.held, 0).await?;
        say(format!(
            "  {:>5} B: {:>7.0}; log in memory: {:>7.0} on an empty table, {:>7.0} with {} held: flatness {:.2}; host {} MB",
            size.name(),
            bare.empty,
            run.empty,
            run.full,
            run.held,
            run.flatness(),
            run.host_mb
        ));
        flatness.insert(size.name(), two(run.flatness()));
        bare_rates.insert(size.name(), bare.empty.round());
    }
    say("the same without a subscriber".to_owned());
    let alone = bare::run(Size::Bytes(512), Cut::BACKLOG, extent.window, extent.held, 0).await?;
    say(format!(
        "    512 B: {:>7.0} on an empty table, {:>7.0} with {} held",
        alone.empty, alone.full, alone.held
    ));

    say("SpacetimeDB alone: one event a frame, as live; padded as the contract does, and not".to_owned());
    let (window, held) = extent.live;
    let mut live_flatness = BTreeMap::new();
    for size in [Size::Bytes(256), Size::Bytes(480), Size::Mix] {
        for padded in [true, false] {
            let cut = Cut {
                padded,
                on_disk: false,
                ..Cut::LIVE
            };
            let run = bare::run(size, cut, window, held, 0).await?;
            say(format!(
                "  {:>5} B {}: {:>6.0} on an empty table, {:>6.0} with {} held: flatness {:.2}; host {} MB",
                size.name(),
                if padded { "padded  " } else { "unpadded" },
                run.empty,
                run.full,
                run.held,
                run.flatness(),
                run.host_mb
            ));
            if padded {
                live_flatness.insert(size.name(), two(run.flatness()));
            }
        }
    }

    let cluster = Cluster::start().await?;
    say("the whole lane: a committed backlog, one client; events per second".to_owned());
    let mut lane_rates = BTreeMap::new();
    let mut drained = None;
    for size in extent.lane_sizes {
        let runner = Runner::start(&cluster).await?;
        let wrote = runner.write(extent.lane, *size).await?;
        let run = runner.drain(extent.lane, 1).await?;
        say(format!(
            "  {:>5} B: {:>7.0} ({:.2} of bare); written at {:.0}; {}",
            size.name(),
            run.events_per_second,
            run.events_per_second / bare_rates.get(&size.name()).copied().unwrap_or(f64::NAN),
            super::rate(extent.lane, wrote),
            memory(&run)
        ));
        lane_rates.insert(size.name(), run.events_per_second.round());
        if *size == Size::Bytes(512) {
            drained = Some(run);
        }
    }
    let runner = Runner::start(&cluster).await?;
    runner.write(extent.lane / 2, Size::Bytes(512)).await?;
    let many = runner.drain(extent.lane / 2, extent.many).await?;
    say(format!(
        "    512 B, {} clients: {:>7.0} each, {:.0} deliveries per second",
        extent.many,
        many.events_per_second,
        many.events_per_second * extent.many as f64
    ));

    say("the whole lane with bulk writers at the same time, 512 B, one client".to_owned());
    let runner = Runner::start(&cluster).await?;
    let streamed = runner.stream(extent.lane, Size::Bytes(512), 1).await?;
    say(format!(
        "  {:>7.0} committed, published and applied per second; {}",
        streamed.events_per_second,
        memory(&streamed)
    ));

    say("a client that was away, 512 B".to_owned());
    let runner = Runner::start(&cluster).await?;
    runner.write(extent.lane, Size::Bytes(512)).await?;
    let caught_up = runner.catch_up(extent.lane).await?;
    say(format!(
        "  {:>7.0} events per second from start to live; {}",
        caught_up.events_per_second,
        memory(&caught_up)
    ));

    say(format!(
        "latency at {PACE} single events per second, 512 B, commit to applied"
    ));
    let runner = Runner::start(&cluster).await?;
    let paced = runner
        .paced(PACE, PACE * extent.paced.as_secs(), Size::Bytes(512))
        .await?;
    let latency = &paced.clients[0];
    say(format!(
        "  p50 {:.2} ms, p99 {:.2} ms; {}",
        latency.p50_ms,
        latency.p99_ms,
        memory(&paced)
    ));

    say("tokens: a bridge on one core, many sessions over kept connections".to_owned());
    let minted = minting::run(&cluster, extent.minting).await?;
    say(format!(
        "  {:>7.0} per second, p50 {:.2} ms, p99 {:.2} ms; bridge {} MB",
        minted.per_second, minted.p50_ms, minted.p99_ms, minted.bridge_mb
    ));

    if as_json {
        let runs = [drained.as_ref(), Some(&streamed), Some(&caught_up), Some(&paced)];
        println!(
            "{}",
            json!({
                "bare_events_per_second": bare_rates["512"],
                "bare_by_payload": bare_rates,
                "lane_events_per_second": lane_rates["512"],
                "lane_by_payload": lane_rates,
                "lane_of_bare": two(lane_rates["512"] / bare_rates["512"]),
                "streaming_events_per_second": streamed.events_per_second.round(),
                "clients": { "many": extent.many, "events_per_second_each": many.events_per_second.round() },
                "flatness": flatness,
                "flatness_single_events": live_flatness,
                "catch_up_events_per_second": caught_up.events_per_second.round(),
                "p50_ms": two(latency.p50_ms),
                "p99_ms": two(latency.p99_ms),
                "minting_per_second": minted.per_second.round(),
                "minting_p50_ms": two(minted.p50_ms),
                "minting_p99_ms": two(minted.p99_ms),
                "peak_rss_mb": peaks(runs.into_iter().flatten()),
            })
        );
    }
    Ok(())
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

fn two(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
