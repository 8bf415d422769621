//! An embedded SpacetimeDB host for the development and the tests of Spacetime Sync.
//!
//! It connects a data directory, the published engine (`spacetimedb-core`) and an HTTP listener, and waits for a
//! signal. The engine itself handles data, WebAssembly, SQL, subscriptions and tokens. This program is the thin layer
//! that the official server puts around the engine. It never runs JavaScript modules and is not meant for production.

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

/// The default of `RUST_LOG`. The engine's snapshot worker warns about every new database, which is no news.
const LOG_FILTER: &str = "warn,spacetimedb_engine::snapshot=error";

/// An embedded SpacetimeDB host, for development and tests only.
///
/// It serves one data directory over HTTP and WebSocket as the official server does, with the same engine and the
/// same commit log. It is not hardened, has no TLS and no limits on who may publish: never put it on a network.
#[derive(Parser)]
#[command(name = "spacetime-sync-host", version)]
struct Args {
    /// Directory for the databases, the keys and the pid file; created if it is missing.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Address to listen on. Port 0 takes a free port; the line on stdout names it.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// Allow an address that other machines can reach.
    #[arg(long)]
    allow_remote: bool,
    /// File to record every sync in, with what it made safe; for tests that cut the power.
    #[arg(long, value_name = "FILE")]
    sync_ledger: Option<PathBuf>,
    /// Delay of each sync in milliseconds.
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
            "other machines can reach {}: listen on 127.0.0.1, or pass --allow-remote if you want that",
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
    // Everything is flushed. Ending the runtime as well would cancel the engine's background work, and that would
    // panic.
    std::mem::forget(runtime);
    served
}

/// The engine's panic message when the database of a call has lost its log. The engine catches the panic and fails the
/// call.
const LOG_GONE: &str = "local durability: actor vanished";
/// Notified by such a panic; [`lost_a_log`] then looks into it.
static LOG_IS_GONE: Notify = Notify::const_new();

/// Ends the process after a panic, because the engine's memory may no longer agree with its log. The next start reads
/// the log. A lost log alone is no reason to end: a call may have waited for its turn while its database was cleared or
/// deleted.
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

/// Waits until a running database loses its log, as on a full disk.
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
    // The pid file comes first, so that a second host on the same directory fails for that reason, whatever its
    // address.
    let claim = node::claim(&data_dir)?;
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    let node = Arc::new(Node::open(data_dir, claim, address.port(), cores).await?);
    // Replays every log before the first request, because the engine lets a second caller wait for only five seconds.
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
        () = lost_a_log(&node) => bail!("a database lost its log: check that the disk is not full, and start the host again"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    node.shut_down().await
}
