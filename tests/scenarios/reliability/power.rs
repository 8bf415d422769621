//! SpacetimeDB's machine loses power: everything that was never synced is gone, and only readers who asked for early
//! reads had seen any of it.

use std::time::Duration;

use rand::Rng;
use spacetime_sync_proto::StreamId;
use spacetime_sync_stdb::admin::{Admin, Breaking};
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::lane::{A_DAY, Bridge, BridgeOptions, Lane, stream, wait};
use spacetime_sync_tests::load::{Pace, Payload, Writer};

use crate::lane::faults::{SOON, Scene, ready};

/// Number of power cuts in a scenario.
const CUTS: usize = 8;
/// The delay of each sync under load. What is committed is ahead of what is durable by that much.
const SLOW: Duration = Duration::from_millis(60);
/// The delay where a cut must hit something: longer than the time from an answer to the cut.
const VERY_SLOW: Duration = Duration::from_millis(800);
/// Number of calls that are answered as soon as they are committed.
const CALLS: usize = 20;
/// Number of databases that are published and then cut.
const MODULES: u32 = 4;
/// The approximate time to sync a first snapshot, which has some thirty files.
const SNAPSHOT: Duration = Duration::from_millis(1_800);

/// Proves that a cut loses data at all. Without it the other scenarios would prove nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_loses_answered_calls_that_were_not_durable() {
    let mut lane = Lane::start().await.unwrap();
    if !lane.server.is_own() {
        eprintln!("skipped: the server of SYNC_STDB_URL is not ours to kill");
        return;
    }
    let someone = Admin::new_identity(lane.server.uri()).await.unwrap().identity;
    let owner = lane.owner().unwrap();
    owner.grant(&someone, &stream(1), A_DAY).await.unwrap();
    lane.server.slow_syncs(VERY_SLOW).await.unwrap();

    for number in 2..2 + CALLS {
        // Over plain HTTP an answer only means that the call is committed.
        owner.grant(&someone, &stream(number), A_DAY).await.unwrap();
    }
    let lost = lane.server.cut_power().await.unwrap();
    let left = grants(&lane).await;
    eprintln!("{left} of {} answered calls are left, {lost:?}", 1 + CALLS);
    assert!(left <= CALLS, "the last answered call survived the cut");
    assert!(left >= 1, "a durable grant is gone");
    assert!(lost.bytes > 0, "the cut took nothing of what was being synced");

    // What is durable after one cut survives the next one.
    owner.grant(&someone, &stream(1), A_DAY).await.unwrap();
    owner.grant(&someone, &stream(1 + CALLS), A_DAY).await.unwrap();
    let written = durable(&lane).await;
    lane.server.cut_power().await.unwrap();
    assert_eq!(grants(&lane).await, written);
}

/// A new database means new folders, a program, a log and its first snapshot. Its owner is told that all of it is safe.
#[tokio::test(flavor = "multi_thread")]
async fn a_published_module_survives_a_power_cut() {
    let mut lane = Lane::start().await.unwrap();
    if !lane.server.is_own() {
        eprintln!("skipped: the server of SYNC_STDB_URL is not ours to kill");
        return;
    }
    lane.server.slow_syncs(SLOW).await.unwrap();
    let (first, mut files) = (lane.name.clone(), 0);
    for number in 0..MODULES {
        lane.name = format!("{first}-{number}");
        lane.publish(Breaking::Refuse).await.unwrap();
        // The first snapshot is still being written. Its parts exist but are not safe yet; the later the cut, the more
        // of them are.
        tokio::time::sleep(number * SNAPSHOT / MODULES).await;
        files += lane.server.cut_power().await.unwrap().files;
        for number in 0..=number {
            lane.name = format!("{first}-{number}");
            // The module can name its streams, so its configuration survived too.
            assert_eq!(lane.held(&[stream(1)]).await.unwrap(), [0]);
        }
    }
    eprintln!("{files} files were gone after {MODULES} cuts");
    assert!(files > 0, "no cut has hit a snapshot");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_loses_no_delivered_or_recorded_event() {
    let mut scene = Scene::start(2).await;
    if !scene.lane.server.is_own() {
        eprintln!("skipped: the server of SYNC_STDB_URL is not ours to kill");
        return;
    }
    scene.lane.server.slow_syncs(SLOW).await.unwrap();
    scene.write_at(Pace::Mixed);
    let mut lost = 0;
    for _ in 0..CUTS {
        let bridge = scene.lane.bridge().unwrap();
        carries(&scene, &bridge).await;
        scene.pause().await;
        // One client begins to page while the others are live: pages must not hold anything that can be lost either.
        let clients = scene.clients.len();
        let at = scene.random.random_range(0..clients);
        scene.clients[at].kill();
        scene.clients[at].start().unwrap();
        scene.pause().await;

        scene.lane.server.kill();
        // Sometimes the bridge records what was acknowledged before the cut. Nobody publishes before the comparison.
        if scene.random_bool() {
            bridge.until("/readyz", SOON, |ready, _| !ready).await.unwrap();
            assert_eq!(bridge.stop().await.unwrap(), 0);
        } else {
            bridge.process.kill();
        }
        lost += scene.lane.server.cut_power().await.unwrap().bytes;
        scene.published_is_held().await;
        applied_is_held(&scene).await;
    }
    assert!(lost > 0, "no cut has lost anything");
    eprintln!("{lost} bytes were lost in {CUTS} cuts");
    let _bridge = scene.lane.bridge().unwrap();
    scene.settle().await;
    applied_is_held(&scene).await;
}

/// A class that allows early reads shows events before they are durable to clients that ask for it, and such events can
/// be lost. A class that does not allow it never does.
#[tokio::test(flavor = "multi_thread")]
async fn early_reads_need_a_class_that_allows_them_and_a_client_that_asks() {
    let mut lane = Lane::start().await.unwrap();
    if !lane.server.is_own() {
        eprintln!("skipped: the server of SYNC_STDB_URL is not ours to kill");
        return;
    }
    let (allowed, durable) = (StreamId::new("runtime.notifications.user.1").unwrap(), stream(1));
    let both = [allowed.clone(), durable.clone()];
    let mut confirmed = lane.client(&both).await.unwrap();
    let mut early = lane.client(&both).await.unwrap().flag("--early");
    let bridge = told_of_classes(&lane).await;
    lane.server.slow_syncs(VERY_SLOW).await.unwrap();
    confirmed.start().unwrap();
    early.start().unwrap();
    confirmed.until_live(SOON).await.unwrap();
    let phases = |client: &Follower| {
        let streams = &client.status()["streams"];
        let phase = |id: &StreamId| format!("{}", streams[id.as_str()]["phase"]);
        (phase(&allowed), phase(&durable))
    };
    let (live, stopped) = ("\"live\"".to_owned(), "\"stopped\"".to_owned());
    wait(SOON, "the early client has its verdicts", || {
        phases(&early) == (live.clone(), stopped.clone())
    })
    .await;
    let refused = &early.status()["streams"][durable.as_str()];
    assert_eq!(refused["reason"], "durable_reads");
    assert!(refused["detail"].as_str().unwrap().contains("Reads::Confirmed"));

    ready(&bridge).await;
    for stream_id in &both {
        let mut writer = Writer::new(&lane.authority, stream_id, "one", Payload::Fixed(100), 1);
        writer.append(1).await.unwrap();
    }
    wait(SOON, "the early client has its event", || early.applied() == 1).await;
    lane.server.kill();
    bridge.process.kill();
    lane.server.cut_power().await.unwrap();
    assert_eq!(lane.held(&both).await.unwrap(), [0, 0], "nothing was durable");
    assert_eq!(early.applied_log(&allowed).unwrap().len(), 1);
    assert_eq!(confirmed.applied(), 0, "no other client received the event");

    // The event arrives again, because the authority has it, and it is the same.
    let _bridge = told_of_classes(&lane).await;
    assert!(lane.published(SOON).await);
    confirmed.until_applied(2, SOON).await.unwrap();
    early.start().unwrap();
    wait(SOON, "the early client goes on", || {
        phases(&early) == (live.clone(), stopped.clone())
    })
    .await;
    let logs = |client: &Follower| both.each_ref().map(|id| client.applied_log(id).unwrap());
    let [notifications, events] = logs(&confirmed);
    assert_eq!((notifications.len(), events.len()), (1, 1));
    assert_eq!(logs(&early), [notifications, Vec::new()]);
}

/// A bridge that has told the module what each class allows.
async fn told_of_classes(lane: &Lane) -> Bridge {
    let options = BridgeOptions {
        set: vec![("retention.windows", "on".to_owned())],
        ..BridgeOptions::default()
    };
    let bridge = lane.bridge_with(&options).unwrap();
    let deadline = tokio::time::Instant::now() + SOON;
    while count(lane, "retention_class", true).await == 0 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the module did not learn the classes in time"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bridge
}

/// Waits until each client that can receive something has received something new.
async fn carries(scene: &Scene, bridge: &Bridge) {
    ready(bridge).await;
    let before: Vec<u64> = scene.clients.iter().map(|client| client.applied()).collect();
    wait(SOON, "something is delivered", || {
        let mut clients = scene.clients.iter().zip(&before);
        clients.all(|(client, before)| client.applied() > *before)
    })
    .await;
}

/// After a cut, and before anyone has published again, SpacetimeDB still holds everything that clients have applied.
async fn applied_is_held(scene: &Scene) {
    let held = scene.lane.held(&scene.streams).await.unwrap();
    for client in &scene.clients {
        let applied: Vec<u64> = client.saved().unwrap().iter().map(|saved| saved.last).collect();
        let sound = applied.iter().zip(&held).all(|(applied, held)| applied <= held);
        assert!(sound, "applied {applied:?}, held {held:?}: {}", client.status());
    }
}

/// Number of committed grants.
async fn grants(lane: &Lane) -> usize {
    count(lane, "stream_grant", false).await
}

/// Number of grants once all of them are durable.
async fn durable(lane: &Lane) -> usize {
    count(lane, "stream_grant", true).await
}

async fn count(lane: &Lane, table: &str, confirmed: bool) -> usize {
    let rows = lane.rows(format!("SELECT * FROM {table}"), confirmed).await;
    rows.unwrap().len()
}
