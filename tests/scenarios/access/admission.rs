//! Who may connect to the module.

use serde_json::{Value, json};
use spacetime_sync_issuer::keys::now;
use spacetime_sync_proto::{ChainHash, Refusal, RefusalCode};
use spacetime_sync_stdb::admin::{Admin, Credential};
use spacetime_sync_tests::issuer::Issuer;

use super::guarded::{Guarded, SWEEP_MS, bearer};
use crate::lane::hostile::{Module, Said, append_arguments, column, identity, log, newcomer, stream};

/// Tries every way in: a reducer, a procedure, SQL and a WebSocket.
async fn refused_everywhere(guarded: &Guarded, who: Option<&Credential>, code: Option<RefusalCode>, what: &str) {
    let module = &guarded.module;
    for (function, arguments) in [
        ("read_events", json!(["user:7:notes", 0])),
        ("read_heads", json!([["user:7:notes"]])),
        ("ack_checkpoint", json!(["user:7:notes", 0, "0x0"])),
        ("upsert_presence", json!(["s1", "n1", "online", "", "", []])),
        ("publish_provider_capability", json!(["p1", "gpu", 1, 0, "", "{}", 60])),
        ("open_compute_assignment", json!(["r1", "", "{}", 60])),
        ("update_compute_assignment", json!(["r1", "u1", 1, "open", "", ""])),
        ("enqueue_bridge_event", json!(["e1", "nostr", "{}"])),
        ("mark_bridge_event_sent", json!(["e1", ""])),
    ] {
        let said = module.call(who, function, &arguments).await;
        match code {
            Some(_) => assert_eq!(said.code(), code, "{what}: {function}: {said:?}"),
            None => assert!(
                matches!(said, Said::Failed(400..=431, _)),
                "{what}: {function}: {said:?}"
            ),
        }
    }
    for table in module.tables().await {
        let refused = module.sql(who, &format!("SELECT * FROM {table}")).await.unwrap_err();
        let said = Refusal::from_wire(&refused).map(|refusal| refusal.code);
        assert_eq!(said, code, "{what}: {table}: {refused}");
    }
    assert!(!module.connects(who).await, "{what}: the WebSocket is refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_without_a_token_of_the_issuer_are_refused() {
    let guarded = Guarded::start().await;
    let (module, issuer) = (&guarded.module, &guarded.issuer);
    let id = stream("user:7:notes");
    module
        .append(&id, &log(&id, 2, 1), &ChainHash::genesis(&id))
        .await
        .done();
    let good = issuer.claims("7", "s1", &["user:7:*"]);
    let with = |field: &str, value: Value| {
        let mut claims = good.clone();
        claims[field] = value;
        issuer.sign(&claims)
    };
    let without = |field: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(field);
        issuer.sign(&claims)
    };
    let other = Issuer::start().await.unwrap();
    let mut elsewhere = good.clone();
    elsewhere["iss"] = json!(other.url);
    let stranger = newcomer(&module.server).await;

    // The server itself refuses tokens that are not validly signed. It gives no reason.
    for (what, token) in [
        ("algorithm none", issuer.unsigned(&good)),
        ("HS256 with the public key", issuer.sign_with_public_key(&good)),
        ("another key under the same name", issuer.forge(&good).unwrap()),
        ("an unknown key", issuer.sign_as_nobody(&good).unwrap()),
        ("a token that ended long ago", with("exp", json!(now() - 120))),
        ("an expiry that is not a number", with("exp", json!("soon"))),
        ("no subject", without("sub")),
        ("no time", without("iat")),
        (
            "names that SpacetimeDB does not take",
            issuer.sign(&issuer.claims(&"u".repeat(57), &"s".repeat(58), &["user:7:*"])),
        ),
        ("rubbish", "a.b.c".to_owned()),
    ] {
        refused_everywhere(&guarded, Some(&bearer(token)), None, what).await;
    }
    for (what, token, code) in [
        ("another issuer", other.sign(&elsewhere), RefusalCode::Unauthorized),
        (
            "another audience",
            with("aud", json!("sessions")),
            RefusalCode::InvalidToken,
        ),
        (
            "another kind",
            with("oa_claims_version", json!("oa_session_v1")),
            RefusalCode::InvalidToken,
        ),
        ("no id", without("jti"), RefusalCode::MissingJti),
        ("no end", without("exp"), RefusalCode::InvalidToken),
        ("no beginning", without("nbf"), RefusalCode::InvalidToken),
        (
            "a start that is not a number",
            with("nbf", json!("now")),
            RefusalCode::InvalidToken,
        ),
        // The server tolerates a minute more. The module does not.
        (
            "expired ten seconds ago",
            with("exp", json!(now() - 10)),
            RefusalCode::TokenExpired,
        ),
        (
            "signed in the far future",
            with("iat", json!(now() + 3_600)),
            RefusalCode::TokenNotYetValid,
        ),
        (
            "valid only in the far future",
            with("nbf", json!(now() + 200)),
            RefusalCode::TokenNotYetValid,
        ),
        (
            "valid for a day",
            with("exp", json!(now() + 86_400)),
            RefusalCode::TokenTooOld,
        ),
        (
            "another session's subject",
            with("sub", json!("user:7/session:s2")),
            RefusalCode::InvalidToken,
        ),
        (
            "the bridge's name as a session's",
            issuer.sign(&issuer.claims("7", "bridge", &["user:7:*"])),
            RefusalCode::InvalidToken,
        ),
        (
            "the bridge's name as a user's",
            issuer.sign(&issuer.claims("bridge", "s1", &["user:7:*"])),
            RefusalCode::InvalidToken,
        ),
        (
            "the bridge's subject",
            with("sub", json!("service:bridge")),
            RefusalCode::InvalidScope,
        ),
        (
            "the bridge's scope",
            with("oa_sync_scopes", json!(["sync.append"])),
            RefusalCode::InvalidScope,
        ),
        (
            "a prefix that ends within a name",
            with("oa_sync_streams", json!(["user:7*"])),
            RefusalCode::InvalidToken,
        ),
        (
            "all streams",
            with("oa_sync_streams", json!(["*"])),
            RefusalCode::InvalidToken,
        ),
        (
            "a quote in a stream",
            with("oa_sync_streams", json!(["a' OR '1'='1"])),
            RefusalCode::InvalidToken,
        ),
        (
            "a look-alike",
            with("oa_sync_streams", json!(["us\u{435}r:7:*"])),
            RefusalCode::InvalidToken,
        ),
        (
            "a malformed build id",
            with("oa_client_build_id", json!("1.0")),
            RefusalCode::InvalidClientBuild,
        ),
        (
            "20 KB of claims",
            with("oa_client_surface", json!("x".repeat(20_000))),
            RefusalCode::Unauthorized,
        ),
    ] {
        refused_everywhere(&guarded, Some(&bearer(token)), Some(code), what).await;
    }
    refused_everywhere(&guarded, None, Some(RefusalCode::Unauthorized), "nobody").await;
    refused_everywhere(
        &guarded,
        Some(&stranger),
        Some(RefusalCode::Unauthorized),
        "an identity of the server",
    )
    .await;
    // This is too large even for a request: the server answers with an error or hangs up.
    let megabyte = bearer(with("oa_client_surface", json!("x".repeat(1 << 20))));
    let page = module
        .request(Some(&megabyte), "call/read_events")
        .json(&json!(["user:7:notes", 0]))
        .send()
        .await;
    assert!(page.is_err() || page.is_ok_and(|page| page.status().is_client_error()));
    assert!(!module.connects(Some(&megabyte)).await);
    assert_eq!(guarded.grants().await, 0, "a refused caller leaves no grant behind");

    // The unchanged token is accepted.
    assert!(module.connects(Some(&guarded.with(&good))).await);
    let page = module
        .call(Some(&guarded.with(&good)), "read_events", &json!(["user:7:notes", 0]))
        .await;
    assert_eq!(page.done()[1], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_spacetimedb_signed_anew_opens_nothing() {
    let guarded = Guarded::start().await;
    let (module, issuer) = (&guarded.module, &guarded.issuer);
    for claims in [issuer.claims("7", "s1", &["user:7:*"]), issuer.service()] {
        let good = issuer.sign(&claims);
        let anew = module.server.sign_anew(&good).await.unwrap();
        let what = claims["sub"].to_string();
        refused_everywhere(&guarded, Some(&bearer(anew)), Some(RefusalCode::InvalidToken), &what).await;
        assert!(module.connects(Some(&bearer(good))).await, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_and_identities_granted_by_hand_need_no_token() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let id = stream("user:7:notes");
    let by_hand = module.client(&[&id]).await;
    module
        .append(&id, &log(&id, 2, 1), &ChainHash::genesis(&id))
        .await
        .done();
    for who in [&module.owner, &module.bridge, &by_hand] {
        assert!(module.connects(Some(who)).await);
        let page = module.call(Some(who), "read_events", &json!([id.as_str(), 0])).await;
        assert_eq!(page.done()[1], 2);
    }
    module.as_owner().revoke(&by_hand.identity, &id).await.unwrap();
    let said = module
        .call(Some(&by_hand), "read_events", &json!([id.as_str(), 0]))
        .await;
    said.refused(RefusalCode::Unauthorized);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_may_use_a_token_but_only_its_own() {
    let guarded = Guarded::start().await;
    let (module, issuer) = (&guarded.module, &guarded.issuer);
    let service = spacetimedb_sdk::Identity::from_claims(&issuer.url, "service:bridge");
    module.as_owner().configure(&service.to_hex(), "").await.unwrap();
    let id = stream("runtime.run.1.events");
    let append = append_arguments(&id, &log(&id, 1, 1), &ChainHash::genesis(&id));
    let genesis = column(&ChainHash::genesis(&id));
    let first = column(&log(&id, 1, 1)[0].chain_hash);
    let token = |claims: &Value| guarded.with(claims);

    let client = guarded.session("7", "s1", &["runtime.run.1.events"]);
    let operators = [
        ("append_sync_events", append.clone()),
        ("revoke_stream", json!([identity(&module.bridge), id.as_str()])),
        ("revoke_session", json!(["s1"])),
        ("read_heads", json!([[id.as_str()]])),
        ("read_streams", json!([""])),
        ("set_retention", json!([[]])),
        ("mark_epoch", json!(["e", 1, true])),
        ("rewind_stream", json!([id.as_str(), 0, genesis, "", 1, first])),
        ("set_compatibility", json!(["20200101T000000Z", "", 1, 9])),
    ];
    for (function, arguments) in &operators {
        let said = module.call(Some(&client), function, arguments).await;
        said.refused(RefusalCode::Unauthorized);
    }
    let mut ended = issuer.service();
    ended["exp"] = json!(now() - 5);
    let said = module.call(Some(&token(&ended)), "append_sync_events", &append).await;
    said.refused(RefusalCode::TokenExpired);
    // The identity that was configured before is no longer the bridge.
    let said = module.call(Some(&module.bridge), "append_sync_events", &append).await;
    said.refused(RefusalCode::Unauthorized);
    for (function, arguments) in &operators {
        module
            .call(Some(&token(&issuer.service())), function, arguments)
            .await
            .done();
    }
    let owner_only = [
        ("trust_issuer", json!([issuer.url, "openagents-sync", SWEEP_MS])),
        // Whoever steals the bridge's token must not keep what it reads with it.
        ("grant_stream", json!([identity(&module.bridge), id.as_str(), 60])),
    ];
    for (function, arguments) in &owner_only {
        for who in [&client, &token(&issuer.service())] {
            let said = module.call(Some(who), function, arguments).await;
            assert!(
                matches!(said.code(), Some(RefusalCode::Unauthorized | RefusalCode::TokenRevoked)),
                "{function}: {said:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_of_the_fixture_is_admitted_or_refused_as_expected() {
    let guarded = Guarded::start().await;
    let (module, issuer) = (&guarded.module, &guarded.issuer);
    let scenarios: Vec<Value> =
        serde_json::from_str(include_str!("../../../proto/fixtures/compatibility.json")).unwrap();
    assert!(scenarios.len() >= 15);
    for (number, scenario) in scenarios.iter().enumerate() {
        let (compatibility, client) = (&scenario["compatibility"], &scenario["client"]);
        let arguments = json!([
            compatibility["min_client_build_id"],
            compatibility["max_client_build_id"],
            compatibility["min_schema_version"],
            compatibility["max_schema_version"],
        ]);
        module
            .call(Some(&module.owner), "set_compatibility", &arguments)
            .await
            .done();
        let mut claims = issuer.claims("7", &format!("s{number}"), &["user:7:*"]);
        claims["oa_client_build_id"] = client["client_build_id"].clone();
        claims["oa_protocol_version"] = client["protocol_version"].clone();
        claims["oa_schema_version"] = client["schema_version"].clone();
        claims["oa_oldest_schema_version"] = client["oldest_schema_version"].clone();
        let who = guarded.with(&claims);
        let said = module
            .call(Some(&who), "read_events", &json!(["user:7:notes", 0]))
            .await;
        match scenario["expected"]["code"].as_str() {
            // The caller is admitted. The stream does not exist yet.
            None => assert_eq!(said.code(), Some(RefusalCode::ForbiddenStream), "{scenario}"),
            Some(code) => {
                let found = said.code().map(|code| serde_json::to_value(code).unwrap());
                assert_eq!(found, Some(json!(code)), "{scenario}");
            }
        }
    }
    for wrong in [
        json!(["2026", "", 1, 1]),
        json!(["20260101T000000Z", "20250101T000000Z", 1, 1]),
        json!(["20260101T000000Z", "", 2, 1]),
    ] {
        let said = module.call(Some(&module.owner), "set_compatibility", &wrong).await;
        said.refused(RefusalCode::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_issuer_is_not_trusted() {
    let module = Module::start().await;
    for wrong in [
        json!(["sync.example", "openagents-sync", 1_000]),
        json!(["", "openagents-sync", 1_000]),
        json!(["https://sync.example/", "openagents-sync", 1_000]),
        json!(["https://sync.example?a=b", "openagents-sync", 1_000]),
        json!(["https://sync example", "openagents-sync", 1_000]),
        json!(["https://sync.example", "", 1_000]),
        json!(["https://sync.example", "openagents-sync", 1]),
        json!(["https://sync.example", "openagents-sync", 3_600_000]),
    ] {
        let said = module.call(Some(&module.owner), "trust_issuer", &wrong).await;
        said.refused(RefusalCode::InvalidArgument);
    }
    // Strangers are still admitted.
    let stranger = newcomer(&module.server).await;
    let admin = Admin::new(module.server.uri(), &module.name, stranger.token.clone());
    admin.check_contract().await.unwrap();
}
