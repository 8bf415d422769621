//! Clients that the lane does not bring up event by event: what they lack is in the authority alone, or the lane has lost more
//! than they have.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use spacetime_sync_stdb::admin::Breaking;

use crate::stage::{Setting, Stage};
use crate::{Record, Scale};
use spacetime_sync_tests::lane::{BridgeOptions, LaneOptions};

/// How long a sweep may take to begin.
const SOON: Duration = Duration::from_secs(30);
/// Largest payload of what is committed meanwhile.
const LARGEST: usize = 1_000;

/// Clients have tokens, with which the bridge lets them read; policies are carried out at once.
pub(super) fn with_history() -> Setting {
    Setting {
        lane: LaneOptions {
            tokens: true,
            ..LaneOptions::default()
        },
        bridge: BridgeOptions {
            set: vec![("retention.every_ms", "200".to_owned())],
            ..BridgeOptions::default()
        },
        ..Setting::default()
    }
}

pub(super) async fn stale_cursor(stage: &mut Stage, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    // A stream's part of what is missed is four times its window.
    let window = scale.missed / stage.streams.len() as u64 / 4;
    let policy = format!("update runtime.sync_retention set window_events = {window}");
    stage.lane.sql(&policy).await?;
    let mut replayed = 0;
    for _ in 0..scale.faults {
        stage.clients[0].kill();
        let before = stage.clients[0].heads();
        stage.write_bulk(scale.missed, LARGEST).await?;
        windows_are_past(stage, &before).await?;
        record.fault("client below the window");
        let ended = Instant::now();
        stage.clients[0].start()?;
        stage.recovers(record, ended).await?;
        let pages = stage.clients[0].status()["counters"]["history_pages"].as_u64();
        replayed += pages
            .filter(|pages| *pages > 0)
            .context("the authority was not asked")?;

        stage.lane.publish(Breaking::DeleteData).await?;
        record.fault("spacetimedb wiped");
        stage.recovers(record, Instant::now()).await?;
    }
    record.figure("events_missed_each_time", scale.missed);
    record.figure("window_events", window);
    record.figure("pages_of_the_authority", replayed);
    Ok(())
}

/// Waits until SpacetimeDB holds less than a client lacks.
async fn windows_are_past(stage: &Stage, heads: &[u64]) -> anyhow::Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        let oldest: u64 = stage.lane.oldest_held().await?.iter().sum();
        if oldest > heads.iter().sum::<u64>() + heads.len() as u64 {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "the windows never move from {oldest}");
        tokio::time::sleep(spacetime_sync_tests::STEP).await;
    }
}
