//! How many tokens per second a bridge on one core issues, to many sessions with streams of their own, over kept
//! connections. The load generator and Postgres run on the other cores.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;
use serde_json::json;
use spacetime_sync_proto::access::{TOKEN_PATH, headers};
use spacetime_sync_proto::contract::{PROTOCOL, SCHEMA_VERSION};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use spacetime_sync_tests::figures::{Percentiles, Samples, rate};
use spacetime_sync_tests::issuing::{BUILD, Desk};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::process::built;

/// Sessions that ask in turn: so many that nearly every token needs an answer of the authority, as in production.
const SESSIONS: usize = 20_000;
/// Number of connections, each with one request at a time.
const CONNECTIONS: usize = 16;
/// The core reserved for the bridge.
const BRIDGE_CORE: usize = 0;

/// The result.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Minted {
    /// Tokens issued per second.
    pub(crate) per_second: f64,
    /// The time of a request.
    pub(crate) took: Percentiles,
    /// Peak memory of the bridge.
    pub(crate) bridge_mb: u64,
}

/// Measures for the duration of `window`.
pub(crate) async fn run(cluster: &Cluster, window: Duration) -> anyhow::Result<Minted> {
    let desk = Desk::new(cluster).await?;
    desk.sql(&format!(
        "insert into runtime.sync_stream_owners
           select 'runtime.run.' || n || '.events', n::text, null from generate_series(0, {SESSIONS}) n;
         insert into runtime.sync_access_policy select 'user:' || n, 'user:' || n || ':*' from generate_series(0, {SESSIONS}) n;
         insert into runtime.sync_access_policy values ('everyone', 'public.*');
         analyze runtime.sync_stream_owners; analyze runtime.sync_access_policy"
    ))
    .await?;
    let much = || "1000000".to_owned();
    let set = [
        ("issuer.session_per_minute", much()),
        ("issuer.session_burst", much()),
        ("bridge.lead", "false".to_owned()),
    ];
    let mut pinned = Command::new("taskset");
    pinned
        .args(["-c", &BRIDGE_CORE.to_string()])
        .arg(built("spacetime-sync"));
    let bridge = desk.bridge_by(pinned, "warn", &set).await?;
    let address = bridge.url("").trim_start_matches("http://").to_owned();
    let requests: Arc<Vec<Vec<u8>>> = Arc::new((0..SESSIONS).map(|number| request(&desk, number)).collect());
    // The first token of a session also writes to the authority. That happens once per session, so it is not measured.
    drive(address.clone(), requests.clone(), None).await?;
    let (answers, took) = drive(address, requests, Some(window)).await?;
    Ok(Minted {
        per_second: rate(answers.count(), took),
        took: answers.latency().context("no token was issued")?,
        bridge_mb: bridge.process.memory_mb().map_or(0, |(_, most)| most),
    })
}

fn request(desk: &Desk, number: usize) -> Vec<u8> {
    let body = json!({
        "scopes": ["sync.subscribe", "sync.checkpoint.write", "runtime.run_events"],
        "streams": [format!("runtime.run.{number}.events"), format!("user:{number}:*"), "public.news"],
    })
    .to_string();
    let credential = desk.session(&number.to_string(), &format!("s{number}"));
    format!(
        "POST {TOKEN_PATH} HTTP/1.1\r\nhost: lane\r\nauthorization: Bearer {credential}\r\n{}: {BUILD}\r\n\
         {}: {PROTOCOL}\r\n{}: {SCHEMA_VERSION}\r\n{}: bench\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        headers::CLIENT_BUILD_ID,
        headers::PROTOCOL_VERSION,
        headers::SCHEMA_VERSION,
        headers::CLIENT_SURFACE,
        body.len()
    )
    .into_bytes()
}

/// Sends requests in turn: one per session, or for the duration of `window`. Returns the time that each
/// answer took, and all of them together.
async fn drive(
    address: String,
    requests: Arc<Vec<Vec<u8>>>,
    window: Option<Duration>,
) -> anyhow::Result<(Samples, Duration)> {
    // Runs on a runtime of its own, away from the bridge's core.
    let driver = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        stay_off(BRIDGE_CORE);
        runtime.block_on(async move {
            let (next, started) = (Arc::new(AtomicUsize::new(0)), Instant::now());
            let mut connections = JoinSet::new();
            for _ in 0..CONNECTIONS {
                let (requests, next) = (requests.clone(), next.clone());
                let stream = TcpStream::connect(&address).await?;
                stream.set_nodelay(true)?;
                connections.spawn(async move {
                    let (mut stream, mut answers) = (BufReader::new(stream), Samples::default());
                    loop {
                        let turn = next.fetch_add(1, Ordering::Relaxed);
                        let over = match window {
                            None => turn >= requests.len(),
                            Some(window) => started.elapsed() >= window,
                        };
                        if over {
                            return Ok::<_, anyhow::Error>(answers);
                        }
                        let asked = Instant::now();
                        ask(&mut stream, &requests[turn % requests.len()]).await?;
                        answers.record(asked.elapsed().as_micros() as u64);
                    }
                });
            }
            let mut answers = Samples::default();
            while let Some(done) = connections.join_next().await {
                answers.add(&done??);
            }
            Ok((answers, started.elapsed()))
        })
    });
    tokio::task::spawn_blocking(move || driver.join())
        .await?
        .map_err(|_| anyhow::anyhow!("the driver panicked"))?
}

async fn ask(stream: &mut BufReader<TcpStream>, request: &[u8]) -> anyhow::Result<()> {
    stream.write_all(request).await?;
    let (mut line, mut length, mut good) = (String::new(), 0, None);
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        let text = line.trim_end();
        if text.is_empty() {
            break;
        }
        good = good.or(Some(text.contains(" 200 ")));
        if let Some((name, value)) = text.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let said = || String::from_utf8_lossy(&body).into_owned();
    good.filter(|good| *good).with_context(said).map(|_| ())
}

/// Keeps this thread, and those it starts, off a core. Without another core it stays where it is.
fn stay_off(core: usize) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut others = CpuSet::new();
    (0..cores)
        .filter(|other| *other != core)
        .for_each(|other| others.set(other));
    if cores > 1 {
        // A failure only makes the figures worse.
        let _ = sched_setaffinity(None, &others);
    }
}
