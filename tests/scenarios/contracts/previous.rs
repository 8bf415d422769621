//! This release's bridge and clients on the module of the release before it, and that one's clients on this module.

use serde_json::json;
use spacetime_sync_client::{ClientConfig, Credential, HandlerError, ReadableStreams, SqliteStore, SyncClient};
use spacetime_sync_proto::access::headers;
use spacetime_sync_proto::contract::{OLDEST_SCHEMA_VERSION, PROTOCOL, SCHEMA_VERSION};
use spacetime_sync_proto::{Event, StreamId};
use spacetime_sync_stdb::admin::Breaking;
use spacetime_sync_tests::issuing::{BUILD, answer};
use spacetime_sync_tests::lane::{Lane, LaneOptions, stream, wait};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::release::Release;

use crate::lane::faults::{SOON, Scene, ready};

/// The schema version that a client says it speaks with the module.
fn spoken(scene: &Scene, client: usize) -> serde_json::Value {
    scene.clients[client].status()["schema_version"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_goes_on_while_the_module_is_put_back_and_updated_again() {
    let mut scene = Scene::start(2).await;
    let bridge = scene.lane.bridge().unwrap();
    ready(&bridge).await;
    for client in &scene.clients {
        client.until_live(SOON).await.unwrap();
    }
    assert_eq!(spoken(&scene, 0), SCHEMA_VERSION);
    scene.write();
    for (release, version) in [
        (Release::Previous, OLDEST_SCHEMA_VERSION),
        (Release::Current, SCHEMA_VERSION),
        (Release::Previous, OLDEST_SCHEMA_VERSION),
    ] {
        let module = release.module().unwrap();
        scene
            .lane
            .publish_module(module, Breaking::DisconnectClients)
            .await
            .unwrap();
        wait(SOON, "clients speak another version", || {
            (0..2).all(|client| spoken(&scene, client) == version)
        })
        .await;
        scene.pause().await;
    }
    // A bridge and a client that start on the previous module work with it, too.
    assert_eq!(bridge.stop().await.unwrap(), 0);
    let bridge = scene.lane.bridge().unwrap();
    ready(&bridge).await;
    let mut fresh = scene.client().await;
    fresh.start().unwrap();
    scene.clients.push(fresh);
    scene.pause().await;
    scene.settle().await;
    assert_eq!(spoken(&scene, 2), OLDEST_SCHEMA_VERSION);
    // And with this one, over the rows that the previous one has left.
    scene.write();
    scene.lane.publish(Breaking::DisconnectClients).await.unwrap();
    scene.pause().await;
    scene.settle().await;
    scene.lane.verified().await;
}

/// A client inside this process.
fn client(lane: &Lane, credential: Credential, followed: &StreamId) -> SyncClient {
    let mut config = ClientConfig::new(lane.server.uri(), &lane.name, vec![followed.clone()]);
    config.credential = credential;
    config.seal_keys = lane.seal_keys().unwrap();
    let store = SqliteStore::open(lane.path("asking.sqlite")).unwrap();
    let handler = |_: &mut rusqlite::Transaction<'_>, _: &StreamId, _: &[Event]| Ok::<(), HandlerError>(());
    SyncClient::start(config, store, handler).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_uses_what_is_new_only_where_the_module_has_it() {
    let options = LaneOptions {
        module: Release::Previous,
        ..LaneOptions::default()
    };
    let cluster = Cluster::shared().await;
    let lane = Lane::start_with(cluster, &std::env::temp_dir(), &options)
        .await
        .unwrap();
    let bridge = lane.bridge().unwrap();
    ready(&bridge).await;
    let ids: Vec<StreamId> = (1..=3).map(stream).collect();
    for id in &ids {
        Writer::new(&lane.authority, id, "w", Payload::UpTo(100), 1)
            .append(1)
            .await
            .unwrap();
    }
    assert!(lane.published(SOON).await);
    // It follows one of the two that it may read.
    let granted = lane.client(&ids[..2]).await.unwrap();
    let token = std::fs::read_to_string(granted.token_file()).unwrap();
    let client = client(&lane, Credential::Fixed(token.trim().to_owned()), &ids[0]);
    let hears = async |streams: &[StreamId], is_complete: bool| {
        let expected = ReadableStreams {
            streams: streams.iter().cloned().collect(),
            is_complete,
        };
        let seen = client.readable();
        wait(SOON, "the readable streams", || {
            let seen = seen.borrow();
            seen.is_live() && seen.rows == expected
        })
        .await;
    };
    hears(&ids[..1], false).await;
    lane.publish(Breaking::Refuse).await.unwrap();
    hears(&ids[..2], true).await;
    lane.owner().unwrap().revoke(granted.identity(), &ids[1]).await.unwrap();
    hears(&ids[..1], true).await;
    // A table goes away, so clients are disconnected.
    let previous = Release::Previous.module().unwrap();
    lane.publish_module(previous, Breaking::DisconnectClients)
        .await
        .unwrap();
    hears(&ids[..1], false).await;
    client.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_previous_release_is_let_in_by_issuer_and_module() {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let bridge = lane.bridge().unwrap();
    ready(&bridge).await;
    let id = stream(1);
    Writer::new(&lane.authority, &id, "w", Payload::UpTo(100), 1)
        .append(3)
        .await
        .unwrap();
    assert!(lane.published(SOON).await);
    let client = lane.client(std::slice::from_ref(&id)).await.unwrap();
    let credential = std::fs::read_to_string(client.token_file()).unwrap();
    let let_in = async |oldest: Option<u32>, newest: u32| {
        let mut request = reqwest::Client::new()
            .post(format!("{}/api/sync/token", bridge.url()))
            .bearer_auth(credential.trim())
            .header(headers::CLIENT_BUILD_ID, BUILD)
            .header(headers::PROTOCOL_VERSION, PROTOCOL)
            .header(headers::SCHEMA_VERSION, newest)
            .header(headers::CLIENT_SURFACE, "desktop");
        if let Some(oldest) = oldest {
            request = request.header(headers::OLDEST_SCHEMA_VERSION, oldest);
        }
        let body = json!({ "scopes": ["sync.subscribe", "runtime.run_events"], "streams": [id.as_str()] });
        let (status, body) = answer(request.json(&body).send().await.unwrap()).await.unwrap();
        assert_eq!(status, 200, "{oldest:?} {newest}: {body}");
        let read = reqwest::Client::new()
            .post(format!(
                "{}/v1/database/{}/call/read_events",
                lane.server.uri(),
                lane.name
            ))
            .bearer_auth(body["token"].as_str().unwrap())
            .json(&json!([id.as_str(), 0]))
            .send()
            .await
            .unwrap();
        let (status, body) = answer(read).await.unwrap();
        assert_eq!(status, 200, "{oldest:?} {newest}: {body}");
    };
    for release in [Release::Current, Release::Previous] {
        let module = release.module().unwrap();
        lane.publish_module(module, Breaking::DisconnectClients).await.unwrap();
        let_in(None, OLDEST_SCHEMA_VERSION).await;
        let_in(Some(OLDEST_SCHEMA_VERSION - 1), OLDEST_SCHEMA_VERSION).await;
        let_in(Some(OLDEST_SCHEMA_VERSION), SCHEMA_VERSION).await;
    }
}
