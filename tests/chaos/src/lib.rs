//! Drills: a whole lane of real processes under load, a fault, the end of the fault, and a verdict.
//!
//! A drill passes if after each fault the lag returns to zero within [`RECOVERY`] of the fault's end without help, and
//! if in the end every client's log equals the authority's, byte for byte. The faults hit real processes: processes are
//! killed, connections break or fall silent, disks fill up, clocks jump. A seed determines all random choices, but the
//! exact moments also depend on the machine.
//!
//! No drill alters bytes in flight (TCP and the chain hash cover that) or breaks the authority's own disk.

pub mod report;
pub mod soak;
pub mod stage;
pub mod storm;

mod clock;
mod disk;
mod failover;
mod network;
mod relays;
mod restarts;
mod stale;
mod upgrade;
mod wiped;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Map, Value};

use network::Pair;
use spacetime_sync_tests::follower::Verdict;
use stage::{Setting, Stage};

/// How soon after the end of a fault the lag must be zero again.
pub const RECOVERY: Duration = Duration::from_secs(10);
/// How long one drill may take in total.
const DRILL: Duration = Duration::from_secs(600);

/// What a drill does to the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Drill {
    /// Clients and bridge are away while many events are committed, and then resume where they were.
    ReplayAndResume,
    /// SpacetimeDB drops events that a client still lacks; later SpacetimeDB loses everything.
    StaleCursor,
    /// Two bridges publish everything twice, while their links and the clients' connections break.
    DuplicateDelivery,
    /// The bridge is killed or stopped, and started again.
    RestartBridge,
    /// SpacetimeDB is killed and started again.
    RestartSpacetimedb,
    /// A client is killed and started again.
    RestartClient,
    /// Postgres is killed and started again.
    RestartPostgres,
    /// No bytes pass between bridge and Postgres, in one or both directions.
    PartitionBridgePostgres,
    /// No bytes pass between bridge and SpacetimeDB, in one or both directions.
    PartitionBridgeSpacetimedb,
    /// No bytes pass between clients and SpacetimeDB, in one or both directions.
    PartitionClientSpacetimedb,
    /// Postgres silently vanishes for the bridge's open connections, but serves new ones.
    HalfOpenBridgePostgres,
    /// SpacetimeDB silently vanishes for the bridge's open link, but serves new ones.
    HalfOpenBridgeSpacetimedb,
    /// SpacetimeDB silently vanishes for the clients' open connections, but serves new ones.
    HalfOpenClientSpacetimedb,
    /// SpacetimeDB's disk is full for a while.
    DiskFullHost,
    /// A client's disk is full for a while.
    DiskFullClient,
    /// Postgres is killed, and its standby takes over.
    PostgresFailover,
    /// The wall clock of one party after another jumps an hour ahead or back, and returns.
    ClockJump,
    /// Hundreds of clients lose their connections at once.
    ReconnectStorm,
    /// SpacetimeDB loses everything while several clients change assignments.
    WipedAssignments,
    /// Relays of Nostr lie, fall silent and go down, and the mirror is killed.
    LyingRelays,
    /// Module, bridge and client are put back to the previous release and updated again, one by one.
    Upgrade,
}

/// How large a drill is.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Number of faults of each kind.
    pub faults: usize,
    /// Number of clients in a storm.
    pub storm: usize,
    /// Number of events that are committed while a party is away.
    pub missed: u64,
    /// The longest duration of a fault that has one.
    pub longest: Duration,
}

impl Scale {
    /// The scale of `scripts/chaos`.
    pub const WHOLE: Self = Self {
        faults: 3,
        storm: 500,
        missed: 20_000,
        longest: Duration::from_secs(12),
    };
    /// A scale that fits into a test.
    pub const QUICK: Self = Self {
        faults: 1,
        storm: 60,
        missed: 2_000,
        longest: Duration::from_secs(2),
    };
}

/// The result of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// Every requirement of the drill was met.
    Held,
    /// A requirement was not met.
    Failed,
    /// This machine cannot run the drill.
    Skipped,
}

/// The result of a drill and its figures, as `results.jsonl` has them.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Name of the drill.
    pub drill: String,
    /// The result.
    pub verdict: Held,
    /// Why it failed or was skipped.
    pub why: Option<String>,
    /// The seed of the random choices.
    pub seed: u64,
    /// Number of faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// The time from the end of each fault until the lag was zero.
    pub recovery_ms: Vec<u64>,
    /// The longest of them.
    pub worst_recovery_ms: Option<u64>,
    /// Number of committed events.
    pub committed: u64,
    /// Number of clients whose logs were compared.
    pub clients: usize,
    /// The result of the comparison, summed over all clients.
    pub log: Log,
    /// Further measurements.
    pub figures: Map<String, Value>,
    /// Duration of the drill.
    pub seconds: u64,
}

/// The sums of all [`Verdict`]s.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Log {
    /// Events that clients applied.
    pub applied: u64,
    /// Events of the authority that a client lacks.
    pub missing: u64,
    /// Missing positions before the last applied one.
    pub gaps: u64,
    /// Events that were applied more than once.
    pub doubled: u64,
    /// Events that differ from the authority's.
    pub different: u64,
}

/// Collects the results while a drill runs.
#[derive(Debug, Default)]
pub struct Record {
    faults: BTreeMap<String, u64>,
    recoveries: Vec<Duration>,
    figures: Map<String, Value>,
    committed: u64,
    verdicts: Vec<Verdict>,
}

/// Why a drill could not run.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Skipped(&'static str);

impl Drill {
    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    async fn play(self, scale: Scale, seed: u64, logs: Option<&Path>, record: &mut Record) -> anyhow::Result<()> {
        let setting = Setting::default();
        /// Sets up a stage, runs the drill on it, and takes it down, even if the drill failed.
        macro_rules! played {
            ($setting:expr, $play:path $(, $more:expr)*) => {{
                let mut stage = Stage::set($setting, seed).await?;
                let played = $play(&mut stage, scale, record $(, $more)*).await;
                stage.close(played, record, logs).await
            }};
        }
        match self {
            Self::ReplayAndResume => played!(setting, restarts::replay_and_resume),
            Self::StaleCursor => played!(stale::with_history(), stale::stale_cursor),
            Self::DuplicateDelivery => played!(restarts::two_bridges(), restarts::duplicate_delivery),
            Self::RestartBridge => played!(setting, restarts::bridge),
            Self::RestartSpacetimedb => played!(setting, restarts::spacetimedb),
            Self::RestartClient => played!(setting, restarts::client),
            Self::RestartPostgres => played!(setting, restarts::postgres),
            Self::PartitionBridgePostgres => played!(setting, network::partition, Pair::BridgePostgres),
            Self::PartitionBridgeSpacetimedb => played!(setting, network::partition, Pair::BridgeSpacetimedb),
            Self::PartitionClientSpacetimedb => played!(setting, network::partition, Pair::ClientSpacetimedb),
            Self::HalfOpenBridgePostgres => played!(setting, network::half_open, Pair::BridgePostgres),
            Self::HalfOpenBridgeSpacetimedb => played!(setting, network::half_open, Pair::BridgeSpacetimedb),
            Self::HalfOpenClientSpacetimedb => played!(setting, network::half_open, Pair::ClientSpacetimedb),
            Self::DiskFullHost => disk::host(scale, seed, logs, record).await,
            Self::DiskFullClient => disk::client(scale, seed, logs, record).await,
            Self::PostgresFailover => played!(setting, failover::failover),
            Self::ClockJump => clock::jump(scale, seed, logs, record).await,
            Self::ReconnectStorm => played!(setting, storm::storm),
            Self::WipedAssignments => played!(wiped::with_tokens(), wiped::assignments),
            Self::LyingRelays => played!(setting, relays::lie),
            Self::Upgrade => played!(setting, upgrade::upgrade),
        }
    }
}

/// Runs a drill. If `logs` names a folder, the logs of its processes are kept there.
pub async fn perform(drill: Drill, scale: Scale, seed: u64, logs: Option<&Path>) -> Outcome {
    let (started, mut record) = (Instant::now(), Record::default());
    let played = tokio::time::timeout(DRILL, drill.play(scale, seed, logs, &mut record)).await;
    let played = played.unwrap_or_else(|_| Err(anyhow::anyhow!("the drill did not finish within {DRILL:?}")));
    record.outcome_of(&drill.name(), seed, started.elapsed(), played)
}

impl Record {
    fn recovered(&mut self, took: Duration) {
        eprintln!("  lag zero {took:.1?} after the fault's end");
        self.recoveries.push(took);
    }

    fn fault(&mut self, kind: &str) {
        *self.faults.entry(kind.to_owned()).or_default() += 1;
    }

    fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }

    fn outcome_of(self, drill: &str, seed: u64, took: Duration, played: anyhow::Result<()>) -> Outcome {
        let worst = self.recoveries.iter().max().copied();
        let sum = |of: fn(&Verdict) -> u64| self.verdicts.iter().map(of).sum::<u64>();
        let log = Log {
            applied: sum(|verdict| verdict.applied),
            missing: sum(|verdict| verdict.missing),
            gaps: sum(|verdict| verdict.gaps),
            doubled: sum(|verdict| verdict.duplicates),
            different: sum(|verdict| verdict.different),
        };
        let (verdict, why) = match played {
            Err(error) if error.is::<Skipped>() => (Held::Skipped, Some(error.to_string())),
            Err(error) => (Held::Failed, Some(format!("{error:#}"))),
            Ok(()) if self.faults.is_empty() => (Held::Failed, Some("no fault happened".to_owned())),
            Ok(()) if worst.is_none() => (Held::Failed, Some("no recovery was measured".to_owned())),
            Ok(()) if worst > Some(RECOVERY) => {
                let why = format!(
                    "a recovery took {:?}, more than {RECOVERY:?}",
                    worst.unwrap_or_default()
                );
                (Held::Failed, Some(why))
            }
            Ok(()) if self.verdicts.iter().any(|verdict| !verdict.is_equal()) => {
                (Held::Failed, Some("a log differs from the authority's".to_owned()))
            }
            Ok(()) => (Held::Held, None),
        };
        Outcome {
            drill: drill.to_owned(),
            verdict,
            why,
            seed,
            faults: self.faults,
            recovery_ms: self.recoveries.iter().map(|took| took.as_millis() as u64).collect(),
            worst_recovery_ms: worst.map(|took| took.as_millis() as u64),
            committed: self.committed,
            clients: self.verdicts.len(),
            log,
            figures: self.figures,
            seconds: took.as_secs(),
        }
    }
}

/// The settings of a run of `scripts/chaos`.
#[derive(Debug)]
pub struct Plan {
    /// The drills, in order.
    pub drills: Vec<Drill>,
    /// Folder for the report.
    pub out: PathBuf,
    /// The seed of all random choices.
    pub seed: u64,
    /// How large the drills are.
    pub scale: Scale,
}

/// Runs the drills one after another and writes the report. True if all of them passed.
pub async fn run(plan: Plan) -> anyhow::Result<(bool, Vec<Outcome>)> {
    for (variable, whose) in [("DATABASE_URL", "Postgres"), ("SYNC_STDB_URL", "SpacetimeDB")] {
        anyhow::ensure!(
            std::env::var_os(variable).is_none(),
            "the drills kill servers and fill disks: unset {variable}, so that they start a {whose} of their own"
        );
    }
    let mut report = report::Report::begin(&plan)?;
    for drill in &plan.drills {
        eprintln!("{} …", drill.name());
        let logs = plan.out.join("logs").join(drill.name());
        let outcome = perform(*drill, plan.scale, plan.seed, Some(&logs)).await;
        eprintln!("{outcome}");
        report.add(outcome)?;
    }
    report.end()
}
