//! Two bridges on one authority.

use std::time::{Duration, Instant};

use rand::Rng;
use spacetime_sync_tests::lane::{Bridge, BridgeOptions};

use super::{FAULTS, SOON, Scene, ready};

/// How soon a standby leads after the leader was killed. The lock goes with the leader's connection, and the standby
/// asks for it twice a second.
const TAKEOVER: Duration = Duration::from_secs(5);

async fn role(bridge: &Bridge, wanted: &str) {
    bridge
        .until("/healthz", SOON, |_, health| health["role"] == wanted)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_concurrent_bridges_neither_lose_nor_duplicate_events() {
    let mut scene = Scene::start(2).await;
    let both = BridgeOptions {
        set: vec![("bridge.lead", "false".to_owned())],
        ..BridgeOptions::default()
    };
    let mut bridges = [
        scene.lane.bridge_with(&both).unwrap(),
        scene.lane.bridge_with(&both).unwrap(),
    ];
    scene.write();
    for bridge in &bridges {
        role(bridge, "leading").await;
    }
    for _ in 0..FAULTS {
        for bridge in &bridges {
            ready(bridge).await;
        }
        scene.pause().await;
        let at = scene.random.random_range(0..bridges.len());
        bridges[at].process.kill();
        scene.published_is_held().await;
        scene.pause().await;
        bridges[at] = scene.lane.bridge_with(&both).unwrap();
    }
    scene.settle().await;
    for bridge in &bridges {
        let (healthy, health) = bridge.ask("/healthz").await.unwrap();
        assert!(healthy && health["halted"] == serde_json::json!([]), "{health}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_a_killed_leader() {
    let mut scene = Scene::start(2).await;
    let mut leader = scene.lane.bridge().unwrap();
    role(&leader, "leading").await;
    scene.write();
    for _ in 0..FAULTS {
        ready(&leader).await;
        let standby = scene.lane.bridge().unwrap();
        role(&standby, "standby").await;
        ready(&standby).await;
        scene.pause().await;
        leader.process.kill();
        let killed = Instant::now();
        role(&standby, "leading").await;
        ready(&standby).await;
        let took = killed.elapsed();
        eprintln!("the standby leads after {took:?}");
        assert!(took < TAKEOVER, "the standby leads after {took:?}");
        scene.published_is_held().await;
        leader = standby;
    }
    scene.settle().await;
}
