//! See `scripts/chaos`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use rand::Rng;
use spacetime_sync_chaos::storm::{FleetArgs, fleet};
use spacetime_sync_chaos::{Drill, Plan, Scale, run};

/// Breaks the lane in every way there is a drill for, and says whether it got whole again by itself.
#[derive(Parser)]
struct Args {
    /// Does this drill alone; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Drill>,
    /// Where SUMMARY.md, results.jsonl and logs go.
    #[arg(long, overrides_with = "out")]
    out: Option<PathBuf>,
    /// Repeats what was random in another run.
    #[arg(long)]
    seed: Option<u64>,
    /// One fault of each kind, and smaller ones.
    #[arg(long)]
    quick: bool,
    /// Clients of the reconnect storm.
    #[arg(long)]
    storm: Option<usize>,
    /// Ends with one line of JSON on stdout.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// The clients of a storm: started by the drill itself.
    #[command(hide = true)]
    Fleet(FleetArgs),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if let Some(Command::Fleet(args)) = args.command {
        fleet(args).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut scale = if args.quick { Scale::QUICK } else { Scale::WHOLE };
    scale.storm = args.storm.unwrap_or(scale.storm);
    let plan = Plan {
        drills: if args.only.is_empty() {
            Drill::value_variants().to_vec()
        } else {
            args.only
        },
        out: args
            .out
            .unwrap_or_else(|| std::env::temp_dir().join("spacetime-sync-chaos")),
        seed: args.seed.unwrap_or_else(|| rand::rng().random()),
        scale,
    };
    let out = plan.out.clone();
    eprintln!("seed {}, report in {}", plan.seed, out.display());
    let (good, outcomes) = run(plan).await?;
    if args.json {
        println!(
            "{}",
            serde_json::json!({ "held": good, "out": out, "drills": outcomes })
        );
    } else {
        print!("{}", std::fs::read_to_string(out.join("SUMMARY.md"))?);
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
