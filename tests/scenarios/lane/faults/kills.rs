//! SIGKILL of each process of the lane, and SIGTERM of the bridge.

use std::time::{Duration, Instant};

use rand::Rng;
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::postgres::Cluster;

use super::{FAULTS, RECOVERY, SOON, Scene, ready};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_bridge_neither_loses_nor_duplicates_events() {
    let mut scene = Scene::start(2).await;
    scene.write();
    for _ in 0..FAULTS {
        let bridge = scene.bridge().await;
        scene.pause().await;
        bridge.process.kill();
        scene.published_is_held().await;
    }
    let _bridge = scene.lane.bridge().unwrap();
    scene.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lane_recovers_from_a_killed_spacetimedb() {
    let mut scene = Scene::start(2).await;
    if !scene.lane.server.is_own() {
        eprintln!("skipped: the server of SYNC_STDB_URL is not ours to kill");
        return;
    }
    let bridge = scene.lane.bridge().unwrap();
    scene.write();
    for _ in 0..FAULTS {
        if scene.random_bool() {
            ready(&bridge).await;
        }
        scene.pause().await;
        scene.lane.server.restart().await.unwrap();
    }
    scene.settle().await;
    assert!(bridge.process.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn published_events_survive_a_kill_of_spacetimedb() {
    let mut scene = Scene::start(1).await;
    if !scene.lane.server.is_own() {
        eprintln!("skipped: the server of SYNC_STDB_URL is not ours to kill");
        return;
    }
    scene.write();
    // A single kill may find everything already on disk.
    for _ in 0..2 * FAULTS {
        let bridge = scene.lane.bridge().unwrap();
        ready(&bridge).await;
        scene.pause().await;
        scene.lane.server.kill();
        // The bridge records what was acknowledged and ends, so nobody publishes anything again before the comparison.
        bridge.until("/readyz", SOON, |ready, _| !ready).await.unwrap();
        assert_eq!(bridge.stop().await.unwrap(), 0);
        scene.lane.server.restart().await.unwrap();
        scene.published_is_held().await;
    }
    let _bridge = scene.lane.bridge().unwrap();
    scene.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_client_has_saved_checkpoint_and_effects_together() {
    let mut scene = Scene::start(2).await;
    let _bridge = scene.lane.bridge().unwrap();
    scene.write();
    let mut looks = 0;
    for _ in 0..2 * FAULTS {
        let pause = scene.random.random_range(30..600);
        let killed_at = Instant::now() + Duration::from_millis(pause);
        let client = &mut scene.clients[0];
        // Another connection sees what a kill at that moment would leave. A look is cheaper than a kill.
        while Instant::now() < killed_at {
            is_whole(client);
            looks += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        client.kill();
        is_whole(client);
        client.start().unwrap();
    }
    scene.settle().await;
    eprintln!("{looks} looks between {} kills", 2 * FAULTS);
}

fn is_whole(client: &Follower) {
    for saved in client.saved().unwrap() {
        assert_eq!((saved.checkpoint, saved.events), (saved.last, saved.last), "{saved:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lane_recovers_from_a_killed_postgres() {
    let cluster = Cluster::start().await.unwrap();
    if !cluster.can_be_killed() {
        eprintln!("skipped: the server of DATABASE_URL is not ours to kill");
        return;
    }
    let mut scene = Scene::start_on(&cluster, 2).await;
    let bridge = scene.lane.bridge().unwrap();
    scene.write();
    for _ in 0..FAULTS {
        if scene.random_bool() {
            ready(&bridge).await;
        }
        scene.pause().await;
        cluster.kill().unwrap();
        scene.pause().await;
        cluster.restart().await.unwrap();
    }
    scene.settle().await;
    scene.published_is_held().await;
    assert!(bridge.process.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_bridge_finishes_its_calls_in_flight() {
    let mut scene = Scene::start(1).await;
    scene.write();
    for _ in 0..FAULTS {
        let bridge = scene.bridge().await;
        scene.pause().await;
        assert_eq!(bridge.stop().await.unwrap(), 0);
        scene.published_is_held().await;
    }
    // A backlog and no writer that holds a row: the bridge can record every acknowledged event.
    scene.stop_writing().await;
    scene.write_bulk(20_000, 300).await;
    let bridge = scene.lane.bridge().unwrap();
    let carries = bridge.until("/internal/v1/spacetime/sync/metrics", RECOVERY, |_, metrics| {
        metrics["counters"]["published_events"].as_u64() > Some(0)
    });
    carries.await.unwrap();
    assert_eq!(bridge.stop().await.unwrap(), 0);
    let held = scene.lane.held(&scene.streams).await.unwrap();
    assert_eq!(scene.lane.recorded(&scene.streams).await.unwrap(), held);
    let _bridge = scene.lane.bridge().unwrap();
    scene.settle().await;
}
