//! Which clients get a token: the scenarios of the contract's fixture, over HTTP.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use spacetime_sync_proto::access::{ClientVersion, Compatibility, headers};
use spacetime_sync_proto::contract::{OLDEST_SCHEMA_VERSION, SCHEMA_VERSION};
use spacetime_sync_tests::issuing::answer;

use super::desk;

#[derive(Deserialize)]
struct Scenario {
    name: String,
    compatibility: Compatibility,
    client: ClientVersion,
    expected: Option<Value>,
}

/// A schema version of the fixture, where 2 to 4 are served, as one of this release, where all that it speaks are.
fn in_this_release(version: u32) -> u32 {
    match version {
        0..=2 => OLDEST_SCHEMA_VERSION + version - 2,
        3 => OLDEST_SCHEMA_VERSION,
        4.. => SCHEMA_VERSION + version - 4,
    }
}

#[tokio::test]
async fn every_scenario_of_the_fixture_ends_as_expected() {
    let desk = desk().await;
    desk.allow("everyone", "notes").await.unwrap();
    let scenarios: Vec<Scenario> =
        serde_json::from_str(include_str!("../../../proto/fixtures/compatibility.json")).unwrap();
    let mut by_compatibility: BTreeMap<String, Vec<Scenario>> = BTreeMap::new();
    for scenario in scenarios {
        by_compatibility
            .entry(format!("{:?}", scenario.compatibility))
            .or_default()
            .push(scenario);
    }
    assert!(by_compatibility.len() > 1);
    for (at, scenarios) in by_compatibility.into_values().enumerate() {
        let mut compatibility = scenarios[0].compatibility.clone();
        for version in [
            &mut compatibility.min_schema_version,
            &mut compatibility.max_schema_version,
        ] {
            *version = in_this_release(*version);
        }
        let bridge = desk
            .bridge(&[
                (
                    "compatibility.min_client_build_id",
                    compatibility.min_client_build_id.clone(),
                ),
                (
                    "compatibility.max_client_build_id",
                    compatibility.max_client_build_id.clone(),
                ),
                (
                    "compatibility.min_schema_version",
                    compatibility.min_schema_version.to_string(),
                ),
                (
                    "compatibility.max_schema_version",
                    compatibility.max_schema_version.to_string(),
                ),
                ("bridge.lead", "false".to_owned()),
            ])
            .await
            .unwrap();
        let credential = desk.session("7", &format!("s{at}"));
        for Scenario {
            name, client, expected, ..
        } in scenarios
        {
            let schema = in_this_release(client.schema_version).to_string();
            let mut request = bridge.client_of(
                &client.client_build_id,
                &client.protocol_version,
                &schema,
                &client.surface,
            );
            if let Some(oldest) = client.oldest_schema_version {
                request = request.header(headers::OLDEST_SCHEMA_VERSION, in_this_release(oldest));
            }
            let request = request
                .bearer_auth(&credential)
                .json(&json!({ "scopes": ["sync.subscribe"], "streams": ["notes"] }));
            let response = request.send().await.unwrap();
            let said = response.headers().clone();
            let (status, body) = answer(response).await.unwrap();
            let Some(expected) = expected else {
                assert_eq!(status, 200, "{name}: {body}");
                continue;
            };
            assert_eq!(status, 426, "{name}: {body}");
            let header = |name: &str| said.get(name).map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(body["code"], expected["code"], "{name}");
            assert_eq!(body["upgrade_required"], expected["upgrade_required"], "{name}");
            assert_eq!(body["retryable"], false, "{name}");
            assert_eq!(body["surface"], client.surface, "{name}");
            assert_eq!(header(headers::CODE).as_deref(), body["code"].as_str(), "{name}");
            assert_eq!(
                header(headers::UPGRADE_REQUIRED),
                Some(body["upgrade_required"].to_string()),
                "{name}"
            );
            assert_eq!(
                header(headers::MIN_CLIENT_BUILD_ID),
                Some(compatibility.min_client_build_id.clone()),
                "{name}"
            );
            let max = Some(compatibility.max_client_build_id.clone()).filter(|max| !max.is_empty());
            assert_eq!(header(headers::MAX_CLIENT_BUILD_ID), max, "{name}");
            assert_eq!(
                header(headers::MIN_SCHEMA_VERSION),
                Some(compatibility.min_schema_version.to_string()),
                "{name}"
            );
            assert_eq!(
                header(headers::MAX_SCHEMA_VERSION),
                Some(compatibility.max_schema_version.to_string()),
                "{name}"
            );
            assert_eq!(
                header(headers::SERVED_PROTOCOL_VERSION).as_deref(),
                Some("spacetime.sync.v1"),
                "{name}"
            );
        }
    }
}

#[tokio::test]
async fn compatibility_is_checked_before_credentials() {
    let desk = desk().await;
    let bridge = desk.bridge(&[]).await.unwrap();
    let url = bridge.url("/api/sync/token");
    let (status, body) = answer(bridge.http().post(&url).send().await.unwrap()).await.unwrap();
    assert_eq!((status, &body["code"]), (426, &json!("invalid_client_build")));
    let unknown = bridge
        .client_of("20260601T120000Z", "khala.sync.v1", "1", "desktop")
        .body("{");
    let (status, body) = answer(unknown.send().await.unwrap()).await.unwrap();
    assert_eq!((status, &body["code"]), (426, &json!("unsupported_protocol_version")));
    // This does not count as a failed authentication, because nobody was asked to authenticate.
    let failures = &bridge.metrics().await.unwrap()["auth_failures"];
    assert!(
        failures.as_object().unwrap().values().all(|count| count == 0),
        "{failures}"
    );
}
