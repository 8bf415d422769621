//! Follows streams into a SQLite file: a program to copy.
//!
//! Every event becomes a row of the table `applied`, in the transaction that also moves the stream's checkpoint. Kill
//! the program at any time and start it again: it goes on where it was. It prints a line of JSON when its phase, the
//! phase of a stream or its token changes; with `--print` also one for every event.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use spacetime_sync_client::rusqlite::{Transaction, params};
use spacetime_sync_client::{
    Beginning, ClientConfig, Credential, DatabasePin, Event, Handler, HandlerError, History, HttpTokens, IdentityHex,
    Phase, Reads, SqliteStore, StaleAnswer, Status, StreamId, SyncClient, TlsFiles, TokenError, Transport,
    WithoutDocument,
};
use spacetime_sync_proto::error_text;
use spacetime_sync_transport::secret_file;
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
struct Args {
    /// The address of SpacetimeDB.
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    uri: String,
    /// Let http:// lead to another machine. Everybody on the way can then read the token, and use it.
    #[arg(long)]
    allow_plaintext: bool,
    /// A file with certificates of the only authorities that count, in PEM.
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// A file with the certificate to show, in PEM.
    #[arg(long, requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// A file with its private key.
    #[arg(long, requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// The name of the database.
    #[arg(long)]
    database: String,
    /// The identity of that database, as `spacetime-sync publish` prints it. A bridge says it with the token.
    #[arg(long, requires = "owner_identity")]
    database_identity: Option<IdentityHex>,
    /// The identity of its owner.
    #[arg(long, requires = "database_identity")]
    owner_identity: Option<IdentityHex>,
    /// A file with the token.
    #[arg(long, conflicts_with = "bridge")]
    token_file: Option<PathBuf>,
    /// A file with the keys whose seals count, as `spacetime-sync keys seals` prints them.
    #[arg(long, requires = "token_file", conflicts_with = "bridge")]
    seal_keys: Option<PathBuf>,
    /// A bridge that issues tokens for the session credential.
    #[arg(long, requires = "session_file")]
    bridge: Option<String>,
    /// A file with the session credential. It is read again for each token.
    #[arg(long, requires = "bridge")]
    session_file: Option<PathBuf>,
    /// The build id to send, YYYYMMDDTHHMMSSZ.
    #[arg(long)]
    client_build_id: Option<String>,
    /// The SQLite file to write to.
    #[arg(long)]
    db: PathBuf,
    /// A stream to follow. May be repeated.
    #[arg(long = "stream", required_unless_present = "topics")]
    streams: Vec<StreamId>,
    /// The same as a topic, e.g. run:42:events. May be repeated.
    #[arg(long = "topic")]
    topics: Vec<String>,
    /// Print every applied event as a line of JSON.
    #[arg(long)]
    print: bool,
    /// End with success when every stream has reached this seq.
    #[arg(long)]
    until: Option<u64>,
    /// A bridge to read what SpacetimeDB no longer holds. With --bridge, that one is used.
    #[arg(long, conflicts_with = "bridge", requires = "token_file")]
    history: Option<String>,
    /// What to do when what was applied cannot be continued.
    #[arg(long, value_enum, default_value_t = OnStale::Stop)]
    on_stale: OnStale,
    /// Take at least this long for each batch.
    #[arg(long, default_value_t = 0)]
    slow_ms: u64,
    /// Give up the connection when nothing is heard for this long although an answer is due.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    silence_ms: Option<u64>,
    /// Receive events as soon as they are committed, before they are durable, of streams whose class allows it.
    #[arg(long)]
    early: bool,
    /// Wait at most this long between attempts to connect.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    retry_ms: Option<u64>,
    /// Read from the bridge what SpacetimeDB has not brought this long after the bridge said that it is there.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    overdue_ms: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum OnStale {
    /// Stop.
    Stop,
    /// Start over at the oldest event there is.
    Restart,
    /// Start over from the stream's document, or stop.
    Rebootstrap,
    /// Start over from the stream's document, or at the oldest event there is.
    RebootstrapOrRestart,
}

impl From<OnStale> for StaleAnswer {
    fn from(on_stale: OnStale) -> Self {
        match on_stale {
            OnStale::Stop => Self::Stop,
            OnStale::Restart => Self::Restart,
            OnStale::Rebootstrap => Self::Rebootstrap(WithoutDocument::Stop),
            OnStale::RebootstrapOrRestart => Self::Rebootstrap(WithoutDocument::Restart),
        }
    }
}

/// Where streams have started over, and from which document.
const BEGUN: &str = "CREATE TABLE IF NOT EXISTS begun (stream_id TEXT NOT NULL, seq INTEGER NOT NULL, \
     doc_key TEXT, document BLOB, reasons TEXT NOT NULL) STRICT";

const APPLIED: &str = "CREATE TABLE IF NOT EXISTS applied (stream_id TEXT NOT NULL, seq INTEGER NOT NULL, \
     idempotency_key TEXT NOT NULL, kind TEXT NOT NULL, payload BLOB NOT NULL, payload_hash BLOB NOT NULL, \
     chain_hash BLOB NOT NULL, committed_at_us INTEGER NOT NULL, applied_at_us INTEGER NOT NULL, \
     PRIMARY KEY (stream_id, seq)) STRICT";

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    // This library logs the headers it sends, and with them the token, when everything is logged.
    let quiet = "tungstenite=info".parse()?;
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .with_env_filter(EnvFilter::from_default_env().add_directive(quiet))
        .init();

    let config = ClientConfig::new(&args.uri, &args.database, args.streams.clone());
    let mut config = config.topics(args.topics.iter().map(String::as_str))?;
    config.transport = Transport::default()
        .allow_plaintext(args.allow_plaintext)
        .with_files(TlsFiles {
            ca: args.ca_file.as_deref(),
            cert: args.cert_file.as_deref(),
            key: args.key_file.as_deref(),
        })?;
    if let (Some(database_identity), Some(owner_identity)) = (args.database_identity, args.owner_identity) {
        config.pin = Some(DatabasePin {
            database_identity,
            owner_identity,
        });
    }
    if let Some(path) = &args.token_file {
        config.credential = Credential::Fixed(secret_file::read(path)?.expose().trim().to_owned());
    }
    if let Some(path) = &args.seal_keys {
        let keys = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        config.seal_keys =
            serde_json::from_slice(&keys).with_context(|| format!("{} holds no keys", path.display()))?;
    }
    if let (Some(bridge), Some(path)) = (&args.bridge, &args.session_file) {
        config.credential = Credential::provider(tokens(config.transport.clone(), bridge, path.clone())?);
    }
    if let Some(build) = &args.client_build_id {
        config.client_build_id.clone_from(build);
    }
    if args.early {
        config.reads = Reads::Early;
    }
    if let Some(silence) = args.silence_ms.map(Duration::from_millis) {
        config.limits.silence_timeout = silence;
        config.limits.heartbeat_after = silence.div_f64(2.0);
    }
    if let Some(retry) = args.retry_ms.map(Duration::from_millis) {
        config.backoff.spread = config.backoff.spread.min(retry);
        config.backoff.first = config.backoff.first.min(retry);
        config.backoff.most = retry;
    }
    if let Some(overdue) = args.overdue_ms.map(Duration::from_millis) {
        config.limits.overdue_after = overdue;
    }
    let mut store = SqliteStore::open(&args.db)?;
    store
        .connection()
        .execute_batch(APPLIED)
        .and_then(|()| store.connection().execute_batch(BEGUN))
        .context("making the tables of applied events")?;

    config.on_stale = args.on_stale.into();
    if let Some(bridge) = &args.history {
        config.history = History::At(bridge.clone());
    }
    let rows = Rows {
        slow: Duration::from_millis(args.slow_ms),
        print: args.print,
    };
    let client = SyncClient::start(config, store, rows)?;

    let mut status = client.status();
    let mut shown = Phases::default();
    let status = loop {
        let now = status.borrow_and_update().clone();
        shown.show(&now);
        let stopped = matches!(now.phase, Phase::Stopped { .. });
        if stopped || has_reached(&now, args.until) {
            break client.stop().await;
        }
        tokio::select! {
            changed = status.changed() => if changed.is_err() { break client.stop().await },
            _ = tokio::signal::ctrl_c() => break client.stop().await,
        }
    };
    shown.show(&status);
    let done = args.until.is_none() || has_reached(&status, args.until);
    let requested = matches!(&status.phase, Phase::Stopped { reason } if reason.code() == "requested");
    Ok(if done && requested {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn tokens(transport: Transport, bridge: &str, session: PathBuf) -> anyhow::Result<HttpTokens> {
    let tokens = HttpTokens::over(transport, bridge, move || {
        let read = secret_file::read(&session).map(|credential| credential.expose().to_owned());
        std::future::ready(read.map_err(|error| TokenError::unavailable(error_text(&error))))
    });
    Ok(tokens?)
}

/// Turns each event into a row.
struct Rows {
    slow: Duration,
    print: bool,
}

impl Handler<SqliteStore> for Rows {
    fn apply(
        &mut self,
        transaction: &mut Transaction<'_>,
        stream: &StreamId,
        events: &[Event],
    ) -> Result<(), HandlerError> {
        std::thread::sleep(self.slow);
        write(transaction, stream, events)?;
        if self.print {
            events.iter().for_each(|event| println!("{}", shown(stream, event)));
        }
        Ok(())
    }

    fn start_over(
        &mut self,
        transaction: &mut Transaction<'_>,
        stream: &StreamId,
        beginning: &Beginning,
    ) -> Result<(), HandlerError> {
        transaction.execute("DELETE FROM applied WHERE stream_id = ?1", [stream.as_str()])?;
        let document = beginning.document.as_ref();
        transaction.execute(
            "INSERT INTO begun VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                stream.as_str(),
                beginning.at.seq.to_sql(),
                document.map(|document| &document.doc_key),
                document.map(|document| &document.payload[..]),
                json!(beginning.stale.reason_codes).to_string(),
            ],
        )?;
        Ok(())
    }
}

fn write(transaction: &mut Transaction<'_>, stream: &StreamId, events: &[Event]) -> Result<(), HandlerError> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(HandlerError::stop)?
        .as_micros();
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
            now as i64,
        ])?;
    }
    Ok(())
}

fn shown(stream: &StreamId, event: &Event) -> Value {
    json!({
        "stream": stream.as_str(),
        "seq": event.seq.get(),
        "kind": event.kind.as_str(),
        "payload": String::from_utf8_lossy(&event.payload),
    })
}

fn has_reached(status: &Status, until: Option<u64>) -> bool {
    until.is_some_and(|until| status.streams.values().all(|stream| stream.applied.seq.get() >= until))
}

/// What was shown last, so that only changes of phase, another schema version and new tokens are shown.
type Shown = (&'static str, (Option<u32>, u64), BTreeMap<StreamId, &'static str>);

/// See [`Shown`].
#[derive(Default)]
struct Phases(Option<Shown>);

impl Phases {
    fn show(&mut self, status: &Status) {
        let streams = status
            .streams
            .iter()
            .map(|(id, stream)| (id.clone(), stream.phase.code()))
            .collect();
        let spoken = (status.schema_version, status.counters.refreshes);
        let phases = Some((status.phase.code(), spoken, streams));
        if self.0 != phases {
            println!("{}", serde_json::to_string(status).unwrap_or_default());
            self.0 = phases;
        }
    }
}
