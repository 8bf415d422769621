//! See `scripts/soak`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rand::Rng;
use spacetime_sync_chaos::Held;
use spacetime_sync_chaos::soak::{Soak, soak};

/// Runs load and faults for a long time. At the end all logs must be equal and memory must be flat.
#[derive(Parser)]
struct Args {
    /// How long to run.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Seconds between two faults.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Repeat the random choices of another run.
    #[arg(long)]
    seed: Option<u64>,
    /// End with one line of JSON on stdout.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    for variable in ["DATABASE_URL", "SYNC_STDB_URL"] {
        let set = std::env::var_os(variable).is_some();
        anyhow::ensure!(
            !set,
            "the soak breaks its servers: unset {variable}, so that it starts its own"
        );
    }
    let seed = args.seed.unwrap_or_else(|| rand::rng().random());
    eprintln!("seed {seed}");
    let outcome = soak(Soak {
        lasts: Duration::try_from_secs_f64(args.minutes * 60.0)?,
        every: Duration::from_secs(args.every),
        seed,
    })
    .await;
    eprintln!("{outcome}");
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    }
    Ok(if outcome.verdict == Held::Held {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
