//! The gate before SpacetimeDB: a client works through it as without it, and who says anything else does not get through.

mod hostile;
mod limits;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use spacetime_sync_issuer::keys::now;
use spacetime_sync_proto::access::{REVOKE_PATH, REVOKED_PATH};
use spacetime_sync_proto::heads::HEADS_PATH;
use spacetime_sync_proto::{Refusal, RefusalCode, StreamId};
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::gate::{GATE, Gate, GateOptions};
use spacetime_sync_tests::hostile::forged;
use spacetime_sync_tests::issuer::Issuer;
use spacetime_sync_tests::issuing::{ADMIN, Desk, ask};
use spacetime_sync_tests::lane::{Bridge, Lane, stream, wait};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::scene::ready;
use spacetime_sync_tests::socket::Socket;
use spacetime_sync_tests::words::{SELF_JOIN, read_events};
use spacetimedb_client_api_messages::websocket::v2::ServerMessage;

const SOON: Duration = Duration::from_secs(30);
/// Within this, what must not last a second is over. The machine that runs the tests may be busy.
const SECOND: Duration = Duration::from_secs(1);

/// A lane with tokens, its bridge, and a gate that lets clients in.
struct Guarded {
    lane: Lane,
    bridge: Bridge,
    gate: Gate,
}

impl Guarded {
    async fn start(set: &[(&'static str, String)]) -> Self {
        let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
        let bridge = lane.bridge().unwrap();
        ready(&bridge, SOON).await.unwrap();
        let gate = lane.gate(set).unwrap();
        gate.until_ready(true).await.unwrap();
        Self { lane, bridge, gate }
    }

    /// A client that connects through the gate, and has applied this many events.
    async fn client(&self, ids: &[StreamId], events: u64) -> Follower {
        let mut client = self.lane.client(ids).await.unwrap().at(self.gate.address());
        client.start().unwrap();
        client.until_applied(events, SOON).await.unwrap();
        client
    }

    /// A token of the bridge for a session that may see a stream.
    async fn token(&self, session: &str, id: &StreamId) -> String {
        let user = format!("user-of-{session}");
        self.lane.allow(&format!("user:{user}"), &[id.as_str()]).await.unwrap();
        let credential = self.lane.keys().unwrap().session(&user, session);
        let response = ask(&reqwest::Client::new(), self.bridge.url(), &credential)
            .json(&json!({
                "scopes": ["sync.subscribe", "sync.checkpoint.write", "runtime.run_events"], "streams": [id.as_str()],
            }))
            .send()
            .await
            .unwrap();
        let answer: Value = response.json().await.unwrap();
        answer["token"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    async fn socket(&self, token: &str) -> Socket {
        open(&self.gate.uri(), &self.lane.name, token).await
    }

    async fn revoke(&self, session: &str) {
        self.bridge.revoke(session).await.unwrap();
    }
}

/// A connection that has begun.
async fn open(uri: &str, database: &str, token: &str) -> Socket {
    let mut socket = Socket::open(uri, database, Some(token)).await.unwrap().unwrap();
    let begins = |message: &ServerMessage| matches!(message, ServerMessage::InitialConnection(_));
    socket.until(SOON, begins).await.unwrap();
    socket
}

fn writer(lane: &Lane, id: &StreamId) -> Writer {
    Writer::new(&lane.authority, id, "w", Payload::UpTo(300), 1)
}

fn code(reason: &str) -> Option<RefusalCode> {
    Refusal::from_wire(reason).map(|refusal| refusal.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_works_through_the_gate_as_without_it() {
    let guarded = Guarded::start(&[]).await;
    let (lane, ids) = (&guarded.lane, [stream(1), stream(2)]);
    let mut writers = [writer(lane, &ids[0]), writer(lane, &ids[1])];
    for writer in &mut writers {
        writer.append_all(2_000, 100).await.unwrap();
    }
    let mut client = guarded.client(&ids, 4_000).await;
    client.until_live(SOON).await.unwrap();
    for writer in &mut writers {
        writer.append_all(500, 1).await.unwrap();
    }
    client.until_applied(5_000, SOON).await.unwrap();
    client.kill();
    writers[0].append_all(500, 10).await.unwrap();
    client.start().unwrap();
    client.until_applied(5_500, SOON).await.unwrap();
    assert!(client.compare(&lane.authority).await.unwrap().is_equal());
    assert_eq!(guarded.gate.metric("breaches_total").await.unwrap(), 0);
    assert!(guarded.gate.metric("passed_messages_total").await.unwrap() > 0);
    // What was acknowledged arrived.
    wait(SOON, "the client is live again", || client.status()["phase"] == "live").await;
    let deadline = Instant::now() + SOON;
    loop {
        let rows = lane.rows("SELECT seq FROM sync_checkpoint", false).await.unwrap();
        let acknowledged: u64 = rows.iter().filter_map(|row| row[0].as_u64()).sum();
        if acknowledged == 5_500 {
            break;
        }
        assert!(Instant::now() < deadline, "acknowledged: {rows:?}");
        tokio::time::sleep(spacetime_sync_tests::STEP).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_client_of_the_lane_says_does_not_reach_spacetimedb() {
    let guarded = Guarded::start(&[]).await;
    let (lane, id) = (&guarded.lane, stream(1));
    writer(lane, &id).append(1).await.unwrap();
    let honest = guarded.client(std::slice::from_ref(&id), 1).await;
    let token = guarded.token("probe", &id).await;
    let identity = honest.identity();

    // Without the gate, anybody who is admitted is answered.
    let mut direct = open(lane.server.uri(), &lane.name, &token).await;
    direct.sql(SELF_JOIN).await.unwrap();
    let rows = |message: &ServerMessage| matches!(message, ServerMessage::OneOffQueryResult(_));
    let ServerMessage::OneOffQueryResult(answer) = direct.until(SOON, rows).await.unwrap() else {
        unreachable!()
    };
    assert!(answer.result.is_ok(), "{answer:?}");
    let others = format!("SELECT * FROM stream_grant WHERE identity = 0x{identity}");
    for query in [
        "SELECT * FROM stream_grant",
        &others,
        "SELECT * FROM sync_event WHERE last_seq > 3",
    ] {
        direct.subscribe(query).await.unwrap();
        let applied = |message: &ServerMessage| matches!(message, ServerMessage::SubscribeApplied(_));
        direct.until(SOON, applied).await.unwrap();
    }

    let mut through = 0;
    for query in [
        SELF_JOIN,
        "SELECT * FROM st_client",
        "SELECT * FROM stream_grant",
        &others,
        "SELECT * FROM sync_event WHERE last_seq > 3",
        // Further than any client reaches.
        "SELECT * FROM sync_event WHERE section = 129127208515966861312 AND last_seq > 0 AND first_seq <= 70000",
        "SELECT e.* FROM sync_event e JOIN stream_grant g ON e.stream_key = g.stream_key",
    ] {
        let mut socket = guarded.socket(&token).await;
        socket.subscribe(query).await.unwrap();
        let reason = socket.closed(SOON).await.unwrap();
        assert_eq!(code(&reason), Some(RefusalCode::Forbidden), "{query}: {reason}");
        through += 1;
    }
    let mut socket = guarded.socket(&token).await;
    socket.sql(SELF_JOIN).await.unwrap();
    assert_eq!(code(&socket.closed(SOON).await.unwrap()), Some(RefusalCode::Forbidden));
    let mut socket = guarded.socket(&token).await;
    socket.sql("SELECT * FROM sync_contract").await.unwrap();
    assert_eq!(code(&socket.closed(SOON).await.unwrap()), Some(RefusalCode::Forbidden));
    for reducer in ["append_sync_events", "grant_stream", "sweep_log", "client_disconnected"] {
        let mut socket = guarded.socket(&token).await;
        socket.reducer(reducer, vec![]).await.unwrap();
        let reason = socket.closed(SOON).await.unwrap();
        assert_eq!(code(&reason), Some(RefusalCode::Forbidden), "{reducer}");
        through += 1;
    }
    let mut socket = guarded.socket(&token).await;
    socket.procedure("read_streams", vec![0; 4]).await.unwrap();
    assert_eq!(code(&socket.closed(SOON).await.unwrap()), Some(RefusalCode::Forbidden));
    let mut socket = guarded.socket(&token).await;
    socket.say_bytes(vec![77; 20]).await.unwrap();
    assert_eq!(
        code(&socket.closed(SOON).await.unwrap()),
        Some(RefusalCode::InvalidRequest)
    );
    let mut socket = guarded.socket(&token).await;
    socket.say_bytes(vec![0; 200_000]).await.unwrap();
    assert!(socket.closed(SOON).await.is_some());
    assert_eq!(guarded.gate.metric("breaches_total").await.unwrap(), through + 5);

    // Over HTTP, only the question of a client that is not let in passes.
    let http = reqwest::Client::new();
    let url = |path: &str| format!("{}/v1/{path}", guarded.gate.uri());
    let sql = async |text: &'static str| {
        let request = http
            .post(url(&format!("database/{}/sql", lane.name)))
            .bearer_auth(&token);
        let answer = request.body(text).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, contract) = sql("SELECT * FROM sync_contract").await;
    assert!(status == 200 && contract.contains("rows"), "{status} {contract}");
    for text in [SELF_JOIN, "SELECT * FROM sync_contract;SELECT * FROM st_column", ""] {
        let (status, refusal) = sql(text).await;
        assert_eq!((status, code(&refusal)), (403, Some(RefusalCode::Forbidden)), "{text}");
    }
    // The other session has asked as often as it may.
    let token = guarded.token("asker", &id).await;
    for path in [
        format!("database/{}/call/read_events", lane.name),
        format!("database/{}/schema", lane.name),
        format!("database/{}", lane.name),
        "database".to_owned(),
        "identity".to_owned(),
        "identity/websocket-token".to_owned(),
        "metrics".to_owned(),
    ] {
        for request in [http.get(url(&path)), http.post(url(&path)), http.put(url(&path))] {
            let status = request.bearer_auth(&token).body("[]").send().await.unwrap().status();
            assert_eq!(status.as_u16(), 404, "{path}");
        }
    }
    writer(lane, &stream(2)).append(1).await.unwrap();
    assert!(honest.status()["phase"] == "live", "{}", honest.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_good_token_of_a_session_opens_a_connection() {
    let guarded = Guarded::start(&[]).await;
    let (lane, id) = (&guarded.lane, stream(1));
    let token = guarded.token("probe", &id).await;
    let refused = async |database: &str, token: Option<&str>| {
        let refused = Socket::open(&guarded.gate.uri(), database, token)
            .await
            .unwrap()
            .unwrap_err();
        (refused.status, code(&refused.body))
    };
    let missing = (401, Some(RefusalCode::MissingAuthorization));
    assert_eq!(refused(&lane.name, None).await, missing);
    for bad in ["a.b.c", "eyJhbGciOiJub25lIn0.e30.", &forged(&token)] {
        assert_eq!(
            refused(&lane.name, Some(bad)).await,
            (401, Some(RefusalCode::InvalidToken)),
            "{bad}"
        );
    }
    // SpacetimeDB signs the claims anew, and accepts the result. Nobody else does.
    let anew = lane.server.sign_anew(&token).await.unwrap();
    assert_eq!(
        refused(&lane.name, Some(&anew)).await,
        (401, Some(RefusalCode::InvalidToken))
    );
    let http = reqwest::Client::new();
    let (heads, sql) = (
        format!("{}{HEADS_PATH}", guarded.bridge.url()),
        format!("{}/v1/database/{}/sql", lane.server.uri(), lane.name),
    );
    let to_bridge = http.post(heads).json(&json!({ "streams": [id.as_str()] }));
    let to_module = http.post(sql).body("SELECT * FROM sync_contract");
    for request in [to_bridge, to_module] {
        let send = async |token: &str| request.try_clone().unwrap().bearer_auth(token).send().await.unwrap();
        assert_eq!(send(&token).await.status(), 200);
        let refusal = send(&anew).await;
        assert!(!refusal.status().is_success());
        let refusal = refusal.text().await.unwrap();
        assert!(refusal.contains("invalid_token"), "{refusal}");
    }
    // The owner's and the server's own tokens are for the operator's way in.
    let owner = std::fs::read_to_string(lane.path("owner.token")).unwrap();
    assert_eq!(refused(&lane.name, Some(owner.trim())).await.0, 401);
    assert_eq!(
        refused("another", Some(&token)).await,
        (404, Some(RefusalCode::NotFound))
    );
    // A gate learns who was revoked, and nothing else.
    let ask = async |path: &str, credential: &str| {
        let request = http.get(format!("{}{path}", guarded.bridge.url()));
        request.bearer_auth(credential).send().await.unwrap().status().as_u16()
    };
    assert_eq!(ask(REVOKED_PATH, GATE).await, 200);
    assert_eq!(ask(REVOKED_PATH, ADMIN).await, 200);
    assert_eq!(ask(REVOKED_PATH, "neither-of-the-two").await, 401);
    assert_eq!(ask("/internal/v1/spacetime/sync/metrics", GATE).await, 401);
    assert_eq!(ask(REVOKE_PATH, GATE).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_closes_the_sessions_connections_within_a_second() {
    let guarded = Guarded::start(&[]).await;
    let (lane, id) = (&guarded.lane, stream(1));
    let mut writer = writer(lane, &id);
    writer.append(1).await.unwrap();
    let (lost, kept) = (
        guarded.client(std::slice::from_ref(&id), 1).await,
        guarded.client(std::slice::from_ref(&id), 1).await,
    );
    let token = guarded.token("probe", &id).await;
    let mut socket = guarded.socket(&token).await;
    // Without the gate the connection outlives the revocation, and is answered.
    let mut direct = open(lane.server.uri(), &lane.name, &token).await;
    let revoked = Instant::now();
    guarded.revoke("probe").await;
    let reason = socket.closed(SOON).await.unwrap();
    let after = revoked.elapsed();
    assert_eq!(code(&reason), Some(RefusalCode::TokenRevoked));
    assert!(after < SECOND, "closed after {after:?}");
    direct.sql(SELF_JOIN).await.unwrap();
    let rows = |message: &ServerMessage| matches!(message, ServerMessage::OneOffQueryResult(_));
    direct.until(SOON, rows).await.unwrap();
    let again = Socket::open(&guarded.gate.uri(), &lane.name, Some(&token))
        .await
        .unwrap();
    let again = again.unwrap_err();
    assert_eq!(
        (again.status, code(&again.body)),
        (403, Some(RefusalCode::TokenRevoked))
    );

    guarded.revoke(&lost.session().unwrap()).await;
    wait(SOON, "the client stops", || lost.status()["phase"] == "stopped").await;
    assert_eq!(lost.status()["code"], "token_revoked", "{}", lost.log());
    writer.append(10).await.unwrap();
    kept.until_applied(11, SOON).await.unwrap();
    assert_eq!(lost.applied(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_its_token() {
    let issuer = Issuer::start().await.unwrap();
    let lane = Lane::start().await.unwrap();
    let trusted = json!([issuer.url, "openagents-sync", 500]);
    lane.owner().unwrap().call("trust_issuer", trusted).await.unwrap();
    let desk = Desk::new(Cluster::shared().await).await.unwrap();
    let bridge = desk.bridge(&[]).await.unwrap();
    let gate = lane
        .gate_with(&GateOptions {
            issuer: issuer.url.clone(),
            set: vec![
                ("keys_url", format!("{}/keys", issuer.url)),
                ("bridge_url", bridge.url("")),
            ],
            ..GateOptions::default()
        })
        .unwrap();
    gate.until_ready(true).await.unwrap();
    let mut claims = issuer.claims("7", "short", &["runtime.run.*"]);
    claims["exp"] = json!(now() + 3);
    let token = issuer.sign(&claims);
    let mut direct = open(lane.server.uri(), &lane.name, &token).await;
    let mut socket = open(&gate.uri(), &lane.name, &token).await;
    let reason = socket.closed(SOON).await.unwrap();
    assert_eq!(code(&reason), Some(RefusalCode::TokenExpired));
    let late = now() - claims["exp"].as_u64().unwrap();
    assert!(late <= 1, "closed {late} s after the token expired");
    assert_eq!(gate.metric("expired_total").await.unwrap(), 1);
    direct.sql(SELF_JOIN).await.unwrap();
    let rows = |message: &ServerMessage| matches!(message, ServerMessage::OneOffQueryResult(_));
    direct.until(SOON, rows).await.unwrap();
    let again = Socket::open(&gate.uri(), &lane.name, Some(&token))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(
        (again.status, code(&again.body)),
        (403, Some(RefusalCode::TokenExpired))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_closed_and_the_gate_stays_small() {
    let set = [
        ("slow_after_ms", "2000".to_owned()),
        ("buffer_bytes", "1048576".to_owned()),
    ];
    let guarded = Guarded::start(&set).await;
    let (lane, id) = (&guarded.lane, stream(1));
    let mut writer = Writer::new(&lane.authority, &id, "w", Payload::UpTo(60_000), 1);
    writer.append_all(400, 100).await.unwrap();
    let honest = guarded.client(std::slice::from_ref(&id), 400).await;
    let token = guarded.token("probe", &id).await;
    let mut slow = guarded.socket(&token).await;
    // Pages of a megabyte, more than the kernel and the gate hold together.
    for _ in 0..60 {
        slow.procedure("read_events", read_events(&id, 0)).await.unwrap();
    }
    let deadline = Instant::now() + SOON;
    while guarded.gate.metric("slow_total").await.unwrap() == 0 {
        assert!(Instant::now() < deadline, "a client that does not read is still there");
        tokio::time::sleep(spacetime_sync_tests::STEP).await;
    }
    let (_, peak) = guarded.gate.process.memory_mb().unwrap();
    assert!(peak < 100, "the gate took {peak} MB");
    writer.append_all(100, 1).await.unwrap();
    honest.until_applied(500, SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_dies_comes_back_and_one_without_a_bridge_lets_nobody_new_in() {
    let set = [("revocations_max_age_ms", "1500".to_owned())];
    let Guarded { lane, bridge, gate } = Guarded::start(&set).await;
    let id = stream(1);
    let mut writer = writer(&lane, &id);
    writer.append(10).await.unwrap();
    let mut client = lane.client(std::slice::from_ref(&id)).await.unwrap().at(gate.address());
    client.start().unwrap();
    client.until_applied(10, SOON).await.unwrap();
    let address = gate.address();
    gate.process.kill();
    writer.append(10).await.unwrap();
    let options = GateOptions {
        listen: Some(address),
        issuer: bridge.url().to_owned(),
        set: set.to_vec(),
    };
    let gate = lane.gate_with(&options).unwrap();
    client.until_applied(20, SOON).await.unwrap();

    let guarded = Guarded { lane, bridge, gate };
    let token = guarded.token("probe", &id).await;
    let mut held = guarded.socket(&token).await;
    assert_eq!(guarded.bridge.stop().await.unwrap(), 0);
    guarded.gate.until_ready(false).await.unwrap();
    let refused = Socket::open(&guarded.gate.uri(), &guarded.lane.name, Some(&token))
        .await
        .unwrap();
    let refused = refused.unwrap_err();
    assert_eq!(
        (refused.status, code(&refused.body)),
        (503, Some(RefusalCode::SyncTokenUnavailable))
    );
    held.subscribe("SELECT * FROM sync_contract").await.unwrap();
    let applied = |message: &ServerMessage| matches!(message, ServerMessage::SubscribeApplied(_));
    held.until(SOON, applied).await.unwrap();

    let bridge = guarded.lane.bridge().unwrap();
    guarded.gate.until_ready(true).await.unwrap();
    writer.append(10).await.unwrap();
    client.until_applied(30, SOON).await.unwrap();
    assert!(client.compare(&guarded.lane.authority).await.unwrap().is_equal());
    let guarded = Guarded { bridge, ..guarded };
    // What was revoked while the gate was away or blind, it knows at once.
    guarded.revoke("probe").await;
    assert_eq!(code(&held.closed(SOON).await.unwrap()), Some(RefusalCode::TokenRevoked));
}
