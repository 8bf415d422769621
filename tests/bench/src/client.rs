//! The client of a measurement, in a process of its own: it applies and counts events, and reports at the end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use crate::child::{Child, READY};
use crate::measure::now_us;
use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};
use spacetime_sync_client::rusqlite::Transaction;
use spacetime_sync_client::{
    ClientConfig, Credential, Event, HandlerError, SqliteStore, StreamId, StreamPhase, SyncClient,
};
use spacetime_sync_tests::figures::{Percentiles, Samples};
use spacetime_sync_tests::process::Cpu;

/// The arguments of the client's process.
#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// The address of SpacetimeDB.
    #[arg(long)]
    pub(crate) uri: String,
    /// The name of the database.
    #[arg(long)]
    pub(crate) database: String,
    /// A file with the token.
    #[arg(long)]
    pub(crate) token_file: PathBuf,
    /// A file with the keys whose seals count.
    #[arg(long)]
    pub(crate) seal_keys: PathBuf,
    /// The SQLite file for checkpoints.
    #[arg(long)]
    pub(crate) db: PathBuf,
    /// A stream to follow.
    #[arg(long = "stream", required = true)]
    pub(crate) streams: Vec<StreamId>,
    /// End when this many events are applied, over all streams.
    #[arg(long)]
    pub(crate) until: u64,
    /// Report when each event was applied.
    #[arg(long)]
    pub(crate) each: bool,
}

impl ClientArgs {
    /// Starts a process with these arguments.
    pub(crate) fn spawn(&self) -> anyhow::Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["client", "--uri", &self.uri, "--database", &self.database]);
        command.arg("--token-file").arg(&self.token_file);
        command.arg("--seal-keys").arg(&self.seal_keys);
        command.arg("--db").arg(&self.db);
        command.args(["--until", &self.until.to_string()]);
        if self.each {
            command.arg("--each");
        }
        for stream_id in &self.streams {
            command.args(["--stream", stream_id.as_str()]);
        }
        Child::start("a client", &command)
    }
}

/// The client's report, one line of JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ClientReport {
    /// Number of events applied.
    pub(crate) applied: u64,
    /// CPU time used.
    pub(crate) cpu_seconds: f64,
    /// Time from the first to the last applied event.
    pub(crate) seconds: f64,
    /// Time from the start of the process to the last applied event.
    pub(crate) seconds_from_start: f64,
    /// When the last event was applied, in microseconds since 1970.
    pub(crate) last_us: i64,
    /// From append to applied.
    pub(crate) from_append: Percentiles,
    /// When the events of each stream were applied, from seq 1 on, in microseconds; empty unless requested.
    pub(crate) applied_at_us: BTreeMap<StreamId, Vec<i64>>,
    /// Peak memory.
    pub(crate) peak_rss_mb: u64,
    /// Subscriptions renewed to keep memory bounded.
    pub(crate) resubscriptions: u64,
}

#[derive(Default)]
struct Seen {
    applied: u64,
    first_us: i64,
    last_us: i64,
    from_append: Samples,
    applied_at_us: BTreeMap<StreamId, Vec<i64>>,
}

/// Runs the client until it has applied all events.
pub(crate) async fn run(args: ClientArgs) -> anyhow::Result<ClientReport> {
    let started_us = now_us();
    let mut config = ClientConfig::new(&args.uri, &args.database, args.streams.clone());
    config.credential = Credential::Fixed(std::fs::read_to_string(&args.token_file)?.trim().to_owned());
    config.seal_keys = serde_json::from_slice(&std::fs::read(&args.seal_keys)?)?;
    let store = open(&args.db)?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let handler = {
        let seen = seen.clone();
        move |transaction: &mut Transaction<'_>, stream: &StreamId, events: &[Event]| {
            tally(transaction, stream, events)?;
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let now = now_us();
            if seen.applied == 0 {
                seen.first_us = now;
            }
            seen.last_us = now;
            seen.applied += events.len() as u64;
            for event in events {
                seen.from_append.record_us(now - event.committed_at_us);
            }
            if args.each {
                let applied_at_us = seen.applied_at_us.entry(stream.clone()).or_default();
                applied_at_us.extend(events.iter().map(|_| now));
            }
            Ok::<(), HandlerError>(())
        }
    };
    let client = SyncClient::start(config, store, handler)?;
    let (mut status, mut ready) = (client.status(), false);
    loop {
        let (applied, live) = {
            let status = status.borrow_and_update();
            let streams = || status.streams.values();
            let applied: u64 = streams().map(|stream| stream.applied.seq.get()).sum();
            (applied, streams().all(|stream| stream.phase == StreamPhase::Live))
        };
        if live && !ready {
            ready = true;
            println!("{READY}");
        }
        if applied >= args.until {
            break;
        }
        status.changed().await.context("the client stopped early")?;
    }
    let resubscriptions = client.stop().await.counters.resubscriptions;
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(ClientReport {
        applied: seen.applied,
        cpu_seconds: Cpu::of("self").unwrap_or_default().whole().as_secs_f64(),
        seconds: (seen.last_us - seen.first_us) as f64 / 1e6,
        seconds_from_start: (seen.last_us - started_us) as f64 / 1e6,
        last_us: seen.last_us,
        from_append: seen.from_append.latency().context("no event was applied")?,
        applied_at_us: std::mem::take(&mut seen.applied_at_us),
        peak_rss_mb: peak_rss_mb(),
        resubscriptions,
    })
}

/// A store with the table that [`tally`] writes to.
pub(crate) fn open(db: &Path) -> anyhow::Result<SqliteStore> {
    let mut store = SqliteStore::open(db)?;
    store.connection().execute_batch(
        "CREATE TABLE IF NOT EXISTS tally (stream_id TEXT PRIMARY KEY, events INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT",
    )?;
    Ok(store)
}

/// The application's effect: one row per batch, in the transaction of the checkpoint.
pub(crate) fn tally(
    transaction: &mut Transaction<'_>,
    stream: &StreamId,
    events: &[Event],
) -> Result<(), HandlerError> {
    let bytes: usize = events.iter().map(|event| event.payload.len()).sum();
    transaction
        .prepare_cached(
            "INSERT INTO tally VALUES (?1, ?2, ?3)
             ON CONFLICT (stream_id) DO UPDATE SET events = events + ?2, bytes = bytes + ?3",
        )?
        .execute((stream.as_str(), events.len() as i64, bytes as i64))?;
    Ok(())
}

/// Peak memory of this process.
pub(crate) fn peak_rss_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0)
        / 1024
}
