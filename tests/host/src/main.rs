//! An embedded SpacetimeDB host for the development and the tests of Spacetime Sync.
//!
//! Wires a data directory, the published engine (`spacetimedb-core`) and an HTTP listener together and waits for a
//! signal. Data, WebAssembly, SQL, subscriptions and tokens are the engine's own; what is written here is the thin
//! layer that the official server puts around it. It never runs JavaScript modules and is never meant for production.

mod auth;
mod call;
mod database;
mod error;
mod identity;
mod ledger;
mod logs;
mod metrics;
mod node;
mod publish;
mod registry;
mod routes;
mod schema;
mod sql;
mod subscribe;

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::serve::ListenerExt as _;
use clap::Parser;
use spacetimedb::startup;
use spacetimedb::util::jobs::JobCores;
use spacetimedb_paths::FromPathUnchecked as _;
use spacetimedb_paths::server::ServerDataDir;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tracing_subscriber::EnvFilter;

use crate::node::Node;

#[global_allocator]
static ALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What goes to stderr unless `RUST_LOG` says otherwise. The snapshot worker warns of every database that is new.
const LOG_FILTER: &str = "warn,spacetimedb_engine::snapshot=error";

/// An embedded SpacetimeDB host, for development and tests only.
///
/// It serves one data directory over HTTP and WebSocket as the official server does, with the same engine and the
/// same commit log. It is not hardened, has no TLS and no limits on who may publish: never put it on a network.
#[derive(Parser)]
#[command(name = "spacetime-sync-host", version)]
struct Args {
    /// Directory that holds the databases, the keys and the pid file; created when it is missing.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Address to listen on. Port 0 takes a free port, which the line on stdout then names.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// Allow an address that other machines can reach.
    #[arg(long)]
    allow_remote: bool,
    /// For tests that cut the power: file in which every sync is written down, with what it made safe.
    #[arg(long, value_name = "FILE")]
    sync_ledger: Option<PathBuf>,
    /// How much longer each sync takes, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 0, requires = "sync_ledger")]
    sync_delay_ms: u64,
}

fn main() -> ExitCode {
    stop_on_panic();
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("spacetime-sync-host: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    if !args.allow_remote && !args.listen.ip().is_loopback() {
        bail!(
            "{} can be reached by other machines: listen on 127.0.0.1, or add --allow-remote if that is meant",
            args.listen
        );
    }
    if let Some(file) = &args.sync_ledger {
        let delay = Duration::from_millis(args.sync_delay_ms);
        ledger::keep(file, delay).with_context(|| format!("cannot keep the ledger {}", file.display()))?;
    }
    // Stdout carries the one line that says where the host listens; everything else goes to stderr.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_FILTER));
    tracing_subscriber::fmt()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .init();

    let data_dir = std::path::absolute(&args.data_dir).context("the data directory has no path")?;
    let data_dir = ServerDataDir::from_path_unchecked(data_dir);
    let cores = startup::pin_threads();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all();
    cores.tokio.configure(&mut builder);
    let runtime = builder.build().context("cannot start the async runtime")?;
    cores.rayon.configure(runtime.handle());
    let databases = cores.databases.make_database_runners();
    let served = runtime.block_on(serve(data_dir, args.listen, databases));
    // Everything is flushed. Ending the runtime too would cancel the engine's background work, which panics then.
    std::mem::forget(runtime);
    served
}

/// How the engine panics when a call's database has no log any more. It catches that, and fails the call.
const LOG_GONE: &str = "local durability: actor vanished";
/// Somebody must find out why.
static LOG_IS_GONE: Notify = Notify::const_new();

/// After a panic the engine's memory and its log may have come apart: the process ends, and the next start reads the
/// log. A log that is gone is no such case by itself: a call may have waited for its turn while its database was
/// cleared or deleted.
fn stop_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str().is_some_and(|text| text.starts_with(LOG_GONE)) {
            return LOG_IS_GONE.notify_one();
        }
        report(panic);
        std::process::exit(101);
    }));
}

/// Waits until a database that should be there has lost its log, as on a full disk.
async fn lost_a_log(node: &Node) {
    loop {
        LOG_IS_GONE.notified().await;
        if !node.is_whole().await {
            return;
        }
    }
}

async fn serve(data_dir: ServerDataDir, listen: SocketAddr, cores: JobCores) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // The pid file first: a second host on the same directory must hear of that, whatever its address.
    let claim = node::claim(&data_dir)?;
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    let node = Arc::new(Node::open(data_dir, claim, address.port(), cores).await?);
    // Every log is replayed before the first request: the engine gives a second caller only five seconds to wait.
    node.launch_all().await?;

    let app = routes::router(node.clone());
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "listening on http://{address}")?;
    stdout.flush()?;
    drop(stdout);

    let listener = listener.tap_io(|tcp| {
        if let Err(e) = tcp.set_nodelay(true) {
            tracing::warn!("cannot set TCP_NODELAY: {e}");
        }
    });
    tokio::select! {
        served = axum::serve(listener, app) => served?,
        () = lost_a_log(&node) => bail!("a database has lost its log: start again, and what is in it is there"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    node.shut_down().await
}
