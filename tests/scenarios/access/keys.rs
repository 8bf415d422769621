//! The issuer's keys: how they are published, rotated, and created with the operator's tool.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use spacetime_sync_issuer::jws::{Jws, Kind, PublicKey};
use spacetime_sync_issuer::keys::{SigningKey, add_key, now};
use spacetime_sync_tests::issuing::{ISSUER, Issuing};
use spacetime_sync_tests::tool;
use spacetime_sync_tests::write_secret;

use super::desk;

async fn kids(bridge: &Issuing) -> Vec<String> {
    let (status, set) = bridge.get("/.well-known/jwks.json").await.unwrap();
    assert_eq!(status, 200);
    let keys = set["keys"].as_array().unwrap().iter();
    let text = |key: &Value| {
        assert!(key.get("d").is_none());
        key["kid"].as_str().unwrap().to_owned()
    };
    keys.map(text).collect()
}

async fn signer(bridge: &Issuing, credential: &str) -> String {
    let (status, body) = bridge.token(credential, &["notes"]).await.unwrap();
    assert_eq!(status, 200, "{body}");
    body["kid"].as_str().unwrap().to_owned()
}

async fn until_kids(bridge: &Issuing, count: usize) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while kids(bridge).await.len() != count {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{count} keys were not published in time"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_discovery_document_leads_to_the_keys_that_sign() {
    let desk = desk().await;
    desk.allow("everyone", "notes").await.unwrap();
    let bridge = desk.bridge(&[]).await.unwrap();
    let response = bridge.http().get(bridge.url("/.well-known/openid-configuration"));
    let response = response.send().await.unwrap();
    assert_eq!(response.headers()["cache-control"], "public, max-age=300");
    let document: Value = response.json().await.unwrap();
    assert_eq!(document["issuer"], ISSUER);
    assert_eq!(document["jwks_uri"], format!("{ISSUER}/.well-known/jwks.json"));
    assert_eq!(document["id_token_signing_alg_values_supported"][0], "ES256");
    let (_, answer) = bridge.token(&desk.session("7", "s1"), &["notes"]).await.unwrap();
    assert_eq!(kids(&bridge).await, [answer["kid"].as_str().unwrap()]);

    // Verifies like a stranger: with only what is published.
    let (_, set) = bridge.get("/.well-known/jwks.json").await.unwrap();
    let part = |name: &str| URL_SAFE_NO_PAD.decode(set["keys"][0][name].as_str().unwrap()).unwrap();
    let point = [&[4][..], &part("x"), &part("y")].concat();
    let jws = Jws::parse(answer["token"].as_str().unwrap(), Kind::Sync).unwrap();
    assert!(jws.claims(&PublicKey::P256(point)).is_ok());
}

#[tokio::test]
async fn a_new_key_is_published_before_it_signs_and_the_old_one_stays_for_its_tokens() {
    let desk = desk().await;
    desk.allow("everyone", "notes").await.unwrap();
    let bridge = desk.bridge(&[]).await.unwrap();
    let credential = desk.session("7", "s1");
    let first = signer(&bridge, &credential).await;
    let (_, second) = add_key(&desk.path("keys"), Some(3), now()).unwrap();
    let added = now();
    until_kids(&bridge, 2).await;
    let signed_by = signer(&bridge, &credential).await;
    if now() < added + 2 {
        assert_eq!(signed_by, first);
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
    while signer(&bridge, &credential).await != second {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the new key did not sign in time"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(now() >= added + 2);
    assert_eq!(kids(&bridge).await, [first, second.clone()]);

    // A malformed file in the folder, or a missing folder, changes nothing.
    write_secret(&desk.path("keys").join("20200101T000000Z.pem"), "hunter2").unwrap();
    assert!(bridge.said("20200101T000000Z.pem").await);
    std::fs::rename(desk.path("keys"), desk.path("away")).unwrap();
    assert!(bridge.said("cannot read the signing keys again").await);
    assert_eq!(signer(&bridge, &credential).await, second);
    assert!(!bridge.process.log().contains("hunter2"));
}

#[tokio::test]
async fn one_key_can_come_from_the_environment() {
    let desk = desk().await;
    desk.allow("everyone", "notes").await.unwrap();
    let pem = SigningKey::generate().unwrap();
    let kid = SigningKey::from_pem(&pem, 0, "test").unwrap().kid().to_owned();
    let set = [
        ("issuer.keys_dir", String::new()),
        ("issuer.key", pem.expose().to_owned()),
    ];
    let bridge = desk.bridge(&set).await.unwrap();
    assert_eq!(signer(&bridge, &desk.session("7", "s1")).await, kid);
}

#[tokio::test]
async fn a_bridge_without_an_issuer_gives_no_tokens() {
    let desk = desk().await;
    let none = |key| (key, String::new());
    let set = [
        none("issuer.url"),
        none("issuer.keys_dir"),
        none("issuer.keys_reload_ms"),
        none("sessions.issuer"),
        none("sessions.audience"),
        none("sessions.public_keys"),
        ("spacetimedb.token", "none".to_owned()),
        ("seals.keys_dir", desk.keys.keys_dir().display().to_string()),
    ];
    let bridge = desk.bridge(&set).await.unwrap();
    let (status, body) = bridge.token(&desk.session("7", "s1"), &["notes"]).await.unwrap();
    assert_eq!((status, body["code"].as_str()), (503, Some("sync_token_unavailable")));
    assert_eq!(body["retryable"], true);
    for path in ["/.well-known/jwks.json", "/.well-known/openid-configuration"] {
        assert_eq!(bridge.get(path).await.unwrap().0, 404, "{path}");
    }
}

#[tokio::test]
async fn the_operators_tool_makes_keys_lists_them_and_signs_sessions() {
    let desk = desk().await;
    desk.allow("everyone", "notes").await.unwrap();
    let folder = desk.path("more").display().to_string();
    let made = tool::run("spacetime-sync", &["keys", "add", "--dir", &folder], &[])
        .await
        .good();
    assert!(made.contains("signs from now on"), "{made}");
    let made = tool::run("spacetime-sync", &["keys", "add", "--dir", &folder], &[])
        .await
        .good();
    assert!(made.contains("is published from now on, and signs from 2"), "{made}");
    write_secret(&desk.path("more").join("x.pem"), "hunter2").unwrap();
    let list = tool::run("spacetime-sync", &["keys", "list", "--dir", &folder], &[])
        .await
        .good();
    assert_eq!(list.lines().count(), 3, "{list}");
    assert!(
        list.contains("signs later") && list.contains("x.pem is not a valid key"),
        "{list}"
    );
    assert!(!list.contains("hunter2") && !made.contains("PRIVATE"));

    let bridge = desk.bridge(&[("issuer.keys_dir", folder)]).await.unwrap();
    let key = desk.path("app.pem").display().to_string();
    let signed = tool::run(
        "spacetime-sync",
        &[
            "session",
            "sign",
            "--key",
            &key,
            "--issuer",
            "https://app.example",
            "--audience",
            "runtime-sync",
            "--user",
            "7",
            "--session",
            "s1",
            "--org",
            "acme",
            "--device",
            "d1",
            "--ttl",
            "600",
        ],
        &[],
    )
    .await
    .good();
    let (status, body) = bridge.token(signed.trim(), &["notes"]).await.unwrap();
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        (body["org_id"].as_str(), body["device_id"].as_str()),
        (Some("acme"), Some("d1"))
    );
}

#[tokio::test]
async fn a_configuration_that_cannot_issue_is_refused_and_a_good_one_shows_no_secret() {
    let desk = desk().await;
    let check = async |set: &[(&str, String)]| {
        let environment = desk.environment("127.0.0.1:0", set);
        let environment: Vec<_> = environment
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        tool::run("spacetime-sync", &["config", "check"], &environment).await
    };
    let pem = SigningKey::generate().unwrap();
    let single = [
        ("issuer.keys_dir", String::new()),
        ("issuer.key", pem.expose().to_owned()),
    ];
    let shown = check(&single).await.good();
    for secret in [
        pem.expose(),
        &pem.expose()[40..80],
        spacetime_sync_tests::issuing::ADMIN,
        "PRIVATE",
    ] {
        assert!(!shown.contains(secret), "{shown}");
    }
    std::fs::create_dir(desk.path("empty")).unwrap();
    std::fs::write(desk.path("rubbish.pem"), "hunter2").unwrap();
    let path = |name: &str| desk.path(name).display().to_string();
    for (set, said) in [
        (vec![("issuer.keys_dir", path("empty"))], "holds no key that signs yet"),
        (vec![("issuer.keys_dir", path("nowhere"))], "cannot read"),
        (
            vec![("sessions.public_keys", path("rubbish.pem"))],
            "holds no public key",
        ),
        (vec![("sessions.public_keys", path("app.pem"))], "holds no public key"),
        (
            vec![single[0].clone(), ("issuer.key", "hunter2".to_owned())],
            "issuer.key holds no signing key",
        ),
        (
            vec![("issuer.url", "lane.example".to_owned())],
            "issuer.url: expected http",
        ),
        (
            vec![("sessions.issuer", ISSUER.to_owned())],
            "a sync token must not pass for a session credential",
        ),
        (vec![("http.admin_token", "hunter2".to_owned())], "expected at least 16"),
        (
            vec![("compatibility.min_client_build_id", "soon".to_owned())],
            "min_client_build_id",
        ),
    ] {
        let said = check(&set).await.failed(1, &[said]);
        assert!(!said.contains("hunter2"), "{said}");
    }
}
