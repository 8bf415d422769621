//! The whole lane with tokens: bridge, module and clients as they run in production.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use spacetime_sync_client::{
    AccessToken, ClientConfig, Credential, Event, HandlerError, Phase, Presence, Presences, SqliteStore, StreamId,
    SyncClient, TokenError, WantedToken, Watched,
};
use spacetime_sync_issuer::keys::{add_key, now};
use spacetime_sync_proto::access::REVOKE_PATH;
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::issuer::Issuer;
use spacetime_sync_tests::issuing::ADMIN;
use spacetime_sync_tests::lane::{BridgeOptions, Lane, stream, wait};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;

const SOON: Duration = Duration::from_secs(30);

async fn lane() -> Lane {
    Lane::start_with_tokens(Cluster::shared().await).await.unwrap()
}

fn writer(lane: &Lane, id: &StreamId) -> Writer {
    Writer::new(&lane.authority, id, "w", Payload::UpTo(300), 1)
}

/// The last line of JSON that a client has printed.
fn last(client: &Follower) -> Value {
    let log = client.log();
    log.lines()
        .rev()
        .find_map(|line| serde_json::from_str(line).ok())
        .unwrap_or_default()
}

async fn applies(client: &Follower, events: u64) {
    wait(
        SOON,
        &format!("a client applies {events} events: {}", client.log()),
        || client.applied() >= events,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_carry_a_client_from_the_bridge_to_its_streams_and_revocation_ends_it() {
    let lane = lane().await;
    let ids = [stream(1), stream(2)];
    let bridge = lane.bridge().unwrap();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = lane.client(&ids[..1]).await.unwrap();
        client.start().unwrap();
        clients.push(client);
    }
    // This client also asks for a stream that it may not see.
    let mut curious = lane.client(&ids[..1]).await.unwrap().following(&ids);
    curious.start().unwrap();
    let (mut one, mut two) = (writer(&lane, &ids[0]), writer(&lane, &ids[1]));
    two.append(5).await.unwrap();
    one.append(20).await.unwrap();
    for client in clients.iter().chain([&curious]) {
        applies(client, 20).await;
    }
    wait(SOON, "the stream without a grant is forbidden", || {
        last(&curious)["streams"][ids[1].as_str()]["phase"] == "forbidden"
    })
    .await;

    let revoke = async |credential: &str| {
        let request = reqwest::Client::new().post(format!("{}{REVOKE_PATH}", bridge.url()));
        let body = json!({ "session_ids": [clients[0].session().unwrap()], "reason": "a lost device" });
        let response = request.bearer_auth(credential).json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    assert_eq!(revoke("not-the-admin-credential").await.0, 401);
    let revoked = Instant::now();
    let (status, answer) = revoke(ADMIN).await;
    assert_eq!((status, &answer["delivered"]), (200, &json!(true)), "{answer}");
    wait(SOON, "the client stops", || last(&clients[0])["phase"] == "stopped").await;
    eprintln!("a revoked client stopped after {:?}", revoked.elapsed());
    assert_eq!(last(&clients[0])["code"], "token_revoked", "{}", last(&clients[0]));
    let before = clients[0].applied();
    one.append(20).await.unwrap();
    applies(&clients[1], 40).await;
    assert_eq!(clients[0].applied(), before);
    // It does not come back after a restart either.
    clients[0].start().unwrap();
    wait(SOON, "the client stops again", || {
        last(&clients[0])["code"] == "token_revoked"
    })
    .await;
    assert!(clients[1].compare(&lane.authority).await.unwrap().is_equal());
    assert_eq!(bridge.stop().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsupported_client_stops_with_the_reason() {
    let lane = lane().await;
    let options = BridgeOptions {
        set: vec![("compatibility.min_client_build_id", "20260101T000000Z".to_owned())],
        ..BridgeOptions::default()
    };
    let _bridge = lane.bridge_with(&options).unwrap();
    let old = lane.client(&[stream(1)]).await.unwrap();
    let mut old = old.option("--client-build-id", "20251231T235959Z");
    old.start().unwrap();
    wait(SOON, "it stops", || last(&old)["phase"] == "stopped").await;
    let said = last(&old);
    assert_eq!(
        (&said["reason"], &said["code"]),
        (&json!("incompatible"), &json!("upgrade_required")),
        "{said}"
    );
    assert_eq!(said["upgrade_required"], true, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_renews_its_own_session_and_keeps_its_link() {
    let lane = lane().await;
    let lasts = Duration::from_secs(10);
    let options = BridgeOptions {
        set: vec![("issuer.service_ttl_seconds", lasts.as_secs().to_string())],
        ..BridgeOptions::default()
    };
    let bridge = lane.bridge_with(&options).unwrap();
    let mut one = writer(&lane, &stream(1));
    one.append(1).await.unwrap();
    assert!(lane.published(SOON).await);
    let began = Instant::now();
    while began.elapsed() < lasts * 3 / 2 {
        one.append(1).await.unwrap();
        assert!(lane.published(SOON).await);
    }
    let metrics = bridge.text("/metrics").await.unwrap();
    assert!(metrics.contains("spacetime_sync_links_total 1\n"), "{metrics}");
    assert!(metrics.contains("spacetime_sync_refused_calls_total 0\n"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_rotation_keeps_connected_clients() {
    let lane = lane().await;
    let bridge = lane.bridge().unwrap();
    let mut first = lane.client(&[stream(1)]).await.unwrap();
    first.start().unwrap();
    let mut one = writer(&lane, &stream(1));
    one.append(10).await.unwrap();
    applies(&first, 10).await;
    let signs_from = now() + 3;
    let keys = async || {
        let jwks = format!("{}/.well-known/jwks.json", bridge.url());
        let jwks: Value = reqwest::get(jwks).await.unwrap().json().await.unwrap();
        jwks["keys"].as_array().unwrap().len()
    };
    assert_eq!(keys().await, 1);
    add_key(&lane.path("keys"), Some(3), now()).unwrap();
    let deadline = Instant::now() + SOON;
    while keys().await < 2 {
        assert!(Instant::now() < deadline, "the key was not published in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    wait(SOON, "the next key signs", || now() > signs_from).await;
    // SpacetimeDB fetched the keys before the second one existed, and takes minutes until it asks again. The delay
    // before a new key signs covers that. Connected clients stay connected.
    one.append(10).await.unwrap();
    applies(&first, 20).await;
}

/// The lifetime of the short tokens, and how long a client waits until it asks for the next one.
const LASTS: Duration = Duration::from_secs(10);
const REFRESH: Duration = Duration::from_secs(2);

/// Tokens of a few seconds for a client in this process, signed by an issuer in this process.
fn short_tokens(
    issuer: Arc<Issuer>,
    session: &'static str,
    streams: &'static [&'static str],
    asked: Arc<AtomicU64>,
) -> Credential {
    Credential::provider(move |_: WantedToken| {
        asked.fetch_add(1, Ordering::Relaxed);
        let mut claims = issuer.claims("7", session, streams);
        claims["exp"] = json!(now() + LASTS.as_secs() + 1);
        let mut token = AccessToken::new(issuer.sign(&claims), LASTS);
        token.refresh_after = REFRESH;
        token.session_id = Some(session.to_owned());
        async move { Ok::<_, TokenError>(token) }
    })
}

/// A lane whose module trusts an issuer of this process, besides the operator's bridge.
async fn lane_of(issuer: &Issuer) -> Lane {
    let lane = Lane::start().await.unwrap();
    let owner = lane.owner().unwrap();
    owner
        .call("trust_issuer", json!([issuer.url, "openagents-sync", 500]))
        .await
        .unwrap();
    lane
}

fn client(lane: &Lane, credential: Credential, ids: &[StreamId], name: &str, seen: Arc<AtomicU64>) -> SyncClient {
    let mut config = ClientConfig::new(lane.server.uri(), &lane.name, ids.to_vec());
    config.credential = credential;
    config.seal_keys = lane.seal_keys().unwrap();
    let store = SqliteStore::open(lane.path(name)).unwrap();
    let handler = move |_: &mut rusqlite::Transaction<'_>, _: &StreamId, events: &[Event]| {
        for event in events {
            // Each event once, and in order.
            let before = seen.fetch_add(1, Ordering::Relaxed);
            assert_eq!(event.seq.get(), before + 1);
        }
        Ok::<(), HandlerError>(())
    };
    SyncClient::start(config, store, handler).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_renews_its_token_again_and_again_without_a_gap_a_repeat_or_a_flicker() {
    let issuer = Arc::new(Issuer::start().await.unwrap());
    let lane = lane_of(&issuer).await;
    let _bridge = lane.bridge().unwrap();
    let id = stream(1);
    let mut writer = writer(&lane, &id);
    writer.append(1).await.unwrap();
    assert!(lane.published(SOON).await);
    let (asked, seen) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let credential = short_tokens(issuer, "s1", &["runtime.run.*"], asked.clone());
    let client = client(&lane, credential, &[id], "client.sqlite", seen.clone());
    let mut status = client.status();
    tokio::time::timeout(SOON, status.wait_for(|status| status.phase == Phase::Live))
        .await
        .unwrap()
        .unwrap();
    let (began, deadline) = (Instant::now(), Instant::now() + Duration::from_secs(60));
    let mut written = 1;
    // When this ends, the first token has expired.
    while asked.load(Ordering::Relaxed) < 6 || began.elapsed() < LASTS + REFRESH {
        writer.append(1).await.unwrap();
        written += 1;
        let phase = status.borrow_and_update().phase.clone();
        assert!(matches!(phase, Phase::Live | Phase::CatchingUp { .. }), "{phase:?}");
        assert!(Instant::now() < deadline, "the tokens were not renewed in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    wait(SOON, "everything is applied", || {
        seen.load(Ordering::Relaxed) == written
    })
    .await;
    let status = client.stop().await;
    assert!(status.counters.refreshes >= 4, "{:?}", status.counters);
    assert_eq!(
        (status.counters.reconnects, status.counters.token_failures),
        (0, 0),
        "{:?}",
        status.counters
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_see_each_others_presence() {
    let issuer = Arc::new(Issuer::start().await.unwrap());
    let lane = lane_of(&issuer).await;
    let _bridge = lane.bridge().unwrap();
    let id = stream(1);
    writer(&lane, &id).append(1).await.unwrap();
    assert!(lane.published(SOON).await);
    let start = |session: &'static str| {
        let credential = short_tokens(issuer.clone(), session, &["runtime.run.*"], Arc::default());
        client(
            &lane,
            credential,
            std::slice::from_ref(&id),
            &format!("{session}.sqlite"),
            Arc::default(),
        )
    };
    let (worker, desktop) = (start("worker"), start("desktop"));
    let here = worker.presence(Presence::online("node-1")).unwrap();
    let mut seen = desktop.presences(&[]).unwrap();
    let is = |status: &'static str| {
        move |seen: &Watched<Presences>| seen.rows.values().any(|who| who.status.as_str() == status)
    };
    tokio::time::timeout(SOON, seen.wait_for(is("online")))
        .await
        .unwrap()
        .unwrap();
    here.clear();
    tokio::time::timeout(SOON, seen.wait_for(is("offline")))
        .await
        .unwrap()
        .unwrap();
    worker.stop().await;
    desktop.stop().await;
}

/// The log files of all processes.
fn written(folder: &Path) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            all.push((path.display().to_string(), text));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_contains_a_token_or_key_under_load() {
    let lane = lane().await;
    let options = BridgeOptions {
        says: Some("debug".to_owned()),
        ..BridgeOptions::default()
    };
    let bridge = lane.bridge_with(&options).unwrap();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = lane.client(&[stream(1)]).await.unwrap();
        client.start().unwrap();
        clients.push(client);
    }
    let mut writer = writer(&lane, &stream(1));
    for round in 1..=5 {
        writer.append(50).await.unwrap();
        for client in &mut clients {
            applies(client, round * 50).await;
            client.kill();
            client.start().unwrap();
        }
    }
    // Wrong credentials are somebody's secret too.
    let url = format!("{}/api/sync/token", bridge.url());
    for secret in [
        "Bearer eyJhbGciOiJub25lIn0.e30.",
        "Basic dXNlcjpwYXNzd29yZA==",
        "Bearer not-a-token-at-all",
    ] {
        let request = reqwest::Client::new().post(&url).header("authorization", secret);
        assert!(request.body("{}").send().await.unwrap().status().is_client_error());
    }
    let metrics = bridge.text("/metrics").await.unwrap();
    let config = Command::new(spacetime_sync_tests::process::built("spacetime-sync"))
        .args(["config", "check"])
        .envs(
            lane.environment(&options, std::net::SocketAddr::from(([127, 0, 0, 1], 1)))
                .unwrap(),
        )
        .output()
        .unwrap();
    let config = String::from_utf8_lossy(&config.stdout).into_owned();
    assert!(config.contains("issuer"), "{config}");

    let mut said = written(lane.folder.path());
    said.push(("the metrics".to_owned(), metrics));
    said.push(("the configuration".to_owned(), config));
    let pem = std::fs::read_to_string(lane.path("app.pem")).unwrap();
    let secret_line = pem.lines().nth(1).unwrap();
    assert!(said.len() > 5 && said.iter().any(|(_, text)| text.len() > 1_000));
    for (what, text) in said {
        for secret in [
            "eyJ",
            "PRIVATE KEY",
            secret_line,
            ADMIN,
            "dXNlcjpwYXNz",
            "not-a-token-at-all",
        ] {
            let at = text
                .find(secret)
                .map(|at| text[at.saturating_sub(200)..].chars().take(400).collect::<String>());
            assert_eq!(at, None, "{what} contains {secret}");
        }
    }
}
