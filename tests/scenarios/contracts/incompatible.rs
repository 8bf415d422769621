//! Parties without a version in common.

use serde_json::json;
use spacetime_sync_proto::StreamId;
use spacetime_sync_proto::access::{Compatibility, headers};
use spacetime_sync_proto::contract::{OLDEST_SCHEMA_VERSION, PROTOCOL, SCHEMA_VERSION};
use spacetime_sync_stdb::admin::Breaking;
use spacetime_sync_tests::issuing::{BUILD, answer};
use spacetime_sync_tests::lane::{BridgeOptions, Lane, stream, wait};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::variant::Variant;

use crate::lane::faults::{SOON, Scene, ready};

#[tokio::test(flavor = "multi_thread")]
async fn a_module_of_a_later_protocol_stops_clients_and_makes_the_bridge_wait() {
    let mut scene = Scene::start(1).await;
    let bridge = scene.lane.bridge().unwrap();
    ready(&bridge).await;
    scene.clients[0].until_live(SOON).await.unwrap();
    let later = Variant::NextProtocol.wasm().unwrap();
    // Whoever publishes says at once that its own build does not work with it.
    let said = scene.lane.publish_module(later, Breaking::DisconnectClients).await;
    let said = said.unwrap_err().to_string();
    assert!(
        said.contains("speaks spacetime.sync.v2") && said.contains("this build is too old"),
        "{said}"
    );
    // Nobody's connection is cut: the first that comes anew, which was the publisher, writes the new contract.
    wait(SOON, "the client stops", || {
        scene.clients[0].status()["phase"] == "stopped"
    })
    .await;
    let status = scene.clients[0].status();
    assert_eq!(
        (&status["reason"], &status["upgrade_required"]),
        (&json!("contract_mismatch"), &json!(true)),
        "{status}"
    );
    assert!(
        status["detail"].as_str().unwrap().contains("this client is too old"),
        "{status}"
    );
    // A bridge that starts has nothing to connect to, and says why. It goes on once the right module is back.
    bridge.process.kill();
    let bridge = scene.lane.bridge().unwrap();
    let waits = bridge.until("/readyz", SOON, |good, body| {
        !good && body["problems"].to_string().contains("this build is too old")
    });
    waits.await.unwrap();
    scene.lane.publish(Breaking::DisconnectClients).await.unwrap();
    ready(&bridge).await;
    scene.clients[0].kill();
    scene.clients[0].start().unwrap();
    scene.write();
    scene.pause().await;
    scene.settle().await;
}

/// A lane with tokens, and a stream of ten events.
async fn with_ten_events() -> (Lane, StreamId) {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let id = stream(1);
    let mut writer = Writer::new(&lane.authority, &id, "w", Payload::UpTo(100), 1);
    writer.append_all(10, 3).await.unwrap();
    (lane, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_client_without_a_version_in_common_is_refused_a_token() {
    let (lane, id) = with_ten_events().await;
    let client = lane.client(std::slice::from_ref(&id)).await.unwrap();
    // The newest schema version alone is served.
    let served = SCHEMA_VERSION;
    let options = BridgeOptions {
        set: vec![("compatibility.min_schema_version", served.to_string())],
        ..BridgeOptions::default()
    };
    let bridge = lane.bridge_with(&options).unwrap();
    ready(&bridge).await;
    // A client says both ends of its range, and one version in common is enough.
    let credential = std::fs::read_to_string(client.token_file()).unwrap();
    for (versions, expected) in [
        ((served, served), None),
        ((OLDEST_SCHEMA_VERSION, served), None),
        ((served, served + 5), None),
        ((OLDEST_SCHEMA_VERSION, OLDEST_SCHEMA_VERSION), Some(true)),
        ((served + 1, served + 2), Some(false)),
    ] {
        let request = reqwest::Client::new()
            .post(format!("{}/api/sync/token", bridge.url()))
            .bearer_auth(credential.trim())
            .header(headers::CLIENT_BUILD_ID, BUILD)
            .header(headers::PROTOCOL_VERSION, PROTOCOL)
            .header(headers::OLDEST_SCHEMA_VERSION, versions.0)
            .header(headers::SCHEMA_VERSION, versions.1)
            .header(headers::CLIENT_SURFACE, "desktop")
            .json(&json!({ "scopes": ["sync.subscribe", "runtime.run_events"], "streams": [id.as_str()] }));
        let response = request.send().await.unwrap();
        let header = response.headers().get(headers::UPGRADE_REQUIRED).cloned();
        let (status, body) = answer(response).await.unwrap();
        let Some(upgrade_required) = expected else {
            assert_eq!(status, 200, "{versions:?}: {body}");
            continue;
        };
        assert_eq!(
            (status, &body["code"], &body["upgrade_required"], &body["retryable"]),
            (
                426,
                &json!("unsupported_schema_version"),
                &json!(upgrade_required),
                &json!(false)
            ),
            "{versions:?}"
        );
        assert_eq!(header.unwrap(), upgrade_required.to_string().as_str());
        assert_eq!(
            (&body["min_schema_version"], &body["max_schema_version"]),
            (&json!(served), &json!(served))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_the_module_refuses_as_too_old_learns_that_a_newer_build_is_served() {
    let (lane, id) = with_ten_events().await;
    let bridge = lane.bridge().unwrap();
    ready(&bridge).await;
    // The bridge has let it in, before a later bridge told the module whom to serve.
    for (oldest, newest, upgrade_required) in [
        (SCHEMA_VERSION + 1, SCHEMA_VERSION + 2, true),
        (OLDEST_SCHEMA_VERSION - 2, OLDEST_SCHEMA_VERSION - 1, false),
    ] {
        let served = Compatibility {
            min_schema_version: oldest,
            max_schema_version: newest,
            ..Compatibility::default()
        };
        lane.owner().unwrap().set_compatibility(&served).await.unwrap();
        let mut client = lane.client(std::slice::from_ref(&id)).await.unwrap();
        client.start().unwrap();
        wait(SOON, "the client stops", || client.status()["phase"] == "stopped").await;
        let status = client.status();
        assert_eq!(
            (&status["reason"], &status["code"], &status["upgrade_required"]),
            (
                &json!("incompatible"),
                &json!("unsupported_schema_version"),
                &json!(upgrade_required)
            ),
            "{status}"
        );
    }
    // A bridge that starts tells the module whom this release serves.
    assert_eq!(bridge.stop().await.unwrap(), 0);
    let bridge = lane.bridge().unwrap();
    ready(&bridge).await;
    let mut client = lane.client(std::slice::from_ref(&id)).await.unwrap();
    client.start().unwrap();
    client.until_applied(10, SOON).await.unwrap();
}
