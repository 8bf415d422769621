//! Drill: a mirror before two relays, one that lies and falls silent and one that comes and goes, and the mirror itself is
//! killed. The lane must not lag meanwhile; and in the end the first relay has every event, each as one thing.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use rand::Rng as _;
use spacetime_sync_tests::mirror::{Mirror, Mirrors};
use spacetime_sync_tests::port;
use spacetime_sync_tests::relays::{OddRelay, RealRelay, Received, Treats};

use crate::stage::Stage;
use crate::{Record, Scale};

/// How soon the mirror must have published what waited.
const PUBLISHED: Duration = Duration::from_secs(180);
/// No relay fails so often that an entry is parked, or a person would have to do something.
const SET: [(&str, &str); 2] = [("attempts", "1000"), ("relay_deadline_ms", "500")];

/// What a relay does that is none.
fn lies() -> [(&'static str, Treats); 7] {
    [
        ("relay forgets what it takes", Treats::Forgets),
        ("relay answers about another event", Treats::OfAnother),
        ("relay answers with garbage", Treats::Garbage),
        ("relay answers with too much", Treats::Flood),
        ("relay closes within its answer", Treats::MidFrame),
        ("relay never answers", Treats::Silently),
        ("relay has too much to do", Treats::Refusing("rate-limited: slow down")),
    ]
}

pub(super) async fn lie(stage: &mut Stage, scale: Scale, record: &mut Record) -> anyhow::Result<()> {
    let mirrors = Mirrors::of(&stage.lane.database).await?;
    let (odd, address) = (OddRelay::start(Treats::Honestly).await?, port::free()?);
    let mut goes = RealRelay::start_at(address).await?;
    let mut received = vec![odd.received.clone(), goes.received.clone()];
    let policy = format!(
        "insert into runtime.sync_mirror_policy (policy_id, source, pattern, schema, nostr_kind, relays) values
         ('drill', 'events', 'runtime.run.*', 'openagents.bridge.receipt_ptr.v1', 30078, array['{}', '{}'])",
        odd.url(),
        goes.url()
    );
    stage.lane.sql(&policy).await?;
    let mut mirror = mirrors.start(&SET)?;
    for _ in 0..scale.faults {
        for (what, treats) in lies() {
            record.fault(what);
            odd.treat(treats);
            // The lane does not wait for the end of this fault.
            let began = Instant::now();
            stage.recovers(record, began).await?;
            if stage.random.random_bool(0.5) {
                record.fault("relay down");
                goes.stop();
                stage.pause().await;
                goes = RealRelay::start_at(address).await?;
                received.push(goes.received.clone());
            }
            if stage.random.random_bool(0.5) {
                record.fault("mirror killed");
                mirror.process.kill();
                mirror = mirrors.start(&SET)?;
            }
            let lasts = stage.lasting(scale.longest / 4);
            tokio::time::sleep(lasts).await;
            odd.treat(Treats::Honestly);
        }
    }
    let committed = stage.stop_writing().await?;
    let ended = Instant::now();
    published(&mirror, &odd.received, committed).await?;
    record.figure("published_after_ms", ended.elapsed().as_millis() as u64);
    record.figure(
        "sent_to_relays",
        received.iter().map(|relay| relay.all().len()).sum::<usize>(),
    );
    for relay in &received {
        for (name, ids) in relay.ids() {
            anyhow::ensure!(ids.len() == 1, "{name} was published as {} things", ids.len());
        }
    }
    Ok(())
}

/// Waits until the relay has been sent everything and nothing waits any more.
async fn published(mirror: &Mirror, relay: &Received, committed: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + PUBLISHED;
    loop {
        let (things, waiting) = (relay.ids().len() as u64, mirror.metric("outbox_depth").await);
        if things == committed && waiting == Some(0) {
            let parked = mirror.metric("outbox_parked").await.context("no metrics")?;
            anyhow::ensure!(parked == 0, "{parked} entries are parked");
            return Ok(());
        }
        anyhow::ensure!(mirror.process.is_running(), "the mirror ended");
        anyhow::ensure!(
            Instant::now() < deadline,
            "after {PUBLISHED:?}, {things} of {committed} events reached the relay, and {waiting:?} wait"
        );
        tokio::time::sleep(spacetime_sync_tests::STEP).await;
    }
}
