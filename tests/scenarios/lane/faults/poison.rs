//! Streams that cannot continue: they halt with a reason, nothing is overwritten, and the other streams continue.

use spacetime_sync_proto::StreamId;
use spacetime_sync_tests::lane::{Bridge, wait};
use sqlx::{Connection, Executor, PgConnection};

use super::{RECOVERY, SOON, Scene, ready};

/// Waits until a stream is halted, and returns code and reason.
async fn halted(bridge: &Bridge, stream_id: &StreamId) -> (String, String) {
    let entry = |health: &serde_json::Value| {
        let halted = health["halted"].as_array()?;
        halted
            .iter()
            .find(|entry| entry["stream_id"] == stream_id.as_str())
            .cloned()
    };
    let health = bridge
        .until("/healthz", SOON, |_, health| entry(health).is_some())
        .await
        .unwrap();
    let entry = entry(&health).unwrap();
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    (text("code"), text("reason"))
}

/// Waits until only `left` is unpublished, and checks that a client of the other streams has all their events.
async fn others_go_on(scene: &mut Scene, bridge: &Bridge, left: &[StreamId]) {
    let client = scene.clients.pop().unwrap();
    scene.stop_writing().await;
    let deadline = tokio::time::Instant::now() + RECOVERY;
    loop {
        let dirty = scene.lane.authority.dirty_streams(None, 100).await.unwrap();
        if dirty.iter().all(|position| left.contains(&position.stream_id)) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "still unpublished: {dirty:?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let others: Vec<StreamId> = scene.streams.iter().filter(|id| !left.contains(id)).cloned().collect();
    let published = scene.lane.recorded(&others).await.unwrap().iter().sum();
    client.until_applied(published, RECOVERY).await.unwrap();
    let verdict = client.compare(&scene.lane.authority).await.unwrap();
    assert!(verdict.is_equal() && verdict.applied == published, "{verdict:?}");
    // A person must look at the stream, and the bridge carries the others.
    let (healthy, health) = bridge.ask("/healthz").await.unwrap();
    let named = health["problems"].to_string().contains(left[0].as_str());
    assert!(!healthy && named && health["ready"] == true, "{health}");
    assert_eq!(health["lag_events"], health["halted_lag_events"], "{health}");
    let metrics = bridge.text("/metrics").await.unwrap();
    assert!(
        metrics.contains(&format!("\nspacetime_sync_halted_streams {}\n", left.len())),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_event_halts_its_stream_and_no_other() {
    let mut scene = Scene::start(0).await;
    let poisoned = scene.streams[1].clone();
    let others: Vec<StreamId> = scene.streams.iter().filter(|id| **id != poisoned).cloned().collect();
    let (mut client, mut its_client) = (
        scene.lane.client(&others).await.unwrap(),
        scene.lane.client(std::slice::from_ref(&poisoned)).await.unwrap(),
    );
    client.start().unwrap();
    its_client.start().unwrap();
    scene.clients.push(client);
    let bridge = scene.lane.bridge().unwrap();
    ready(&bridge).await;
    scene.write();
    scene.pause().await;
    assert_eq!(bridge.stop().await.unwrap(), 0);
    // Changes an unpublished event, bypassing the trigger that would refuse it.
    let mut superuser = PgConnection::connect(scene.lane.database.url()).await.unwrap();
    let before = scene.lane.held(&scene.streams).await.unwrap()[1];
    let tampered = before + 50;
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let position = scene.lane.authority.position(&poisoned).await.unwrap().unwrap();
        if position.head_seq.get() > tampered {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline);
        scene.pause().await;
    }
    superuser
        .execute("set session_replication_role = replica")
        .await
        .unwrap();
    let changed = sqlx::query(
        "update runtime.sync_stream_events set payload = 'something else' where stream_id = $1 and seq = $2",
    )
    .bind(poisoned.as_str())
    .bind(i64::try_from(tampered).unwrap())
    .execute(&mut superuser)
    .await
    .unwrap();
    assert_eq!(changed.rows_affected(), 1);

    let bridge = scene.lane.bridge().unwrap();
    let (code, reason) = halted(&bridge, &poisoned).await;
    assert_eq!(code, "broken_log");
    assert!(reason.contains(&format!("seq {tampered}")), "{reason}");
    scene.pause().await;
    others_go_on(&mut scene, &bridge, std::slice::from_ref(&poisoned)).await;
    let held = scene.lane.held(std::slice::from_ref(&poisoned)).await.unwrap()[0];
    assert!(held >= before && held < tampered, "held {held}, tampered {tampered}");
    let saved = its_client.saved().unwrap()[0];
    assert!(saved.last <= held, "{saved:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_another_origin_is_removed_and_its_stream_goes_on() {
    let mut scene = Scene::start(1).await;
    // One event exists before the bridge starts, the other arrives while it runs.
    let (early, late) = (scene.streams[1].clone(), scene.streams[2].clone());
    scene.lane.append_as_bridge(&early).await.unwrap();
    let bridge = scene.lane.bridge().unwrap();
    ready(&bridge).await;
    scene.lane.append_as_bridge(&late).await.unwrap();
    scene.write();
    scene.pause().await;
    for stream_id in [&early, &late] {
        let told = format!("wrote events of stream {stream_id} into SpacetimeDB");
        wait(RECOVERY, "the bridge tells of it", || {
            bridge.process.log().contains(&told)
        })
        .await;
    }
    scene.settle().await;
    let (healthy, health) = bridge.ask("/healthz").await.unwrap();
    assert!(healthy, "{health}");
}
