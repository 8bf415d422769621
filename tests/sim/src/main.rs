//! `sim`: runs seeds of the simulation, reports what happened, and minimises failures.

use clap::Parser;
use serde_json::json;
use spacetime_sync_sim::{Coverage, MirrorSetup, Setup, run, run_mirror, run_seeds, stories};

/// The seeded simulation of the lane.
#[derive(Parser)]
struct Arguments {
    /// Number of seeds.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run this seed only, and tell its story.
    #[arg(long)]
    seed: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.seed {
        Some(seed) => one(seed, arguments.json),
        None => many(&arguments),
    }
}

fn one(seed: u64, as_json: bool) -> anyhow::Result<()> {
    let setup = Setup::of(seed);
    let ended = run(&setup, !as_json);
    let mirrored = run_mirror(&MirrorSetup::of(seed), !as_json);
    let violation = ended.violation.as_ref().or(mirrored.violation.as_ref());
    if as_json {
        let told = json!({
            "seed": seed,
            "steps": ended.steps,
            "trace": format!("{:016x}", ended.trace),
            "violation": violation.map(ToString::to_string),
            "coverage": ended.coverage.to_json(),
            "mirror": {
                "steps": mirrored.steps,
                "trace": format!("{:016x}", mirrored.trace),
                "coverage": mirrored.coverage.to_json(),
            },
        });
        println!("{told}");
    } else {
        for planned in &setup.plan {
            println!("{planned}");
        }
        for line in &ended.story {
            println!("{line}");
        }
        println!("{} steps, trace {:016x}", ended.steps, ended.trace);
        for line in &mirrored.story {
            println!("{line}");
        }
        println!("the mirror: {} steps, trace {:016x}", mirrored.steps, mirrored.trace);
        println!("{}", stories(seed));
    }
    match violation {
        None => Ok(()),
        Some(violation) => anyhow::bail!("seed {seed}: {violation}"),
    }
}

fn many(arguments: &Arguments) -> anyhow::Result<()> {
    let report = run_seeds(arguments.from, arguments.seeds, 8);
    let missing = if report.seeds >= Coverage::FLOOR_SEEDS {
        report.coverage.missing(report.seeds)
    } else {
        Vec::new()
    };
    if arguments.json {
        println!("{}", report.to_json());
    } else {
        print!("{}", report.coverage);
        println!(
            "{} seeds, {} steps in {:.1} s; healed after p50 {} ms, p99 {} ms, at most {} ms; trace {:016x}",
            report.seeds,
            report.steps,
            report.took.as_secs_f64(),
            report.healed_ms(0.5),
            report.healed_ms(0.99),
            report.healed_ms(1.0),
            report.trace
        );
        if let Some(first) = report.failures.first() {
            println!("{}", stories(first.seed));
        }
    }
    for failure in &report.failures {
        eprintln!("seed {}: {}", failure.seed, failure.violation);
    }
    anyhow::ensure!(report.failures.is_empty(), "an invariant does not hold");
    anyhow::ensure!(missing.is_empty(), "happened too rarely: {missing:?}");
    Ok(())
}
