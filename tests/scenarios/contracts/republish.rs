//! Modules that work with everybody who is connected are published over one another under load.

use spacetime_sync_stdb::admin::Breaking;
use spacetime_sync_tests::lane::wait;
use spacetime_sync_tests::variant::Variant;

use crate::lane::faults::{SOON, Scene, ready};

/// How often a part has connected anew: the clients, and the bridge.
async fn connected(scene: &Scene, bridge: &spacetime_sync_tests::lane::Bridge) -> (Vec<u64>, u64) {
    let count = |value: &serde_json::Value| value.as_u64().unwrap_or_default();
    let clients = scene.clients.iter();
    let clients = clients.map(|client| count(&client.status()["counters"]["reconnects"]));
    (
        clients.collect(),
        count(&bridge.metrics().await.unwrap()["counters"]["links"]),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn bridge_and_clients_survive_a_module_that_is_published_under_them() {
    let mut scene = Scene::start(2).await;
    let bridge = scene.lane.bridge().unwrap();
    ready(&bridge).await;
    for client in &scene.clients {
        client.until_live(SOON).await.unwrap();
    }
    scene.write();
    let before = connected(&scene, &bridge).await;
    // The server keeps every connection of the first, and cuts all at the second.
    let variant = Variant::Compatible.wasm().unwrap();
    scene.lane.publish_module(variant, Breaking::Refuse).await.unwrap();
    scene.pause().await;
    let between = connected(&scene, &bridge).await;
    assert_eq!(between, before, "an addition cuts no connection");
    let variant = Variant::Breaking.wasm().unwrap();
    scene
        .lane
        .publish_module(variant, Breaking::DisconnectClients)
        .await
        .unwrap();
    wait(SOON, "every client connects anew", || {
        scene.clients.iter().all(|client| {
            let status = client.status();
            status["phase"] == "live" && status["counters"]["reconnects"].as_u64() > Some(0)
        })
    })
    .await;
    bridge
        .until("/internal/v1/spacetime/sync/metrics", SOON, |_, metrics| {
            metrics["counters"]["links"].as_u64() > Some(before.1)
        })
        .await
        .unwrap();
    // And back.
    scene.lane.publish(Breaking::DisconnectClients).await.unwrap();
    scene.pause().await;
    scene.settle().await;
}
