//! Drills: a whole lane of real processes under load, a fault, the fault's end, and a verdict.
//!
//! A drill holds when after each fault the lag is zero again by itself within [`RECOVERY`] of the fault's end, and in the
//! end every client's log is the authority's, byte for byte. The faults happen to real processes: they are killed, their
//! connections break or fall silent, their disk is full, their clock jumps. What is random follows from a seed; the
//! moments themselves also depend on the machine.
//!
//! What no drill does: alter bytes under way (TCP and the chain hash are for that), or break the authority's own disk.

pub mod report;
pub mod soak;
pub mod stage;
pub mod storm;

mod clock;
mod disk;
mod failover;
mod network;
mod restarts;
mod stale;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Map, Value};

use network::Pair;
use spacetime_sync_tests::follower::Verdict;
use stage::{Setting, Stage};

/// How soon after a fault's end the lag must be zero again.
pub const RECOVERY: Duration = Duration::from_secs(10);
/// How long a drill may take altogether.
const DRILL: Duration = Duration::from_secs(600);

/// What is done to the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Drill {
    /// Clients and bridge are away while much is committed, and go on where they were.
    ReplayAndResume,
    /// What a client lacks has left SpacetimeDB; then SpacetimeDB loses everything.
    StaleCursor,
    /// Two bridges publish everything twice, over links that break, to clients whose connections do.
    DuplicateDelivery,
    /// The bridge is killed or told to end, and started again.
    RestartBridge,
    /// SpacetimeDB is killed and started again.
    RestartSpacetimedb,
    /// A client is killed and started again.
    RestartClient,
    /// Postgres is killed and started again.
    RestartPostgres,
    /// Nothing passes between bridge and Postgres, one way or both.
    PartitionBridgePostgres,
    /// Nothing passes between bridge and SpacetimeDB, one way or both.
    PartitionBridgeSpacetimedb,
    /// Nothing passes between clients and SpacetimeDB, one way or both.
    PartitionClientSpacetimedb,
    /// Postgres vanishes for the bridge, without a word, and is there for who connects anew.
    HalfOpenBridgePostgres,
    /// The same of SpacetimeDB.
    HalfOpenBridgeSpacetimedb,
    /// SpacetimeDB vanishes for the clients.
    HalfOpenClientSpacetimedb,
    /// SpacetimeDB's disk is full for a while.
    DiskFullHost,
    /// A client's disk is full for a while.
    DiskFullClient,
    /// Postgres is killed, and its standby takes its place.
    PostgresFailover,
    /// The wall clock of one party after the other jumps an hour, either way, and back.
    ClockJump,
    /// Hundreds of clients lose their connections at once.
    ReconnectStorm,
}

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Faults of each kind.
    pub faults: usize,
    /// Clients of a storm.
    pub storm: usize,
    /// Events that are committed while somebody is away.
    pub missed: u64,
    /// How long a fault lasts at most that lasts.
    pub longest: Duration,
}

impl Scale {
    /// What `scripts/chaos` does.
    pub const WHOLE: Self = Self {
        faults: 3,
        storm: 500,
        missed: 20_000,
        longest: Duration::from_secs(12),
    };
    /// What fits into a test.
    pub const QUICK: Self = Self {
        faults: 1,
        storm: 60,
        missed: 2_000,
        longest: Duration::from_secs(2),
    };
}

/// What came of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// All that a drill asks for was so.
    Held,
    /// Something was not.
    Failed,
    /// This machine cannot do it.
    Skipped,
}

/// What a drill found, as `results.jsonl` has it.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Its name.
    pub drill: String,
    /// What came of it.
    pub verdict: Held,
    /// Why it failed or was skipped.
    pub why: Option<String>,
    /// What was random.
    pub seed: u64,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// From each fault's end until the lag was zero.
    pub recovery_ms: Vec<u64>,
    /// The longest of them.
    pub worst_recovery_ms: Option<u64>,
    /// Events committed.
    pub committed: u64,
    /// Clients whose logs were compared.
    pub clients: usize,
    /// What the comparison found, over all clients.
    pub log: Log,
    /// What else was measured.
    pub figures: Map<String, Value>,
    /// How long it took.
    pub seconds: u64,
}

/// Sums of [`Verdict`]s.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Log {
    /// Events applied.
    pub applied: u64,
    /// Events of the authority that are missing.
    pub missing: u64,
    /// Positions that are missing before the last one applied.
    pub gaps: u64,
    /// Events applied more than once.
    pub doubled: u64,
    /// Events that are not those of the authority.
    pub different: u64,
}

/// What is written down while a drill runs.
#[derive(Debug, Default)]
pub struct Record {
    faults: BTreeMap<String, u64>,
    recoveries: Vec<Duration>,
    figures: Map<String, Value>,
    committed: u64,
    verdicts: Vec<Verdict>,
}

/// Why a drill came to no verdict of its own.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Skipped(&'static str);

impl Drill {
    /// As on the command line.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    async fn play(self, scale: Scale, seed: u64, logs: Option<&Path>, record: &mut Record) -> anyhow::Result<()> {
        let setting = Setting::default();
        /// Sets a stage, plays on it, and takes it down, whatever came of it.
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
        }
    }
}

/// Runs a drill. Logs of its processes are kept in a folder, if there is one to keep them in.
pub async fn perform(drill: Drill, scale: Scale, seed: u64, logs: Option<&Path>) -> Outcome {
    let (started, mut record) = (Instant::now(), Record::default());
    let played = tokio::time::timeout(DRILL, drill.play(scale, seed, logs, &mut record)).await;
    let played = played.unwrap_or_else(|_| Err(anyhow::anyhow!("not over after {DRILL:?}")));
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

/// What `scripts/chaos` was asked for.
#[derive(Debug)]
pub struct Plan {
    /// The drills, in order.
    pub drills: Vec<Drill>,
    /// Where the report goes.
    pub out: PathBuf,
    /// What is random follows from it.
    pub seed: u64,
    /// How much of it.
    pub scale: Scale,
}

/// Runs the drills one after the other and writes the report. Good if each held.
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
