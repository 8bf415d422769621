//! Slow clients, and clients that were away for a long time.

use spacetime_sync_tests::lane::{stream, wait};
use spacetime_sync_tests::load::{Payload, Writer};

use super::{FAULTS, Pace, RECOVERY, SOON, Scene};

/// The size of a large payload, and the number of such events: about 220 MB.
const LARGE: (usize, u64) = (200_000, 1_100);
/// The most memory that a slow client may use.
const MEMORY_MB: u64 = 150;
/// How long the slow client takes for a batch of at most ten events: far longer than the lane, on any machine.
const SLOW_MS: u64 = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_uses_bounded_memory_and_slows_nobody_down() {
    let mut scene = Scene::start(0).await;
    scene.streams = vec![stream(1)];
    let (mut quick, slow) = (scene.client().await, scene.client().await);
    let mut slow = slow.option("--slow-ms", SLOW_MS);
    quick.start().unwrap();
    slow.start().unwrap();
    let _bridge = scene.lane.bridge().unwrap();
    let mut writer = Writer::new(
        &scene.lane.authority,
        &scene.streams[0],
        "large",
        Payload::Fixed(LARGE.0),
        1,
    );
    writer.append_all(LARGE.1, 5).await.unwrap();
    scene.committed = LARGE.1;
    assert!(scene.lane.published(RECOVERY).await);
    quick.until_applied(LARGE.1, RECOVERY).await.unwrap();
    let behind = LARGE.1 - slow.applied();
    assert!(
        behind > LARGE.1 / 2,
        "the slow client is {behind} events behind: it was not slow"
    );
    let most = [&quick, &slow].map(|client| client.process().unwrap().memory_mb().unwrap().1);
    eprintln!("the slow client was {behind} events behind; peak memory in MB, quick and slow client: {most:?}");
    assert!(
        most.iter().all(|most| *most < MEMORY_MB),
        "peak memory in MB, quick and slow client: {most:?}"
    );
    slow.kill();
    slow.clear_options();
    slow.start().unwrap();
    slow.until_applied(LARGE.1, RECOVERY).await.unwrap();
    scene.is_equal(&quick).await;
    scene.is_equal(&slow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_away_for_100_000_events_catches_up_and_goes_live() {
    let mut scene = Scene::start(2).await;
    let _bridge = scene.lane.bridge().unwrap();
    scene.write();
    let away = &scene.clients[0];
    wait(SOON, "the first events", || away.applied() > 100).await;
    away.kill();
    scene.stop_writing().await;
    scene.write_bulk(100_000, 300).await;
    assert!(scene.lane.published(RECOVERY).await);
    let missed = scene.committed - scene.clients[0].applied();
    assert!(missed >= 100_000, "it missed {missed} events");
    // Writers continue without a pause while it catches up, so that history and live events meet on the way.
    scene.write_at(Pace::Dense);
    let started = std::time::Instant::now();
    scene.clients[0].start().unwrap();
    scene.clients[0].until_live(RECOVERY).await.unwrap();
    let applied = scene.clients[0].applied();
    assert!(
        applied >= scene.committed,
        "the client is live with {applied} events, though {} existed at its start",
        scene.committed
    );
    eprintln!("live {:?} after its start, {missed} events later", started.elapsed());
    // The same from many positions near the head.
    for _ in 0..2 * FAULTS {
        scene.clients[0].kill();
        scene.pause().await;
        scene.clients[0].start().unwrap();
        scene.clients[0].until_live(SOON).await.unwrap();
    }
    scene.settle().await;
}
