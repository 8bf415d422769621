//! A device of a user, for scenarios: a client in a process of its own, which is told by lines of JSON what to call. It says
//! every answer and, whenever that changes, what it sees as lines of JSON. See `device.rs` in the library.
//!
//! Its store is that of the example `follow`: every applied event is a row of the table `applied`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use spacetime_sync_client::rusqlite::{Transaction, params};
use spacetime_sync_client::{
    CallError, ClientConfig, Credential, Event, HandlerError, HttpTokens, Presence, SqliteStore, StreamId, SyncClient,
    TokenError,
};
use spacetime_sync_tests::device::{Asked, Wish};
use spacetime_sync_transport::secret_file;
use tokio::io::{AsyncBufReadExt as _, BufReader, stdin};

/// How long a call is repeated: longer than any scenario.
const WITHIN: Duration = Duration::from_secs(600);

const APPLIED: &str = "CREATE TABLE IF NOT EXISTS applied (stream_id TEXT NOT NULL, seq INTEGER NOT NULL, \
     idempotency_key TEXT NOT NULL, kind TEXT NOT NULL, payload BLOB NOT NULL, payload_hash BLOB NOT NULL, \
     chain_hash BLOB NOT NULL, committed_at_us INTEGER NOT NULL, applied_at_us INTEGER NOT NULL) STRICT";

#[derive(Parser)]
struct Args {
    #[arg(long)]
    uri: String,
    #[arg(long)]
    database: String,
    #[arg(long)]
    bridge: String,
    #[arg(long)]
    session_file: PathBuf,
    #[arg(long)]
    db: PathBuf,
    #[arg(long = "stream")]
    streams: Vec<StreamId>,
    #[arg(long)]
    node: String,
    #[arg(long)]
    retry_ms: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut config = ClientConfig::new(&args.uri, &args.database, args.streams);
    let session = args.session_file;
    let tokens = HttpTokens::new(&args.bridge, move || {
        let read = secret_file::read(&session).map(|credential| credential.expose().to_owned());
        std::future::ready(read.map_err(TokenError::unavailable))
    });
    config.credential = Credential::provider(tokens?);
    (config.assigns, config.provides) = (true, true);
    let retry = Duration::from_millis(args.retry_ms);
    (config.backoff.spread, config.backoff.first, config.backoff.most) = (retry, retry, retry);
    let mut store = SqliteStore::open(&args.db)?;
    store.connection().execute_batch(APPLIED)?;
    let client = SyncClient::start(config, store, apply)?;
    client.presence(Presence::online(args.node))?;

    let (mut status, mut presences) = (client.status(), client.presences(&[])?);
    let mut assignments = client.assignments();
    let mut lines = BufReader::new(stdin()).lines();
    let mut calls = FuturesUnordered::new();
    let mut shown = Value::Null;
    loop {
        let now = json!({
            "phase": status.borrow_and_update().phase.code(),
            "reconnects": status.borrow().counters.reconnects,
            "nodes_are_live": presences.borrow_and_update().is_live(),
            "nodes": presences.borrow().rows.iter().map(|(key, seen)| {
                json!([key.session_id, key.node_id, seen.status.as_str(), seen.reason.map(|reason| reason.as_str())])
            }).collect::<Vec<_>>(),
            "assignments_are_live": assignments.borrow_and_update().is_live(),
            "assignments": assignments.borrow().rows.iter().map(|(name, seen)| {
                let changes = seen.changes.iter().map(|change| (change.version, change.state.as_str(), &change.update_id));
                let changes: Vec<_> = changes.collect();
                json!([name, seen.version, seen.state.as_str(), seen.provider_id, changes])
            }).collect::<Vec<_>>(),
        });
        if now != shown {
            println!("{}", json!({ "shown": now }));
            shown = now;
        }
        tokio::select! {
            line = lines.next_line() => match line? {
                Some(line) => {
                    let Asked { number, wish } = serde_json::from_str(&line)?;
                    let call = call(&client, wish);
                    calls.push(async move { (number, call.await) });
                }
                None => break,
            },
            Some((number, answer)) = calls.next() => {
                println!("{}", json!({ "answer": number, "is": said(answer) }));
            }
            changed = status.changed() => changed?,
            changed = presences.changed() => changed?,
            changed = assignments.changed() => changed?,
        }
    }
    drop(calls);
    client.stop().await;
    Ok(())
}

async fn call(client: &SyncClient, wish: Wish) -> Result<(), CallError> {
    match wish {
        Wish::Publish(capability) => client.publish_capability(capability.into(), WITHIN).await,
        Wish::Open(opening) => client.open_assignment(opening.into(), WITHIN).await,
        Wish::Change(change) => client.change_assignment(change.into(), WITHIN).await,
    }
}

fn said(answer: Result<(), CallError>) -> Value {
    match answer {
        Ok(()) => json!("done"),
        Err(CallError::Refused(refusal)) => json!({ "refused": refusal.code, "message": refusal.message }),
        Err(error) => json!({ "failed": error.to_string() }),
    }
}

fn apply(transaction: &mut Transaction<'_>, stream: &StreamId, events: &[Event]) -> Result<(), HandlerError> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(HandlerError::stop)?;
    let mut insert = transaction.prepare_cached("INSERT INTO applied VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
    for event in events {
        insert.execute(params![
            stream.as_str(),
            event.seq.to_sql(),
            event.idempotency_key.as_str(),
            event.kind.as_str(),
            &event.payload[..],
            event.payload_hash.as_bytes(),
            event.chain_hash.as_bytes(),
            event.committed_at_us,
            now.as_micros() as i64,
        ])?;
    }
    Ok(())
}
