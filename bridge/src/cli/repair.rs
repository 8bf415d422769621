//! `verify`, `rewind` and `republish`: what an operator does after a restore.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use spacetime_sync_bridge::config::Config;
use spacetime_sync_ops::repair::{Finding, Report, Sides};
use spacetime_sync_proto::StreamId;

use super::halted::halted_streams;
use super::{both_sides, load, operator, say, sealing_keys};

#[derive(Args)]
pub(crate) struct RepairArgs {
    /// The bridge's configuration, in TOML. It says where both sides are, and which credential to use.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Only this stream. May be given several times.
    #[arg(long = "stream")]
    streams: Vec<StreamId>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    repair: RepairArgs,
    /// Read every event that SpacetimeDB holds, and not only the ends of its logs.
    #[arg(long)]
    deep: bool,
}

#[derive(Args)]
pub(crate) struct ChangeArgs {
    #[command(flatten)]
    repair: RepairArgs,
    /// Say what the command would do, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
pub(crate) struct RepublishArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// All streams.
    #[arg(long, conflicts_with = "streams", required_unless_present = "streams")]
    all: bool,
}

pub(crate) async fn verify(args: VerifyArgs) -> anyhow::Result<()> {
    let config = load(args.repair.config.clone())?;
    let mut reports = sides_of(&config, &args.repair).await?.verify(args.deep).await?;
    let halted = halted_streams(&config).await;
    for halted in halted.iter().flatten() {
        let report = reports.iter_mut().find(|report| report.stream_id == halted.stream_id);
        if let Some(report) = report {
            report.findings.push(Finding::Halted(halted.clone()));
        }
    }
    tell("verify", &reports, &args.repair, false)?;
    halted?;
    let wrong = reports.iter().filter(|report| !report.findings.is_empty()).count();
    anyhow::ensure!(wrong == 0, "{wrong} of {} streams have problems", reports.len());
    Ok(())
}

pub(crate) async fn rewind(args: ChangeArgs) -> anyhow::Result<()> {
    let reports = sides(&args.repair).await?.rewind(args.dry_run).await?;
    tell("rewind", &reports, &args.repair, args.dry_run)
}

pub(crate) async fn republish(args: RepublishArgs) -> anyhow::Result<()> {
    let ChangeArgs { repair, dry_run } = args.change;
    let reports = sides(&repair).await?.republish(dry_run).await?;
    tell("republish", &reports, &repair, dry_run)
}

async fn sides(args: &RepairArgs) -> anyhow::Result<Sides> {
    sides_of(&load(args.config.clone())?, args).await
}

async fn sides_of(config: &Config, args: &RepairArgs) -> anyhow::Result<Sides> {
    let issuer = config.open_issuer()?;
    let (authority, link) = both_sides(config, issuer.as_ref()).await?;
    Ok(Sides {
        authority,
        link,
        sealer: sealing_keys(config, issuer.as_ref())?,
        streams: args.streams.clone(),
        operator: operator(),
    })
}

fn tell(command: &str, reports: &[Report], args: &RepairArgs, dry_run: bool) -> anyhow::Result<()> {
    let wrong: Vec<_> = reports.iter().filter(|report| !report.findings.is_empty()).collect();
    let rewound = reports.iter().filter(|report| report.rewound_to.is_some()).count();
    if args.json {
        let worth_telling = |report: &&Report| !report.findings.is_empty() || report.rewound_to.is_some();
        let told: Vec<_> = reports.iter().filter(worth_telling).collect();
        let all = json!({
            "command": command,
            "dry_run": dry_run,
            "streams": reports.len(),
            "events_compared": reports.iter().map(|report| report.compared).sum::<u64>(),
            "wrong": wrong.len(),
            "rewound": rewound,
            "reports": told,
        });
        return say(all);
    }
    for report in reports {
        for finding in &report.findings {
            say(format_args!("{}: {finding}", report.stream_id))?;
        }
        if let Some(to) = report.rewound_to {
            let would = if dry_run { "would end" } else { "ends" };
            say(format_args!(
                "{}: SpacetimeDB's log {would} at seq {to}, and the bridge continues from there",
                report.stream_id
            ))?;
        }
    }
    say(format_args!(
        "{} streams checked, {} with problems",
        reports.len(),
        wrong.len()
    ))
}
