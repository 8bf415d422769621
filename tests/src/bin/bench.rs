//! See `scripts/bench`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use spacetime_sync_tests::bench::client::{self, ClientArgs};
use spacetime_sync_tests::bench::{minting, report};
use spacetime_sync_tests::postgres::Cluster;

/// How long tokens are asked for when nothing else is measured.
const MINTING: Duration = Duration::from_secs(10);

/// How fast the lane is, and what bounds it.
#[derive(Parser)]
struct Args {
    /// Two minutes instead of a quarter of an hour: fewer events, fewer sizes.
    #[arg(long)]
    quick: bool,
    /// Ends with one line of JSON on stdout.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// The client of a measurement: started by the measurement itself.
    #[command(hide = true)]
    Client(ClientArgs),
    /// Only how many tokens a bridge gives out.
    Minting,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    match args.command {
        Some(Command::Client(args)) => {
            println!("{}", serde_json::to_string(&client::run(args).await?)?);
        }
        Some(Command::Minting) => {
            let minted = minting::run(&Cluster::start().await?, MINTING).await?;
            println!("{}", serde_json::to_string(&minted)?);
        }
        None => report::run(args.quick, args.json).await?,
    }
    Ok(ExitCode::SUCCESS)
}
