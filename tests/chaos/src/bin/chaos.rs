//! See `scripts/chaos`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use rand::Rng;
use spacetime_sync_chaos::storm::{FleetArgs, fleet};
use spacetime_sync_chaos::{Drill, Plan, Scale, run};

/// Breaks the lane with every drill and reports whether it recovered by itself.
#[derive(Parser)]
struct Args {
    /// Run only this drill; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Drill>,
    /// Folder for SUMMARY.md, results.jsonl and logs.
    #[arg(long, overrides_with = "out")]
    out: Option<PathBuf>,
    /// Repeat the random choices of another run.
    #[arg(long)]
    seed: Option<u64>,
    /// One fault of each kind, with smaller numbers.
    #[arg(long)]
    quick: bool,
    /// Number of clients in the reconnect storm.
    #[arg(long)]
    storm: Option<usize>,
    /// End with one line of JSON on stdout.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// The clients of a storm. The drill starts this itself.
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
