//! See `scripts/demo`: runs the whole lane once on this machine and says whether it worked. Bridge and clients authenticate
//! with tokens that the bridge issues.
//!
//! There are two phases. First come single events at a fixed pace, which show how long one takes from commit to applied.
//! Then come the rest in bulk, which show how many the lane carries. In the end the demo compares each client's log with
//! the authority's, byte for byte.
//!
//! The demo leaves nothing behind, however it ends. With `--keep` the lane stays until somebody ends it.

mod keep;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use keep::{Commands, write_pid};
use serde_json::json;
use spacetime_sync_proto::StreamId;
use spacetime_sync_tests::figures::{Samples, rate, since};
use spacetime_sync_tests::follower::{Follower, Verdict};
use spacetime_sync_tests::lane::{Lane, stream};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;
use tokio::signal::unix::{SignalKind, signal};

/// The first phase gets one in so many events, and no more than so many in total.
const PACED: (u64, u64) = (10, 2_000);
/// Events per second in the first phase.
const PACE: u64 = 1_000;
/// Events per transaction in the second phase.
const BULK: u64 = 500;
/// The demo gives up when nothing has moved for this long.
const STALL: Duration = Duration::from_secs(60);

/// Runs the whole lane once: authority, SpacetimeDB, bridge and clients.
#[derive(Parser)]
struct Args {
    /// Total number of events.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// Number of clients. Each follows every stream.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=100))]
    clients: u64,
    /// Bytes per payload.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=262_144))]
    payload: u64,
    /// Number of streams.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    streams: u64,
    /// Print one line of JSON on stdout at the end.
    #[arg(long)]
    json: bool,
    /// Leave the lane running, and say what to do with it.
    #[arg(long)]
    keep: bool,
    /// File for the id of the process that keeps the lane, written once it has said what to do.
    #[arg(long, requires = "keep", hide = true)]
    pid_file: Option<PathBuf>,
}

/// The exit code of a program that was interrupted, as shells report it.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let mut terminated = signal(SignalKind::terminate())?;
    let pid_file = args.pid_file.clone();
    // An interrupt drops everything, which ends the servers and removes the folders.
    let ended = tokio::select! {
        ended = run(args) => ended,
        _ = terminated.recv() => Ok(ExitCode::from(INTERRUPTED)),
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(INTERRUPTED)),
    };
    if let Some(file) = pid_file {
        // An error means that the file was never written.
        let _ = std::fs::remove_file(file);
    }
    ended
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let say = |text: String| eprintln!("{} {text}", since(started));

    say("starting Postgres, SpacetimeDB and the module".to_owned());
    let cluster = Cluster::start().await?;
    let lane = Lane::start_with_tokens(&cluster).await?;
    let streams: Vec<StreamId> = (1..=args.streams as usize).map(stream).collect();
    say(format!("database {} at {}", lane.name, lane.server.uri()));
    let bridge = lane.bridge()?;
    bridge.until("/readyz", STALL, |ready, _| ready).await?;
    say("the bridge is ready".to_owned());
    let mut clients = Vec::new();
    for _ in 0..args.clients {
        let mut client = lane.client(&streams).await?;
        client.start()?;
        clients.push(client);
    }
    for client in &clients {
        let live = spacetime_sync_tests::until(STALL, || {
            client.log().contains(r#""phase":"live","text":"live","reason":null"#)
        })
        .await;
        anyhow::ensure!(live, "a client did not go live: {}", client.log());
    }
    say(format!("{} clients are live on {} streams", args.clients, args.streams));

    let mut writers: Vec<Writer> = (0u64..)
        .zip(&streams)
        .map(|(at, id)| Writer::new(&lane.authority, id, "demo", Payload::Fixed(args.payload as usize), at))
        .collect();

    let paced = (args.events / PACED.0).min(PACED.1);
    let mut beat = tokio::time::interval(Duration::from_micros(1_000_000 / PACE));
    for event in 0..paced {
        beat.tick().await;
        let turn = (event % args.streams) as usize;
        writers[turn].append(1).await?;
    }
    await_all(&clients, paced, &say).await?;
    let mut latencies = Samples::default();
    for client in &clients {
        for writer in &writers {
            let took_us = client.latencies_us(writer.stream_id(), 1, writer.written())?;
            took_us.into_iter().for_each(|us| latencies.record_us(us));
        }
    }
    say(format!("{paced} events at {PACE} per second are applied"));

    let burst = args.events - paced;
    let burst_started = Instant::now();
    let mut tasks = Vec::new();
    for (at, mut writer) in (0u64..).zip(writers) {
        let share = burst / args.streams + u64::from(at < burst % args.streams);
        tasks.push(tokio::spawn(async move {
            let mut left = share;
            while left > 0 {
                let size = left.min(BULK);
                writer.append(size as usize).await?;
                left -= size;
            }
            Ok::<(), anyhow::Error>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    let written = burst_started.elapsed();
    say(format!(
        "{burst} events are committed, {:.0} per second",
        rate(burst, written)
    ));
    await_all(&clients, args.events, &say).await?;
    let per_second = rate(burst, burst_started.elapsed());

    say("comparing every client's log with the authority's".to_owned());
    let mut verdicts = Vec::new();
    for client in &clients {
        verdicts.push(client.compare(&lane.authority).await?);
    }
    let held = verdicts.iter().all(Verdict::is_equal) && verdicts.iter().all(|verdict| verdict.applied == args.events);
    let latency = latencies.latency();
    let sum = |of: fn(&Verdict) -> u64| verdicts.iter().map(of).sum::<u64>();
    let chain_ok = sum(|verdict| verdict.different + verdict.missing) == 0;
    let summary = format!(
        "\n  {} events of {} bytes over {} streams to {} clients\n  \
           applied            {}\n  \
           gaps               {}\n  \
           applied twice      {}\n  \
           equal to Postgres  {}\n  \
           events per second  {per_second:.0} (committed in bulk and applied by every client)\n  \
           commit to applied  {} (at {PACE} single events per second)\n",
        args.events,
        args.payload,
        args.streams,
        args.clients,
        verdicts
            .iter()
            .map(|verdict| verdict.applied.to_string())
            .collect::<Vec<_>>()
            .join(", "),
        sum(|verdict| verdict.gaps),
        sum(|verdict| verdict.duplicates),
        if chain_ok { "yes, byte for byte" } else { "NO" },
        latency.map_or("not measured".to_owned(), |latency| latency.to_string()),
    );
    if args.json || std::io::stdout().is_terminal() {
        eprintln!("{summary}");
    } else {
        println!("{summary}");
    }
    if args.json {
        let round = |value: f64| (value * 100.0).round() / 100.0;
        println!(
            "{}",
            json!({
                "events": args.events,
                "clients": args.clients,
                "applied": verdicts.iter().map(|verdict| verdict.applied).collect::<Vec<_>>(),
                "gaps": sum(|verdict| verdict.gaps),
                "duplicates_applied": sum(|verdict| verdict.duplicates),
                "chain_ok": chain_ok,
                "events_per_second": per_second.round(),
                "p50_ms": latency.map(|latency| round(latency.p50_ms)),
                "p99_ms": latency.map(|latency| round(latency.p99_ms)),
                "p999_ms": latency.map(|latency| round(latency.p999_ms)),
                "max_ms": latency.map(|latency| round(latency.max_ms)),
            })
        );
    }
    // A lane that failed is not kept.
    if args.keep && held {
        let clients = [lane.client(&streams).await?, lane.client(&streams).await?];
        let commands = Commands::of(&cluster.psql(), &lane, &bridge, clients.each_ref(), &streams[0]);
        eprintln!("{}", commands.text(args.pid_file.as_deref()));
        if let Some(file) = &args.pid_file {
            write_pid(file)?;
        }
        std::future::pending::<()>().await;
    }
    let stopped = bridge.stop().await?;
    Ok(if held && stopped == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Waits until every client has applied so many events, and shows how far they are.
async fn await_all(clients: &[Follower], events: u64, say: &impl Fn(String)) -> anyhow::Result<()> {
    let (mut last, mut moved, mut shown) = (0, Instant::now(), Instant::now());
    loop {
        let applied: Vec<u64> = clients.iter().map(Follower::applied).collect();
        if applied.iter().all(|applied| *applied >= events) {
            return Ok(());
        }
        let sum = applied.iter().sum();
        if sum > last {
            (last, moved) = (sum, Instant::now());
        }
        if shown.elapsed() > Duration::from_secs(2) {
            say(format!("applied {applied:?} of {events}"));
            shown = Instant::now();
        }
        for client in clients {
            anyhow::ensure!(client.process()?.is_running(), "a client has ended: {}", client.log());
        }
        anyhow::ensure!(
            moved.elapsed() < STALL,
            "nothing moved for {STALL:?}: applied {applied:?} of {events}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
