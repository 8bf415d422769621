//! The first sync of a client that has nothing: documents that were told of once, and as many that were told of ten times. Only
//! the second is what a client without documents would have to replay.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use spacetime_sync_client::{
    ClientConfig, Credential, HttpTokens, NoEvents, SqliteStore, StreamId, StreamPhase, SyncClient, TokenError,
};
use spacetime_sync_tests::figures::rate;
use spacetime_sync_tests::issuing::BUILD;
use spacetime_sync_tests::lane::Lane;
use spacetime_sync_tests::process::Cpu;
use spacetime_sync_tests::scene::ready;

use crate::child::Child;
use crate::client::peak_rss_mb;
use crate::report::{Report, two};

const STREAM: &str = "bench.documents";
const TABLE: &str = "create table public.documents (
    id bigint primary key, user_id text not null, status text not null, step bigint not null, note text not null);
    select runtime.sync_attach('public.documents', stream => 'bench.documents')";
/// How many rows one statement writes.
const EACH: u64 = 1_000;
/// How often each document is told of in the longer of the two histories.
const ROUNDS: u64 = 10;
const LIMIT: Duration = Duration::from_secs(900);

/// The arguments of the client's process.
#[derive(Debug, Args)]
pub(crate) struct DocumentsArgs {
    /// The address of SpacetimeDB.
    #[arg(long)]
    uri: String,
    /// The name of the database.
    #[arg(long)]
    database: String,
    /// The bridge that issues tokens for the session credential.
    #[arg(long)]
    bridge: String,
    /// A file with the credential.
    #[arg(long)]
    session_file: PathBuf,
    /// The SQLite file.
    #[arg(long)]
    db: PathBuf,
    /// How many documents there are.
    #[arg(long)]
    documents: u64,
}

/// The client's report, one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Synced {
    /// From the start of the process until all documents are shown and the stream is live.
    seconds: f64,
    cpu_seconds: f64,
    peak_rss_mb: u64,
    /// Parts of documents that were read, and events that were applied after them.
    parts: u64,
    events: u64,
}

/// Runs the client until it shows all documents and is live.
pub(crate) async fn client(args: DocumentsArgs) -> anyhow::Result<Value> {
    let started = Instant::now();
    let stream = StreamId::new(STREAM)?;
    let mut config = ClientConfig::new(&args.uri, &args.database, Vec::new());
    config.documents = vec![stream.clone()];
    config.client_build_id = BUILD.to_owned();
    let credential = std::fs::read_to_string(&args.session_file)?;
    config.credential = Credential::provider(HttpTokens::new(&args.bridge, move || {
        let credential = credential.clone();
        async move { Ok::<_, TokenError>(credential) }
    })?);
    let client = SyncClient::start(config, SqliteStore::open(&args.db)?, NoEvents)?;
    let mut status = client.status();
    loop {
        let is_live = {
            let status = status.borrow_and_update();
            let stream = status.streams.get(&stream);
            stream.is_some_and(|stream| stream.phase == StreamPhase::Live)
        };
        if is_live {
            break;
        }
        status.changed().await.context("the client stopped early")?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let found = client.documents::<Value>(&stream)?.count()?;
    anyhow::ensure!(
        found == args.documents,
        "expected {} documents, found {found}",
        args.documents
    );
    let counters = client.stop().await.counters;
    Ok(serde_json::to_value(Synced {
        seconds,
        cpu_seconds: Cpu::of("self").unwrap_or_default().whole().as_secs_f64(),
        peak_rss_mb: peak_rss_mb(),
        parts: counters.document_pages,
        events: counters.events_applied,
    })?)
}

/// Measures both histories.
pub(crate) async fn run(report: &mut Report, documents: u64) -> anyhow::Result<()> {
    report.say(&format!(
        "first sync: a client that has nothing, and {documents} documents of about 330 bytes"
    ));
    let mut figures = serde_json::Map::new();
    for rounds in [1, ROUNDS] {
        let lane = Lane::start_with_tokens(&report.cluster).await?;
        lane.sql(TABLE).await?;
        lane.allow("user:7", &[STREAM]).await?;
        let bridge = lane.bridge()?;
        ready(&bridge, LIMIT).await?;
        let writing = Instant::now();
        for round in 0..rounds {
            for first in (1..=documents).step_by(EACH as usize) {
                let last = (first + EACH - 1).min(documents);
                lane.sql(&format!(
                    "insert into public.documents
                       select n, 'user-' || n % 100, 'running', {round}, repeat('x', 200) from generate_series({first}, {last}) n
                       on conflict (id) do update set step = excluded.step"
                ))
                .await?;
            }
        }
        anyhow::ensure!(lane.published(LIMIT).await, "the events were not published");
        let wrote = writing.elapsed();
        let session_file = lane.path("session.token");
        std::fs::write(&session_file, lane.keys()?.session("7", "desktop"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("documents");
        command.args([
            "--uri",
            lane.server.uri(),
            "--database",
            &lane.name,
            "--bridge",
            bridge.url(),
        ]);
        command.arg("--session-file").arg(&session_file);
        command.arg("--db").arg(lane.path("documents.sqlite"));
        command.args(["--documents", &documents.to_string()]);
        let synced: Synced = Child::start("a client", &command)?.report().await?;
        let events = documents * rounds;
        let per_second = rate(documents, Duration::from_secs_f64(synced.seconds));
        report.say(&format!(
            "  {events:>8} events: {:.1} s, {per_second:.0} documents per second, {:.1} s of CPU, peak {} MB, {} parts and {} events; \
             written and published in {:.0} s",
            synced.seconds,
            synced.cpu_seconds,
            synced.peak_rss_mb,
            synced.parts,
            synced.events,
            wrote.as_secs_f64()
        ));
        figures.insert(
            format!("events_{events}"),
            json!({
                "seconds": two(synced.seconds), "per_second": per_second.round(), "peak_mb": synced.peak_rss_mb,
                "cpu_seconds": two(synced.cpu_seconds),
            }),
        );
    }
    report.put("first_sync", figures);
    Ok(())
}
