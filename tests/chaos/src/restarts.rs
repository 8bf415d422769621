//! Drills: processes end and are started again, while events are committed.

use std::time::{Duration, Instant};

use crate::stage::{Setting, Stage};
use crate::{Record, Scale};
use spacetime_sync_tests::lane::{Bridge, BridgeOptions};
use spacetime_sync_tests::scene::ready;

/// The longest time that a process is away.
const AWAY: Duration = Duration::from_secs(3);
/// Largest payload of the events that are committed meanwhile.
const LARGEST: usize = 1_000;
const SOON: Duration = Duration::from_secs(20);
const METRICS: &str = "/internal/v1/spacetime/sync/metrics";

pub(super) async fn bridge(stage: &mut Stage, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    for number in 0..2 * scale.faults {
        stage.pause().await;
        if number % 2 == 0 {
            stage.bridge.process.kill();
            record.fault("bridge killed");
            stage.published_is_held().await?;
        } else {
            let code = stage.bridge.stop().await?;
            anyhow::ensure!(code == 0, "the bridge ended with {code}");
            record.fault("bridge told to end");
        }
        let away = stage.lasting(AWAY);
        tokio::time::sleep(away).await;
        let ended = Instant::now();
        stage.start_bridge()?;
        stage.recovers(record, ended).await?;
    }
    Ok(())
}

pub(super) async fn spacetimedb(stage: &mut Stage, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    for _ in 0..scale.faults {
        stage.pause().await;
        stage.lane.server.kill();
        record.fault("spacetimedb killed");
        let away = stage.lasting(AWAY);
        tokio::time::sleep(away).await;
        let ended = Instant::now();
        stage.lane.server.restart().await?;
        stage.recovers(record, ended).await?;
        stage.published_is_held().await?;
    }
    Ok(())
}

pub(super) async fn client(stage: &mut Stage, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    for _ in 0..2 * scale.faults {
        stage.pause().await;
        stage.clients[0].kill();
        record.fault("client killed");
        for saved in stage.clients[0].saved()? {
            let whole = (saved.checkpoint, saved.events) == (saved.last, saved.last);
            anyhow::ensure!(whole, "the checkpoint does not match the applied events: {saved:?}");
        }
        let away = stage.lasting(AWAY);
        tokio::time::sleep(away).await;
        let ended = Instant::now();
        stage.clients[0].start()?;
        stage.recovers(record, ended).await?;
    }
    Ok(())
}

pub(super) async fn postgres(stage: &mut Stage, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    for _ in 0..scale.faults {
        stage.pause().await;
        stage.cluster.kill()?;
        record.fault("postgres killed");
        let away = stage.lasting(AWAY);
        tokio::time::sleep(away).await;
        let ended = Instant::now();
        stage.cluster.restart().await?;
        stage.recovers(record, ended).await?;
    }
    Ok(())
}

pub(super) async fn replay_and_resume(stage: &mut Stage, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    for _ in 0..scale.faults {
        stage.clients[0].kill();
        let before = stage.clients[0].applied();
        stage.write_bulk(scale.missed, LARGEST).await?;
        record.fault("client away");
        let ended = Instant::now();
        stage.clients[0].start()?;
        stage.recovers(record, ended).await?;
        let replayed = stage.clients[0].applied() - before;
        anyhow::ensure!(replayed >= scale.missed / 4 * 4, "only {replayed} events were replayed");

        stage.bridge.process.kill();
        stage.write_bulk(scale.missed, LARGEST).await?;
        record.fault("bridge away");
        let ended = Instant::now();
        stage.start_bridge()?;
        stage.recovers(record, ended).await?;
    }
    record.figure("events_missed_each_time", scale.missed);
    Ok(())
}

/// A setting in which both bridges publish, because neither checks which one leads.
pub(super) fn two_bridges() -> Setting {
    Setting {
        bridge: BridgeOptions {
            set: vec![("bridge.lead", "false".to_owned())],
            ..BridgeOptions::default()
        },
        ..Setting::default()
    }
}

pub(super) async fn duplicate_delivery(stage: &mut Stage, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    let second = stage.lane.bridge_with(&stage.options)?;
    ready(&second, SOON).await?;
    for _ in 0..3 * scale.faults {
        stage.pause().await;
        stage.ways.bridge_spacetimedb.cut();
        record.fault("links of both bridges cut");
        stage.ways.clients.cut();
        record.fault("connections of all clients cut");
        let ended = Instant::now();
        stage.recovers(record, ended).await?;
    }
    let committed = stage.stop_writing().await?;
    anyhow::ensure!(stage.lane.published(SOON).await, "not everything is published");
    let acknowledged = published(&stage.bridge).await? + published(&second).await?;
    let repeated = acknowledged.saturating_sub(committed);
    record.figure("appended_again_and_absorbed", repeated);
    let dropped = |at: usize| stage.clients[at].status()["counters"]["duplicates_dropped"].as_u64();
    let dropped: u64 = (0..stage.clients.len()).filter_map(dropped).sum();
    record.figure("dropped_by_clients", dropped);
    anyhow::ensure!(repeated > 0, "no event was delivered twice");
    anyhow::ensure!(second.stop().await? == 0, "the second bridge did not stop cleanly");
    Ok(())
}

async fn published(bridge: &Bridge) -> anyhow::Result<u64> {
    let (_, metrics) = bridge.ask(METRICS).await?;
    let published = metrics["counters"]["published_events"].as_u64();
    published.ok_or_else(|| anyhow::anyhow!("the metrics hold no counter of published events: {metrics}"))
}
