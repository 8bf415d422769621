//! A SpacetimeDB that has lost everything.

use spacetime_sync_stdb::admin::Breaking;
use spacetime_sync_tests::lane::wait;

use super::{RECOVERY, SOON, Scene, ready};

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_spacetimedb_is_refilled_from_the_authority() {
    let mut scene = Scene::start(1).await;
    let bridge = scene.lane.bridge().unwrap();
    ready(&bridge).await;
    scene.write();
    wait(SOON, "a client applies", || scene.clients[0].applied() > 0).await;
    // First wipe: while everything is stopped.
    assert_eq!(bridge.stop().await.unwrap(), 0);
    scene.clients[0].kill();
    scene.pause().await;
    scene.stop_writing().await;
    let applied = scene.clients[0].applied();
    scene.lane.publish(Breaking::DeleteData).await.unwrap();
    assert_eq!(scene.lane.held(&scene.streams).await.unwrap(), [0; 4]);
    let bridge = scene.lane.bridge().unwrap();
    let mut fresh = scene.client().await;
    fresh.start().unwrap();
    fresh.until_applied(scene.committed, RECOVERY).await.unwrap();
    scene.is_equal(&fresh).await;
    // A client with an earlier checkpoint simply continues, because its chain is the authority's.
    assert!(applied > 0 && scene.clients[0].applied() == applied);
    scene.lane.grant(&scene.clients[0], &scene.streams).await.unwrap();
    scene.clients[0].start().unwrap();
    scene.clients.push(fresh);
    scene.write();
    scene.pause().await;
    scene.settle().await;

    // Second wipe: while everything runs. A client that asks before the bridge has refilled SpacetimeDB stops with a
    // reason, because its checkpoint is above the head. It continues when it is started again.
    scene.write();
    scene.pause().await;
    scene.lane.publish(Breaking::DeleteData).await.unwrap();
    let refilled = bridge.until("/internal/v1/spacetime/sync/metrics", SOON, |_, metrics| {
        metrics["counters"]["links"].as_u64() > Some(1) && metrics["health"]["ready"] == true
    });
    refilled.await.unwrap();
    scene.stop_writing().await;
    assert!(scene.lane.published(RECOVERY).await);
    let stage = &mut *scene;
    for client in &mut stage.clients {
        stage.lane.grant(client, &stage.streams).await.unwrap();
        let ahead = r#""reason":"ahead_of_lane""#;
        assert!(
            client.process().unwrap().is_running() || client.log().contains(ahead),
            "{}",
            client.log()
        );
        client.kill();
        client.start().unwrap();
    }
    scene.settle().await;
}
