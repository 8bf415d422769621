//! `fuzz`: runs the targets, replays findings, and makes the corpus again. `scripts/fuzz` builds and starts it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use spacetime_sync_fuzz::coverage::Coverage;
use spacetime_sync_fuzz::run::{Bounds, Report, fuzz, replay};
use spacetime_sync_fuzz::target::Entry;
use spacetime_sync_fuzz::{ALL, corpus, named};

#[derive(Parser)]
#[command(about = "Fuzzes everything that parses foreign bytes.")]
struct Args {
    /// How long to run, over all targets.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Run only this target; may be repeated.
    #[arg(long = "target", value_parser = target)]
    targets: Vec<&'static Entry>,
    /// The seed of all inputs; taken from the clock if absent.
    #[arg(long)]
    seed: Option<u64>,
    /// The most inputs per target.
    #[arg(long, default_value_t = u64::MAX)]
    executions: u64,
    /// The folder for inputs that break a property.
    #[arg(long, default_value = "target/fuzz")]
    findings: PathBuf,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
    /// Pass this input to a target and print the result.
    #[arg(long, num_args = 2, value_names = ["TARGET", "FILE"], conflicts_with_all = ["targets", "seed_corpus"])]
    replay: Vec<String>,
    /// Make the corpus in the tree again with the real encoders. Found inputs stay.
    #[arg(long)]
    seed_corpus: bool,
    /// List the targets.
    #[arg(long)]
    list: bool,
}

fn target(name: &str) -> Result<&'static Entry, String> {
    named(name).ok_or_else(|| {
        format!(
            "no such target; the targets are {}",
            ALL.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ")
        )
    })
}

fn main() -> ExitCode {
    match execute(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// True if all properties held.
fn execute(args: Args) -> anyhow::Result<bool> {
    let targets = if args.targets.is_empty() {
        ALL.to_vec()
    } else {
        args.targets.clone()
    };
    if args.list {
        targets
            .iter()
            .for_each(|entry| println!("{:<11} {}", entry.name, entry.about));
        return Ok(true);
    }
    if args.seed_corpus {
        for entry in targets {
            println!("{}: {} files", entry.name, corpus::make(entry)?);
        }
        return Ok(true);
    }
    if let [name, file] = args.replay.as_slice() {
        let entry = target(name).map_err(anyhow::Error::msg)?;
        let input = std::fs::read(file).with_context(|| format!("cannot read {file}"))?;
        let answer = replay(entry, &input)?;
        match &answer {
            Ok(verdict) => println!("{name}: {verdict:?}"),
            Err(message) => println!("{name}: {message}"),
        }
        return Ok(answer.is_ok());
    }
    let reports = run(&args, &targets)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        table(&reports);
    }
    Ok(reports
        .iter()
        .all(|report| report.finding.is_none() && report.executions > 0))
}

fn run(args: &Args, targets: &[&'static Entry]) -> anyhow::Result<Vec<Report>> {
    let seed = args.seed.unwrap_or_else(rand::random);
    let mut coverage = Coverage::take();
    if coverage.is_none() {
        eprintln!("fuzz: this build does not measure coverage; ./scripts/fuzz makes one that does");
    }
    let bounds = Bounds {
        time: Duration::from_secs(args.seconds) / targets.len() as u32,
        executions: args.executions,
    };
    let mut reports = Vec::new();
    for entry in targets {
        let report = fuzz(entry, seed, bounds, &mut coverage)?;
        if let Some(finding) = &report.finding {
            std::fs::create_dir_all(&args.findings)?;
            let file = args
                .findings
                .join(format!("{}-{}", entry.name, corpus::found_name(&finding.input)));
            std::fs::write(&file, &finding.input)?;
            eprintln!("fuzz: {} with seed {seed}: {}", entry.name, finding.message);
            eprintln!(
                "fuzz: the input is in {0}; replay it with: ./scripts/fuzz --replay {1} {0}\n\
                 fuzz: once it is fixed, keep it: cp {0} tests/fuzz/corpus/{1}/{2}",
                file.display(),
                entry.name,
                corpus::found_name(&finding.input),
            );
        }
        reports.push(report);
    }
    Ok(reports)
}

fn table(reports: &[Report]) {
    println!(
        "{:<11} {:>12} {:>12} {:>12} {:>7} {:>7} {:>8}  found",
        "target", "inputs", "taken", "refused", "kept", "edges", "per s"
    );
    for report in reports {
        let edges = report.edges.map_or("-".to_owned(), |edges| edges.to_string());
        let found = report
            .finding
            .as_ref()
            .map_or("nothing", |finding| finding.message.as_str());
        let rate = report.executions as f64 / report.seconds.max(0.001);
        println!(
            "{:<11} {:>12} {:>12} {:>12} {:>7} {:>7} {:>8.0}  {found}",
            report.target, report.executions, report.taken, report.refused, report.kept, edges, rate
        );
    }
    let executions: u64 = reports.iter().map(|report| report.executions).sum();
    let seconds: f64 = reports.iter().map(|report| report.seconds).sum();
    let seed = reports.first().map_or(0, |report| report.seed);
    println!("{executions} inputs in {seconds:.0} s, seed {seed}");
}
