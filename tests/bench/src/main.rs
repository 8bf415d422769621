//! See `scripts/bench`: what each part of the lane carries alone, and what the whole lane carries.

mod background;
mod bare;
mod budget;
mod busy;
mod calls;
mod child;
mod client;
mod cpu;
mod crowd;
mod documents;
mod fan;
mod gate;
mod hostile;
mod idle;
mod in_turn;
mod lane;
mod long;
mod measure;
mod minting;
mod peers;
mod project;
mod reconnect;
mod report;
mod sessions;
mod stage;
mod streams;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use client::ClientArgs;
use crowd::CrowdArgs;
use documents::DocumentsArgs;
use report::Part;
use sessions::SessionsArgs;

/// Measures how fast the lane is, and what bounds it.
#[derive(Parser)]
struct Args {
    /// Take three minutes instead of half an hour: fewer events, fewer sizes.
    #[arg(long)]
    quick: bool,
    /// End with one line of JSON on stdout.
    #[arg(long)]
    json: bool,
    /// Measure only this part; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Measure the lane and its peers in turn, instead of the parts.
    #[arg(long, conflicts_with = "only")]
    peers: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// The client of a measurement. The measurement starts this itself.
    #[command(hide = true)]
    Client(ClientArgs),
    /// Many clients of a measurement. The measurement starts this itself.
    #[command(hide = true)]
    Crowd(CrowdArgs),
    /// The sessions of a measurement. The measurement starts this itself.
    #[command(hide = true)]
    Sessions(SessionsArgs),
    /// A client that begins with documents. The measurement starts this itself.
    #[command(hide = true)]
    Documents(DocumentsArgs),
    /// Shows where the CPU time of an event goes, by process and step, for bulk writers and for single events.
    Budget,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    match args.command {
        Some(Command::Client(args)) => {
            println!("{}", serde_json::to_string(&client::run(args).await?)?);
        }
        Some(Command::Crowd(args)) => crowd::run(args).await?,
        Some(Command::Sessions(args)) => sessions::run(args).await?,
        Some(Command::Documents(args)) => println!("{}", documents::client(args).await?),
        Some(Command::Budget) => budget::run(args.quick).await?,
        None if args.peers => peers::run(args.quick, args.json).await?,
        None => report::run(args.quick, args.json, &args.only).await?,
    }
    Ok(ExitCode::SUCCESS)
}
