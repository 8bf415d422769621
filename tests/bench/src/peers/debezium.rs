//! Debezium: its engine reads the authority's own log from the WAL, and hands it to a consumer in Python. The writers are the
//! lane's, and no bridge runs.

use std::convert::Infallible;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use spacetime_sync_authority::Authority;
use spacetime_sync_proto::StreamId;
use spacetime_sync_tests::postgres::{Cluster, Database};

use super::driven::{Consumed, per_second};
use super::{Extent, Figures, MANY_STREAMS, Measure, PACE, PACED_STREAMS, SIZE, latencies};
use crate::child::{Child, READY};
use crate::lane::{streams, write, write_paced};
use crate::measure::{Log, now_us};

/// What runs the engine.
const CONSUMER: &str = "tests/peers/debezium.py";
/// How long the engine may take to start.
const UP_LIMIT: Duration = Duration::from_secs(60);
/// The events after which it counts as warm: Java compiles what runs often, and a hundredth of a short run would be spent on
/// that.
const WARM: u64 = 20_000;
/// How many of them are committed at once, and how often: more slowly than the engine reads.
const WARMING: (usize, Duration) = (500, Duration::from_millis(100));

/// An authority, and the folder of what the engine writes.
struct Running {
    authority: Authority,
    database: Database,
    folder: tempfile::TempDir,
    port: u16,
    _cluster: Cluster,
}

/// Measures once, on a Postgres of its own.
pub(super) async fn measure(python: &Path, measure: Measure, extent: &Extent) -> anyhow::Result<Figures> {
    let running = Running::start().await?;
    let figures = match measure {
        Measure::OneStream => running.live(python, 1, extent.events).await,
        Measure::ManyStreams => running.live(python, MANY_STREAMS, extent.events).await,
        Measure::Single => running.single(python, PACE * extent.paced.as_secs()).await,
        Measure::Subscribers | Measure::Away => anyhow::bail!("Debezium does not do this"),
    };
    figures.with_context(|| format!("Debezium says: {}", running.log()))
}

impl Running {
    async fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::start().await?;
        let set = [
            "--no-psqlrc",
            "--quiet",
            "--command",
            "alter system set wal_level = logical",
        ];
        let mut psql = tokio::process::Command::new(cluster.psql());
        let status = psql.arg(cluster.url()).args(set).kill_on_drop(true).status().await?;
        anyhow::ensure!(status.success(), "cannot set wal_level");
        cluster.restart().await?;
        let database = cluster.create_database().await?;
        Ok(Self {
            authority: Authority::connect(database.url(), 8).await?,
            database,
            folder: tempfile::Builder::new().prefix("sync-peer-").tempdir()?,
            port: cluster.addr().context("the cluster is not ours")?.port(),
            _cluster: cluster,
        })
    }

    async fn live(&self, python: &Path, count: usize, events: u64) -> anyhow::Result<Figures> {
        let consumer = self.consumer(python, events, false).await?;
        let begun_us = now_us();
        write(&self.authority, &streams(count), events, SIZE).await?;
        let consumed: Consumed = consumer.report().await?;
        Ok(vec![per_second(events, consumed.last_us - begun_us)])
    }

    async fn single(&self, python: &Path, events: u64) -> anyhow::Result<Figures> {
        let consumer = self.consumer(python, events, true).await?;
        let written = write_paced(&self.authority, &streams(PACED_STREAMS), PACE, events, SIZE).await?;
        latencies(&written, &consumer.report::<Consumed>().await?.consumed_at_us)
    }

    /// A consumer to which the engine streams.
    async fn consumer(&self, python: &Path, events: u64, each: bool) -> anyhow::Result<Child> {
        let mut command = Command::new(python);
        command
            .arg(std::fs::canonicalize(CONSUMER).context("not started in the project's folder")?)
            .args(["--port", &self.port.to_string(), "--database", self.database.name()])
            .args(["--events", &events.to_string(), "--size", &SIZE.mean().to_string()])
            .args(["--warm", &WARM.to_string()]);
        if each {
            command.arg("--each");
        }
        let log = File::create(self.folder.path().join("log"))?;
        let mut child = Child::start_in("Debezium", &command, self.folder.path(), log)?;
        tokio::select! {
            ready = child.ready() => ready?,
            failed = self.warm() => match failed? {},
            () = tokio::time::sleep(UP_LIMIT) => anyhow::bail!("Debezium does not start"),
        }
        Ok(child)
    }

    /// Commits events of a stream of its own, again and again: the engine sees only what comes after its slot.
    async fn warm(&self) -> anyhow::Result<Infallible> {
        let stream_id = StreamId::new(READY)?;
        let (count, every) = WARMING;
        let (mut log, mut beat) = (Log::new(&stream_id, SIZE), tokio::time::interval(every));
        loop {
            beat.tick().await;
            self.authority.append_batch(&stream_id, &log.new_events(count)).await?;
        }
    }

    /// The end of what the engine has said.
    fn log(&self) -> String {
        let log = std::fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(2_000)..]).into_owned()
    }
}
