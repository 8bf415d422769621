//! `spacetime-sync`: the bridge daemon and the operator's tool.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use spacetime_sync_bridge::authority::Authority;
use spacetime_sync_bridge::config::{Config, read_token};
use spacetime_sync_bridge::publish::{Request, build_module, identity, publish};
use spacetime_sync_bridge::status::Status;
use spacetime_sync_bridge::stdb::admin::{Admin, Breaking};
use spacetime_sync_bridge::{http, pump};
use spacetime_sync_proto::StreamId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// Carries what the runtime commits in Postgres into SpacetimeDB.
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
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Apply the lane's migrations to the authority's database.
    Migrate {
        /// postgres://user:password@host:port/database
        #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
        database_url: String,
    },
    /// Publish or update the module, and tell it which identity the bridge has.
    Publish(PublishArgs),
    /// Let an identity read a stream.
    Grant(GrantArgs),
    /// Take that right away.
    Revoke(GrantArgs),
    /// Print the identity that a token stands for.
    Identity {
        /// The file that holds the token.
        token_file: PathBuf,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Read it, check it and print what it comes to, without secrets.
    Check {
        /// The configuration, in TOML.
        #[arg(long)]
        config: Option<PathBuf>,
    },
}

#[derive(Args)]
struct ServerArgs {
    /// http://host:port of the SpacetimeDB server.
    #[arg(long)]
    uri: String,
    /// Name of the database.
    #[arg(long)]
    database: String,
}

#[derive(Args)]
struct PublishArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Token of the owner. A new identity is made when the file is not there.
    #[arg(long)]
    token_file: PathBuf,
    /// Token of the bridge. A new identity is made when the file is not there.
    #[arg(long)]
    bridge_token_file: PathBuf,
    /// A module that is built already.
    #[arg(long, conflicts_with = "module")]
    wasm: Option<PathBuf>,
    /// Folder of the module, to build it.
    #[arg(long, default_value = "module")]
    module: PathBuf,
    /// Allow a change that disconnects clients.
    #[arg(long)]
    break_clients: bool,
    /// Delete everything the database holds and begin anew. The bridge publishes it again.
    #[arg(long, conflicts_with = "break_clients")]
    delete_data: bool,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct GrantArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Token of the owner or of the bridge.
    #[arg(long)]
    token_file: PathBuf,
    /// The identity that may read, in hex.
    #[arg(long, value_parser = identity_in_hex)]
    identity: String,
    /// The stream; may be given several times.
    #[arg(long = "stream", required = true)]
    streams: Vec<StreamId>,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(execute(cli.command));
    // What still blocks, such as a handshake with a dead server, is not waited for.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run { config } => run(load(config)?).await,
        Command::Config(ConfigCommand::Check { config }) => {
            let config = load(config)?;
            config.token()?;
            println!("{config:#?}");
            Ok(())
        }
        Command::Migrate { database_url } => {
            Authority::migrate(&database_url).await?;
            println!("the database has all migrations of this build");
            Ok(())
        }
        Command::Publish(args) => publish_module(args).await,
        Command::Grant(args) => {
            let admin = admin(&args)?;
            for stream in &args.streams {
                admin.grant(&args.identity, stream).await?;
            }
            Ok(())
        }
        Command::Revoke(args) => {
            let admin = admin(&args)?;
            for stream in &args.streams {
                admin.revoke(&args.identity, stream).await?;
            }
            Ok(())
        }
        Command::Identity { token_file } => {
            println!("{}", identity(&token_file, &read_token(&token_file)?)?);
            Ok(())
        }
    }
}

fn identity_in_hex(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.len() == 64 && digits.chars().all(|c| c.is_ascii_hexdigit()) {
        Ok(digits.to_owned())
    } else {
        Err("expected 64 hexadecimal digits, as `spacetime-sync identity` prints them".to_owned())
    }
}

fn load(path: Option<PathBuf>) -> anyhow::Result<Config> {
    Ok(Config::load(path.as_deref(), std::env::vars())?)
}

fn admin(args: &GrantArgs) -> anyhow::Result<Admin> {
    Ok(Admin::new(
        &args.server.uri,
        &args.server.database,
        read_token(&args.token_file)?,
    ))
}

async fn run(config: Config) -> anyhow::Result<()> {
    let status = Arc::new(Status::new(config.bridge.stall_after()));
    let (stop, stopping) = watch::channel(false);
    let listener = tokio::net::TcpListener::bind(config.http.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.http.listen))?;
    tracing::info!(http = %listener.local_addr()?, "listening");
    tokio::spawn(axum::serve(listener, http::router(status.clone())).into_future());
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        let _ = stop.send(true);
        // Kept, so that the receivers never see it gone before the process ends.
        std::future::pending::<()>().await;
    });
    pump::run(config, status, stopping).await?;
    tracing::info!("stopped");
    Ok(())
}

async fn publish_module(args: PublishArgs) -> anyhow::Result<()> {
    let wasm = match &args.wasm {
        Some(path) => std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => build_module(&args.module).await?,
    };
    let breaking = match (args.break_clients, args.delete_data) {
        (false, false) => Breaking::Refuse,
        (true, _) => Breaking::DisconnectClients,
        (false, true) => Breaking::DeleteData,
    };
    let report = publish(Request {
        uri: args.server.uri,
        database: args.server.database,
        owner_token: args.token_file,
        bridge_token: args.bridge_token_file,
        wasm,
        breaking,
    })
    .await?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    println!(
        "{} database {}",
        if report.created { "created" } else { "updated" },
        report.database
    );
    println!("owner  {}\nbridge {}", report.owner, report.bridge);
    if report.changes.is_empty() {
        println!("the schema is the same as before");
    }
    report.changes.iter().for_each(|change| println!("  {change}"));
    Ok(())
}
