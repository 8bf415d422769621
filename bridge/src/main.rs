//! `spacetime-sync`: the bridge daemon and the operator's tool.

mod cli;

use std::convert::Infallible;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use spacetime_sync_authority::{Authority, Server};
use spacetime_sync_bridge::config::{Config, EXAMPLE};
use spacetime_sync_bridge::issuing::Issuing;
use spacetime_sync_bridge::run::Neighbour;
use spacetime_sync_bridge::status::Status;
use spacetime_sync_bridge::tasks::joined;
use spacetime_sync_bridge::{http, run};
use spacetime_sync_doors::quota::Rate;
use spacetime_sync_issuer::history::Histories;
use spacetime_sync_issuer::http::Desk;
use spacetime_sync_issuer::keys::{KeyFolder, now};
use spacetime_sync_issuer::revocation::Messenger;
use spacetime_sync_stdb::identity;
use spacetime_sync_stdb::tokens::read_token;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;

/// Carries the events that the runtime commits in Postgres into SpacetimeDB.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the bridge until SIGTERM.
    Run {
        /// The configuration, in TOML. Every key can come from the environment instead: SPACETIME_SYNC__SECTION__KEY.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Run a gate between clients and SpacetimeDB until SIGTERM. It reads the section [gate] alone.
    Gate {
        /// The configuration, in TOML. Every key can come from the environment instead: SPACETIME_SYNC__GATE__KEY.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Run a mirror to relays of Nostr until SIGTERM. It reads the sections [mirror] and [authority] alone.
    Mirror {
        /// The configuration, in TOML. Every key can come from the environment instead: SPACETIME_SYNC__MIRROR__KEY.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// What the mirror is to publish, has published, and has parked.
    #[command(subcommand)]
    Outbox(cli::outbox::OutboxCommand),
    /// Compare the documents of a table with its rows, and bring in what differs.
    Reproject(cli::reproject::ReprojectArgs),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Apply the lane's migrations to the authority's database.
    Migrate {
        /// postgres://user:password@host:port/database
        #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
        database_url: String,
        /// Let the connection to another machine do without sslmode=verify-full. Everybody on the way can then read the
        /// password, and use it.
        #[arg(long)]
        allow_plaintext: bool,
        /// Make the group roles PREFIX_runtime, PREFIX_bridge, PREFIX_purge, PREFIX_reading, PREFIX_audit and PREFIX_mirror, as
        /// far as they do not exist, and give them their rights. By default the migration that brings roles does that once, for spacetime_sync.
        #[arg(long, value_name = "PREFIX", value_parser = role_prefix)]
        role_prefix: Option<String>,
    },
    /// Publish or update the module, and tell it which identity the bridge has.
    Publish(cli::publish::PublishArgs),
    /// Print which database has a name, and who owns it: the lines that pin a bridge to it.
    Database(cli::publish::DatabaseArgs),
    /// The keys that sync tokens are signed with.
    #[command(subcommand)]
    Keys(cli::keys::KeysCommand),
    /// Session credentials, signed with a key of your own, for trials and scripts.
    #[command(subcommand)]
    Session(cli::session::SessionCommand),
    /// Compare authority, SpacetimeDB, clients and a legacy lane while events flow. Fails if anything differs.
    Parity(cli::parity::ParityArgs),
    /// Let an identity read a stream for some days.
    Grant(cli::grants::GrantArgs),
    /// Take away an identity's right to read a stream.
    Revoke(cli::grants::RevokeArgs),
    /// List the grants that the owner gave by hand, and until when.
    Grants(cli::grants::GrantsArgs),
    /// Compare what SpacetimeDB holds with the authority. Fails if something is wrong.
    Verify(cli::repair::VerifyArgs),
    /// After a restore: make SpacetimeDB forget what the authority does not have.
    Rewind(cli::repair::ChangeArgs),
    /// Let the bridge refill the windows of streams from the authority.
    Republish(cli::repair::RepublishArgs),
    /// Print the identity of a token, or of a bridge that signs its own tokens.
    Identity {
        /// The file that holds the token.
        #[arg(required_unless_present = "issuer", conflicts_with = "issuer")]
        token_file: Option<PathBuf>,
        /// The `issuer.url` of the bridge.
        #[arg(long, value_parser = cli::publish::issuer_url)]
        issuer: Option<String>,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Read and check the configuration, and print all values without secrets.
    Check {
        /// The configuration, in TOML.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Print an example configuration: every key with its default and its meaning.
    Example,
}

/// How often the bridge reads the folder of `[seals]` again.
const SEALS_RELOAD: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    // This library logs the addresses of relays with the credentials in them. The mirror tells of relays itself.
    let silent = "nostr_relay_pool=off".parse().expect("a directive");
    tracing_subscriber::fmt()
        .with_env_filter(filter.add_directive(silent))
        .with_writer(std::io::stderr)
        .with_ansi(shows_colours())
        .init();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            cli::tell(format_args!("error: cannot start the async runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match to_the_end(runtime, execute(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::tell(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Colours only on a terminal, and only if the user wants them: https://no-color.org.
fn shows_colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !unwanted
}

/// Runs the work to its end. If it panics, the caller panics as well.
fn to_the_end<T: Send + 'static>(runtime: Runtime, work: impl Future<Output = T> + Send + 'static) -> T {
    // Workers drive the sockets and timers, so the work runs on one of them. On this thread, every wake-up would pass through
    // a worker first.
    let ended = runtime.block_on(runtime.spawn(work));
    // This does not wait for threads that block, for example in a handshake with a dead server.
    runtime.shutdown_background();
    ended.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()))
}

async fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run { config } => run(cli::load(config)?).await,
        Command::Gate { config } => cli::gate::run(config).await,
        Command::Mirror { config } => cli::mirror::run(config).await,
        Command::Outbox(command) => cli::outbox::execute(command).await,
        Command::Reproject(args) => cli::reproject::execute(args).await,
        Command::Config(ConfigCommand::Check { config }) => {
            let config = cli::load(config)?;
            config.spacetimedb.token()?;
            config.admin_token()?;
            config.gate_token()?;
            config.open_issuer()?;
            cli::say(config.to_toml().trim_end())
        }
        Command::Config(ConfigCommand::Example) => cli::say(EXAMPLE.trim_end()),
        Command::Migrate {
            database_url,
            allow_plaintext,
            role_prefix,
        } => {
            let server = Server::at(&database_url).allow_plaintext(allow_plaintext);
            match role_prefix {
                None => Authority::migrate(server).await?,
                Some(prefix) => Authority::migrate_with_roles(server, &prefix).await?,
            }
            cli::say("the database has all migrations of this build")
        }
        Command::Publish(args) => cli::publish::publish_module(args).await,
        Command::Database(args) => cli::publish::database(args).await,
        Command::Keys(command) => cli::keys::execute(command, now()),
        Command::Session(command) => cli::session::execute(command, now()).await,
        Command::Parity(args) => cli::parity::compare(args).await,
        Command::Grant(args) => cli::grants::grant(args).await,
        Command::Revoke(args) => cli::grants::revoke(args).await,
        Command::Grants(args) => cli::grants::list(args).await,
        Command::Verify(args) => cli::repair::verify(args).await,
        Command::Rewind(args) => cli::repair::rewind(args).await,
        Command::Republish(args) => cli::repair::republish(args).await,
        Command::Identity { token_file, issuer } => match (token_file, issuer) {
            (Some(file), _) => cli::say(token_identity(&file)?),
            (None, Some(issuer)) => cli::say(identity::of_bridge(&issuer)),
            (None, None) => anyhow::bail!("expected a file with a token, or --issuer"),
        },
    }
}

fn token_identity(token_file: &Path) -> anyhow::Result<String> {
    let token = read_token(token_file)?;
    identity::of_token(&token).with_context(|| format!("{} holds no token", token_file.display()))
}

/// Refuses what `runtime.sync_make_roles` would refuse.
fn role_prefix(text: &str) -> Result<String, String> {
    let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if starts_well && text.len() <= 41 && text.chars().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err("expected a-z, 0-9 and _, at most 41, and no digit first".to_owned())
    }
}

/// How many reports of clients wait until the lane takes them.
const REPORTS: usize = 64;

async fn run(config: Config) -> anyhow::Result<()> {
    // First of all, so that the bridge stops cleanly even if it is told to while it starts.
    let mut terminate = signal(SignalKind::terminate())?;
    let status = Arc::new(Status::new(config.bridge.stall_after()));
    let issuer = config.open_issuer()?;
    let target = cli::target(&config, issuer.as_ref())?;
    let seals = cli::sealing_keys(&config, issuer.as_ref())?;
    if target.pin.is_none() {
        tracing::warn!(
            database = target.database,
            "no pin: this bridge publishes to whichever database has that name, even if a stranger created it. Put what \
             `spacetime-sync database --token-file OWNER` prints into [spacetimedb]"
        );
    }
    let mut beside = JoinSet::new();
    if issuer.as_ref().is_none_or(|issuer| !Arc::ptr_eq(issuer.keys(), &seals)) {
        beside.spawn(keep_keys(seals.clone(), SEALS_RELOAD));
    }
    let (reports, reported) = mpsc::channel(REPORTS);
    let (desk, neighbour) = match (issuer, &config.issuer) {
        (Some(issuer), Some(settings)) => {
            let messenger = Messenger::new(&target);
            beside.spawn(keep_keys(issuer.keys().clone(), settings.keys_reload()));
            beside.spawn({
                let (issuer, messenger) = (issuer.clone(), messenger.clone());
                async move { issuer.tell_revocations(messenger).await }
            });
            let histories = Arc::new(Histories::new(&config.history, config.limits.frame_bytes));
            let desk = Desk {
                issuer: issuer.clone(),
                histories: histories.clone(),
                messenger,
                reports,
                proxy: config.http.proxy(),
            };
            let neighbour: Box<dyn Neighbour> = Box::new(Issuing {
                issuer,
                histories,
                pool_size: settings.pool_size,
            });
            (Some(Arc::new(desk)), Some(neighbour))
        }
        (None, _) | (Some(_), None) => (None, None),
    };
    let side = http::Side {
        status: status.clone(),
        desk,
        admins: Arc::new(http::Admins::new(
            config.admin_token()?.as_ref().map(http::AdminToken::new),
            config.gate_token()?.as_ref().map(http::AdminToken::new),
            Rate::per_minute(config.http.failures_per_minute, config.http.failures_burst),
            Instant::now(),
        )),
        proxy: config.http.proxy(),
    };
    let side = Arc::new(side);
    let doors = Doors::open()?;
    let (stop, stopping) = watch::channel(false);
    for (address, serves) in config.http.listeners() {
        let listener = tokio::net::TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
        tracing::info!(http = %listener.local_addr()?, ?serves, "listening");
        if serves == (http::Listener::Only { open: false }) && side.admins.admin.is_none() {
            tracing::warn!(
                "nobody can see metrics and the reasons of health: set http.admin_token_file or http.admin_listen"
            );
        }
        let (routes, bounds) = (http::router(&side, serves), config.http.bounds(serves));
        beside.spawn_on(http::server::serve(listener, routes, bounds), &doors.handle);
    }
    beside.spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        let _ = stop.send(true);
        // Keep the sender until the process ends, because the runner takes a dropped sender for a stop.
        std::future::pending::<()>().await;
    });
    tokio::select! {
        ended = run::run(config, target, seals, status, neighbour, reported, stopping) => ended?,
        never = outlast(beside) => match never {},
    }
    tracing::info!("stopped");
    Ok(())
}

/// Threads of their own for whoever asks over HTTP: what they ask for can keep a thread busy for long, and the lane does
/// not wait for one.
struct Doors {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Doors {
    fn open() -> std::io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.thread_name("doors").enable_all().build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        // A task may not wait for a runtime to end.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits for the tasks beside the lane. They run as long as the process, and only a panic ends them.
async fn outlast(mut tasks: JoinSet<()>) -> Infallible {
    while let Some(ended) = tasks.join_next().await {
        joined(ended);
    }
    std::future::pending().await
}

/// Reloads a folder of keys at intervals.
async fn keep_keys(keys: Arc<KeyFolder>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let keys = keys.clone();
        // Reading files blocks, so it runs on a blocking thread.
        joined(tokio::task::spawn_blocking(move || keys.reload()).await);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_time_that_is_too_long_is_refused() {
        for (watch, every, good) in [
            ("0", "1", true),
            ("86400", "30", true),
            ("18446744073709551615", "30", false),
            ("1", "18446744073709551615", false),
            ("1", "0", false),
        ] {
            let arguments = ["spacetime-sync", "parity", "--watch", watch, "--every", every];
            assert_eq!(Cli::try_parse_from(arguments).is_ok(), good, "{arguments:?}");
        }
    }

    #[test]
    fn parity_compares_with_one_legacy_lane() {
        for (arguments, good) in [
            ("--legacy-file a --legacy-seed 7", true),
            ("--legacy-table s.t", true),
            ("--legacy-file a --legacy-table s.t", false),
            ("--legacy-seed 7", false),
            ("--legacy-topic run:", false),
            ("--legacy-table s.t --legacy-topic run:", true),
        ] {
            let all = ["spacetime-sync", "parity"].into_iter().chain(arguments.split(' '));
            assert_eq!(Cli::try_parse_from(all).is_ok(), good, "{arguments}");
        }
    }

    #[test]
    fn a_panic_does_not_wait_for_a_thread_that_still_blocks() {
        let (release, blocked) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let main = std::thread::spawn(move || {
            let runtime = Runtime::new().unwrap();
            let work = async move {
                tokio::task::spawn_blocking(move || blocked.recv());
                panic!("on purpose")
            };
            let ended = catch_unwind(AssertUnwindSafe(|| to_the_end::<()>(runtime, work)));
            tell.send(ended.is_err()).unwrap();
        });
        let ended = told.recv_timeout(Duration::from_secs(10));
        drop(release);
        main.join().unwrap();
        assert_eq!(ended, Ok(true));
    }
}
