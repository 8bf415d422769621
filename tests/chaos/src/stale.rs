//! Drill: clients whose position SpacetimeDB cannot continue. Either the missing events exist only in the authority, or
//! SpacetimeDB has lost more than the clients.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use spacetime_sync_stdb::admin::Breaking;

use crate::stage::{Setting, Stage};
use crate::{Record, Scale};
use spacetime_sync_tests::lane::{BridgeOptions, LaneOptions};

/// How soon a sweep must begin.
const SOON: Duration = Duration::from_secs(30);
/// Largest payload of the events that are committed meanwhile.
const LARGEST: usize = 1_000;

/// A lane with tokens, with which clients may read history from the bridge. Retention policies take effect at once.
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
    // Each stream misses four times its window.
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
            .context("no client read history from the authority")?;

        stage.lane.publish(Breaking::DeleteData).await?;
        record.fault("spacetimedb wiped");
        stage.recovers(record, Instant::now()).await?;
    }
    record.figure("events_missed_each_time", scale.missed);
    record.figure("window_events", window);
    record.figure("pages_of_the_authority", replayed);
    Ok(())
}

/// Waits until SpacetimeDB has dropped events that a client lacks.
async fn windows_are_past(stage: &Stage, heads: &[u64]) -> anyhow::Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        let oldest: u64 = stage.lane.oldest_held().await?.iter().sum();
        if oldest > heads.iter().sum::<u64>() + heads.len() as u64 {
            return Ok(());
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "the oldest held events do not move: {oldest}"
        );
        tokio::time::sleep(spacetime_sync_tests::STEP).await;
    }
}
