//! Drills: the disk of SpacetimeDB or of a client is full for a while.
//!
//! A supervisor restarts what has ended, as one would in production, and counts how often it had to.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::stage::{Setting, Stage};
use crate::{Record, Scale, Skipped};
use spacetime_sync_tests::disk::SmallDisk;
use spacetime_sync_tests::lane::LaneOptions;
use spacetime_sync_tests::until;

/// Size of the disk, large enough for what a drill writes.
const MB: u64 = 512;
/// How soon somebody must have hit the full disk.
const SEEN: Duration = Duration::from_secs(30);
/// How often the supervisor checks.
const SUPERVISED: Duration = Duration::from_millis(500);
/// The error text of the system when a disk is full.
const NO_SPACE: &str = "No space left on device";
/// The error text of SQLite when a disk is full.
const SQLITE_FULL: &str = "database or disk is full";

fn disk() -> anyhow::Result<(tempfile::TempDir, SmallDisk)> {
    if !SmallDisk::is_allowed() {
        return Err(Skipped("only root may mount a small disk").into());
    }
    let folder = tempfile::Builder::new().prefix("sync-disk-").tempdir()?;
    let disk = SmallDisk::make(&folder.path().join("disk"), MB)?;
    Ok((folder, disk))
}

pub(super) async fn host(scale: Scale, seed: u64, logs: Option<&Path>, record: &mut Record) -> anyhow::Result<()> {
    let (_folder, disk) = disk()?;
    let setting = Setting {
        lane: LaneOptions {
            data: Some(disk.folder().to_owned()),
            ..LaneOptions::default()
        },
        ..Setting::default()
    };
    let mut stage = Stage::set(setting, seed).await?;
    let played = fill_host(&mut stage, &disk, scale, record).await;
    stage.close(played, record, logs).await
}

async fn fill_host(stage: &mut Stage, disk: &SmallDisk, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    let mut restarts = 0;
    for _ in 0..scale.faults {
        stage.pause().await;
        let before = stage.lane.server.log().matches(NO_SPACE).count();
        disk.fill()?;
        record.fault("disk of spacetimedb full");
        let (filled, lasts) = (Instant::now(), stage.lasting(scale.longest / 2));
        let seen = |stage: &Stage| stage.lane.server.log().matches(NO_SPACE).count() > before;
        while !seen(stage) || filled.elapsed() < lasts {
            anyhow::ensure!(filled.elapsed() < SEEN, "SpacetimeDB did not hit the full disk");
            restarts += u64::from(stage.lane.server.revive()?);
            tokio::time::sleep(SUPERVISED).await;
        }
        disk.free()?;
        let ended = Instant::now();
        // SpacetimeDB may notice only now that it has lost its log.
        restarts += stage.recovers_supervised(record, ended).await?;
        stage.published_is_held().await?;
    }
    record.figure("host_started_again_by_supervisor", restarts);
    Ok(())
}

pub(super) async fn client(scale: Scale, seed: u64, logs: Option<&Path>, record: &mut Record) -> anyhow::Result<()> {
    let (_folder, disk) = disk()?;
    let setting = Setting {
        store: Some(disk.folder().to_owned()),
        ..Setting::default()
    };
    let mut stage = Stage::set(setting, seed).await?;
    let played = fill_client(&mut stage, &disk, scale, record).await;
    stage.close(played, record, logs).await
}

async fn fill_client(stage: &mut Stage, disk: &SmallDisk, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    for _ in 0..scale.faults {
        stage.pause().await;
        let before = stage.clients[0].log().matches(SQLITE_FULL).count();
        disk.fill()?;
        record.fault("disk of a client full");
        let (filled, lasts) = (Instant::now(), stage.lasting(scale.longest));
        let client = &stage.clients[0];
        let seen = until(SEEN, || {
            client.log().matches(SQLITE_FULL).count() > before && filled.elapsed() >= lasts
        });
        anyhow::ensure!(seen.await, "the client did not hit the full disk: {}", client.log());
        disk.free()?;
        stage.recovers(record, Instant::now()).await?;
        // A client must survive a full disk without a restart.
        anyhow::ensure!(
            stage.clients[0].process()?.is_running(),
            "the client has ended: {}",
            stage.clients[0].log()
        );
    }
    Ok(())
}
