//! Reading the authority's log over HTTP: who may read, what the bridge answers, and what it never sends.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use spacetime_sync_issuer::jws::{Jws, Kind};
use spacetime_sync_issuer::keys::{SigningKey, add_key, now};
use spacetime_sync_proto::page::{EventPage, PROTOBUF, STREAMS_PATH, Snapshot, path_segment};
use spacetime_sync_proto::{ChainHash, Event, Frame, FrameRow, Seq, StreamId, limit};
use spacetime_sync_tests::issuing::{Desk, Issuing, answer};
use spacetime_sync_tests::load::{Payload, Writer};

use super::desk;

const NOTES: &str = "notes";

fn id(name: &str) -> StreamId {
    StreamId::new(name).unwrap()
}

/// A desk whose stream holds this many events, a bridge, and a token that may read the stream.
async fn written(events: usize, set: &[(&str, String)]) -> (Desk, Issuing, String) {
    let desk = desk().await;
    write(&desk, NOTES, events).await;
    desk.allow("everyone", NOTES).await.unwrap();
    let bridge = desk.bridge(set).await.unwrap();
    let token = token(&bridge, &desk.session("7", "s1"), &[NOTES]).await;
    (desk, bridge, token)
}

async fn write(desk: &Desk, name: &str, events: usize) {
    let mut writer = Writer::new(&desk.authority, &id(name), "w", Payload::UpTo(300), 3);
    writer.append(events).await.unwrap();
}

async fn token(bridge: &Issuing, session: &str, streams: &[&str]) -> String {
    let (status, body) = bridge.token(session, streams).await.unwrap();
    assert_eq!(status, 200, "{body}");
    body["token"].as_str().unwrap().to_owned()
}

fn get(bridge: &Issuing, name: &str, query: &str) -> RequestBuilder {
    let path = format!("{STREAMS_PATH}/{}/events{query}", path_segment(&id(name)).unwrap());
    bridge.http().get(bridge.url(&path))
}

async fn send(request: RequestBuilder, token: &str) -> Response {
    request.bearer_auth(token).send().await.unwrap()
}

async fn refused(request: RequestBuilder, token: &str) -> (u16, String) {
    let (status, body) = answer(send(request, token).await).await.unwrap();
    (status, body["code"].as_str().unwrap_or_default().to_owned())
}

async fn page(bridge: &Issuing, token: &str, name: &str, after: u64, chain: ChainHash) -> Result<EventPage, Value> {
    let response = send(get(bridge, name, &format!("?after={after}&chain={chain}")), token).await;
    if response.status() == 200 {
        assert_eq!(response.headers()[CONTENT_TYPE], PROTOBUF);
        return Ok(EventPage::decode(response.bytes().await.unwrap()).unwrap());
    }
    let (status, body) = answer(response).await.unwrap();
    assert_eq!(status, 410, "{body}");
    Err(body)
}

fn events(page: &EventPage, after: Seq) -> Vec<Event> {
    let read = |frame: &FrameRow| Frame::decode(frame.first_seq.get(), frame.base_chain, frame.bytes.clone()).unwrap();
    let frames = page.frames.iter().map(read);
    frames
        .flat_map(|frame| frame.into_events_after(after).collect::<Vec<_>>())
        .collect()
}

/// Reads a stream to its head, page by page.
async fn read_all(bridge: &Issuing, token: &str, name: &str) -> Result<Vec<Event>, Value> {
    let (mut log, mut after, mut chain) = (Vec::new(), Seq::ZERO, ChainHash::genesis(&id(name)));
    loop {
        let page = page(bridge, token, name, after.get(), chain).await?;
        let bytes: usize = page.frames.iter().map(|frame| frame.bytes.len()).sum();
        assert!(bytes <= limit::PAGE_BYTES || page.frames.len() == 1);
        let read = events(&page, after);
        let Some(last) = read.last() else {
            assert_eq!(after, page.head_seq);
            return Ok(log);
        };
        (after, chain) = (last.seq, last.chain_hash);
        log.extend(read);
    }
}

async fn whole_log(desk: &Desk, name: &str) -> Vec<Event> {
    let id = id(name);
    let read = desk.authority.read_events(&id, Seq::ZERO, 100_000, 1 << 30);
    read.await.unwrap()
}

#[tokio::test]
async fn the_token_of_the_lane_reads_the_whole_log_in_bounded_pages() {
    let (desk, bridge, token) = written(9_000, &[]).await;
    assert_eq!(
        read_all(&bridge, &token, NOTES).await.unwrap(),
        whole_log(&desk, NOTES).await
    );
    let few = send(get(&bridge, NOTES, "?after=5&limit=3"), &token).await;
    let few = EventPage::decode(few.bytes().await.unwrap()).unwrap();
    let seqs: Vec<u64> = events(&few, Seq::ZERO).iter().map(|event| event.seq.get()).collect();
    assert_eq!(seqs, [6, 7, 8]);
    let delivery = bridge.metrics().await.unwrap()["delivery"].clone();
    assert_eq!(delivery["served_messages"], 9_003, "{delivery}");
    assert!(delivery["total_polls"].as_u64() > Some(3), "{delivery}");
    assert_eq!(
        (&delivery["max_replay_lag"], &delivery["active_consumers"]),
        (&json!(9_000), &json!(1))
    );
    let text = bridge.text("/metrics").await.unwrap();
    assert!(
        text.contains("spacetime_sync_history_served_messages_total 9003\n"),
        "{text}"
    );
}

#[tokio::test]
async fn an_answer_is_compressed_or_json_on_request() {
    let (desk, bridge, token) = written(500, &[]).await;
    let plain = reqwest::Client::builder().no_gzip().build().unwrap();
    let url = bridge.url(&format!("{STREAMS_PATH}/{NOTES}/events?after=0"));
    let ask = async |encoding: &str| {
        let request = plain.get(&url).header(ACCEPT_ENCODING, encoding).bearer_auth(&token);
        let response = request.send().await.unwrap();
        let encoded = response.headers().get(CONTENT_ENCODING).cloned();
        (
            encoded.map(|value| value.to_str().unwrap().to_owned()),
            response.bytes().await.unwrap(),
        )
    };
    let (identity, whole) = ask("identity").await;
    let (gzip, packed) = ask("gzip").await;
    assert_eq!((identity, gzip.as_deref()), (None, Some("gzip")));
    assert!(packed.len() < whole.len() && packed.starts_with(&[0x1f, 0x8b]));
    let readable = get(&bridge, NOTES, "?after=498").header(ACCEPT, "application/json");
    let (_, readable) = answer(send(readable, &token).await).await.unwrap();
    let log = whole_log(&desk, NOTES).await;
    assert_eq!(readable["head_seq"], 500);
    assert_eq!(readable["events"][1]["seq"], 500);
    assert_eq!(readable["events"][1]["chain_hash"], log[499].chain_hash.to_string());
    assert_eq!(
        readable["events"][1]["idempotency_key"],
        log[499].idempotency_key.as_str()
    );
    use base64::Engine as _;
    let payload = base64::engine::general_purpose::STANDARD.encode(&log[499].payload);
    assert_eq!(readable["events"][1]["payload"], payload);
}

#[tokio::test]
async fn every_stream_name_is_one_path_segment() {
    let desk = desk().await;
    let names = ["user:7:a/b", "a%2Fb", "a+b", "a=b@c~d", "a/../b", "...", "%"];
    for (at, name) in names.iter().enumerate() {
        write(&desk, name, at + 1).await;
        desk.allow("everyone", name).await.unwrap();
    }
    let bridge = desk.bridge(&[]).await.unwrap();
    let token = token(&bridge, &desk.session("7", "s1"), &names).await;
    for (at, name) in names.iter().enumerate() {
        let read = read_all(&bridge, &token, name).await.unwrap();
        assert_eq!(read.len(), at + 1, "{name}");
    }
    // A stream without events is empty for a caller who may read it.
    desk.allow("everyone", "later").await.unwrap();
    let later = self::token(&bridge, &desk.session("7", "s2"), &["later"]).await;
    assert_eq!(read_all(&bridge, &later, "later").await.unwrap(), []);
    assert_eq!(
        refused(get(&bridge, "later", "?after=3"), &later).await,
        (410, "stale_cursor".to_owned())
    );
}

#[tokio::test]
async fn a_token_that_cannot_read_the_stream_cannot_read_its_history() {
    let often = ["issuer.failures_burst", "issuer.session_burst"].map(|key| (key, "1000".to_owned()));
    let (desk, bridge, good) = written(10, &often).await;
    desk.allow("everyone", "runtime.run.1.events").await.unwrap();
    write(&desk, "runtime.run.1.events", 3).await;
    let ask = || get(&bridge, NOTES, "?after=0");
    let (status, body) = answer(ask().send().await.unwrap()).await.unwrap();
    assert_eq!((status, &body["code"]), (401, &json!("missing_authorization")));
    let basic = ask().header("authorization", "Basic x").send().await.unwrap();
    assert_eq!(answer(basic).await.unwrap().1["code"], "invalid_authorization_scheme");

    let pem = std::fs::read_dir(desk.path("keys"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let key = SigningKey::from_pem(&std::fs::read_to_string(pem).unwrap().into(), 0, "test").unwrap();
    let jws = Jws::parse(&good, Kind::Sync).unwrap();
    let claims: Value = serde_json::from_str(jws.claims(&key.public()).unwrap().get()).unwrap();
    let signed = |changes: &[(&str, Value)], by: &SigningKey| {
        let mut claims = claims.clone();
        for (field, value) in changes {
            claims[*field] = value.clone();
        }
        by.sign(Kind::Sync, &claims).unwrap().expose().to_owned()
    };
    let foreign = SigningKey::from_pem(&SigningKey::generate().unwrap(), 0, "test").unwrap();
    let service = [
        ("sub", json!("service:bridge")),
        ("oa_sync_scopes", json!(["sync.append"])),
    ];
    for (token, expected) in [
        (signed(&[], &key), (200, "")),
        (desk.session("7", "s1"), (401, "invalid_token")),
        // As an earlier release signed it. Clients renew a token that the bridge does not accept.
        (
            key.sign(Kind::Session, &claims).unwrap().expose().to_owned(),
            (401, "invalid_token"),
        ),
        (signed(&[], &foreign), (401, "invalid_token")),
        (format!("{good}x"), (401, "invalid_token")),
        (
            signed(&[("iss", json!("https://other.example"))], &key),
            (401, "invalid_token"),
        ),
        (signed(&[("aud", json!("runtime-sync"))], &key), (401, "invalid_token")),
        (
            signed(&[("oa_claims_version", json!("v0"))], &key),
            (401, "invalid_token"),
        ),
        (signed(&[("exp", json!(now() - 1))], &key), (401, "token_expired")),
        (
            signed(&[("nbf", json!(now() + 90))], &key),
            (401, "token_not_yet_valid"),
        ),
        (signed(&[("jti", json!(""))], &key), (401, "missing_jti")),
        (signed(&service, &key), (403, "missing_scope")),
        (signed(&[("oa_sync_scopes", json!([]))], &key), (403, "missing_scope")),
        (
            signed(&[("oa_sync_streams", json!(["other"]))], &key),
            (403, "forbidden_stream"),
        ),
        (
            signed(&[("oa_device_id", json!("stolen"))], &key),
            (403, "session_bound"),
        ),
        (
            signed(&[("oa_schema_version", json!(999))], &key),
            (426, "unsupported_schema_version"),
        ),
    ] {
        let found = refused(ask(), &token).await;
        assert_eq!(found, (expected.0, expected.1.to_owned()), "{claims}");
    }
    // A missing scope and a stream that does not exist give a stranger the same answer.
    let run = [
        ("oa_sync_streams", json!(["runtime.run.1.events"])),
        ("oa_sync_scopes", json!(["sync.subscribe"])),
    ];
    let run = refused(get(&bridge, "runtime.run.1.events", "?after=0"), &signed(&run, &key)).await;
    assert_eq!(run, (403, "missing_scope".to_owned()));
    for name in ["runtime.topic.secret", "nothing.there"] {
        assert_eq!(
            refused(get(&bridge, name, "?after=0"), &good).await,
            (403, "forbidden_stream".to_owned())
        );
    }
    // A superseded key stays valid as long as its tokens.
    add_key(&desk.path("keys"), Some(1), now()).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let newer = self::token(&bridge, &desk.session("7", "s1"), &[NOTES]).await;
        if Jws::parse(&newer, Kind::Sync).unwrap().kid.as_deref() != Some(key.kid()) {
            assert_eq!(refused(ask(), &newer).await.0, 200);
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the new key does not sign");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(refused(ask(), &good).await.0, 200);

    let (status, _) = bridge.revoke(&["s1"]).await.unwrap();
    assert_eq!(status, 200);
    assert_eq!(refused(ask(), &good).await, (401, "token_revoked".to_owned()));
    let other = desk.bridge(&[]).await.unwrap();
    let there = refused(get(&other, NOTES, "?after=0"), &good).await;
    assert_eq!(
        there,
        (401, "token_revoked".to_owned()),
        "every bridge refuses a revoked session at once"
    );
}

#[tokio::test]
async fn malformed_history_requests_are_refused() {
    let (_desk, bridge, token) = written(10, &[]).await;
    for query in [
        "",
        "?",
        "?after=x",
        "?after=-1",
        "?after=1&after=2",
        "?after=9223372036854775808",
        "?after=1&limit=0",
        "?after=1&chain=sha256:zz",
        "?after=1&x=1",
        "?after=%00",
    ] {
        let found = refused(get(&bridge, NOTES, query), &token).await;
        assert_eq!(found, (422, "invalid_argument".to_owned()), "{query}");
    }
    let raw = |path: &str| bridge.http().get(bridge.url(path));
    for (path, status) in [
        ("/api/sync/streams/notes%00/events?after=0", 422),
        ("/api/sync/streams/not%20es/events?after=0", 422),
        ("/api/sync/streams/%D0%B5/events?after=0", 422),
        ("/api/sync/streams/no'tes/events?after=0", 422),
        ("/api/sync/streams/notes/other?after=0", 404),
        ("/api/sync/streams/a/b/events?after=0", 404),
        ("/api/sync/streams//events?after=0", 422),
    ] {
        let found = send(raw(path), &token).await.status().as_u16();
        assert_eq!(found, status, "{path}");
    }
    let long = format!("/api/sync/streams/{}/events?after=0", "x".repeat(5_000));
    assert_eq!(send(raw(&long), &token).await.status(), 422);
    let posted = bridge.http().post(bridge.url("/api/sync/streams/notes/events?after=0"));
    assert_eq!(send(posted, &token).await.status(), 405);
    let huge = refused(get(&bridge, NOTES, "?after=0&limit=18446744073709551615"), &token).await;
    assert_eq!(huge.0, 200);
    assert_eq!(
        refused(get(&bridge, NOTES, "?after=9223372036854775807"), &token)
            .await
            .0,
        410
    );
}

#[tokio::test]
async fn a_stale_cursor_lists_every_reason() {
    let (desk, bridge, token) = written(100, &[]).await;
    let log = whole_log(&desk, NOTES).await;
    let chain = |seq: u64| match seq {
        0 => ChainHash::genesis(&id(NOTES)),
        seq => log[seq as usize - 1].chain_hash,
    };
    desk.sql(
        "update runtime.sync_streams set published_seq = head_seq;
         update runtime.sync_retention set window_events = 10, log_events = 60 where class = 'otherwise'",
    )
    .await
    .unwrap();
    assert_eq!(desk.authority.purge(&id(NOTES), 1_000).await.unwrap(), 40);
    let other = ChainHash::from_bytes([9; 32]);
    let ask = async |after, chain| page(&bridge, &token, NOTES, after, chain).await;
    let floor = ask(39, chain(39)).await.unwrap_err();
    for (field, value) in [
        ("code", json!("stale_cursor")),
        ("stream_id", json!(NOTES)),
        ("requested_after_seq", json!(39)),
        ("oldest_available_cursor", json!(40)),
        ("oldest_available_chain", json!(chain(40))),
        ("head_cursor", json!(100)),
        ("reason_codes", json!(["retention_floor_breach"])),
        ("replay_lag", json!(61)),
        ("replay_budget_events", json!(null)),
        ("snapshot_cursor", json!(null)),
    ] {
        assert_eq!(floor[field], value, "{field}");
    }
    assert_eq!(
        ask(101, other).await.unwrap_err()["reason_codes"],
        json!(["ahead_of_head"])
    );
    assert_eq!(
        ask(50, other).await.unwrap_err()["reason_codes"],
        json!(["chain_mismatch"])
    );
    assert_eq!(
        ask(100, other).await.unwrap_err()["reason_codes"],
        json!(["chain_mismatch"])
    );
    assert_eq!(events(&ask(40, chain(40)).await.unwrap(), Seq::ZERO)[..], log[40..]);

    desk.sql("update runtime.sync_retention set replay_budget_events = 20 where class = 'otherwise'")
        .await
        .unwrap();
    let both = ask(3, chain(3)).await.unwrap_err();
    assert_eq!(
        both["reason_codes"],
        json!(["retention_floor_breach", "replay_budget_exceeded"])
    );
    // The stream can be started over where the answer says.
    let begin = both["oldest_available_cursor"].as_u64().unwrap();
    assert_eq!((begin, &both["oldest_available_chain"]), (85, &json!(chain(85))));
    assert_eq!(
        events(&ask(begin, chain(begin)).await.unwrap(), Seq::ZERO)[..],
        log[85..]
    );
    let stale = bridge.metrics().await.unwrap()["delivery"]["stale_cursor_events_total"].clone();
    assert_eq!(stale, 5);
}

#[tokio::test]
async fn a_document_replaces_purged_events() {
    let (desk, bridge, token) = written(30, &[]).await;
    let ask = async || {
        let path = format!("{STREAMS_PATH}/{NOTES}/snapshot");
        send(bridge.http().get(bridge.url(&path)), &token).await
    };
    assert_eq!(ask().await.status(), 404);
    desk.sql("select runtime.sync_put_snapshot('notes', 'runtime/notes', 20, '\\x7b7d')")
        .await
        .unwrap();
    let snapshot = Snapshot::decode(ask().await.bytes().await.unwrap()).unwrap();
    assert_eq!((snapshot.doc_key.as_str(), snapshot.seq.get()), ("runtime/notes", 20));
    assert_eq!(snapshot.payload, Bytes::from_static(b"{}"));
    assert!(snapshot.payload_matches());
    assert_eq!(snapshot.chain_hash, whole_log(&desk, NOTES).await[19].chain_hash);
    desk.sql("update runtime.sync_snapshots set payload = '\\x00'")
        .await
        .unwrap();
    assert_eq!(
        ask().await.status(),
        409,
        "a document that does not match its hash is not sent"
    );
    let open = bridge
        .http()
        .get(bridge.url(&format!("{STREAMS_PATH}/{NOTES}/snapshot")));
    assert_eq!(open.send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_tampered_log_is_never_served() {
    let (desk, bridge, token) = written(200, &[]).await;
    let changes = [
        "payload = 'altered'::bytea",
        "kind = 'another.kind'",
        "committed_at = committed_at + interval '1 second'",
        "chain_hash = sha256('x')",
        "payload = 'altered'::bytea, payload_hash = sha256('altered'::bytea)",
    ];
    for (at, change) in changes.iter().enumerate() {
        let name = format!("{NOTES}.{at}");
        write(&desk, &name, 200).await;
        desk.allow("everyone", &name).await.unwrap();
        let token = self::token(&bridge, &desk.session("7", &format!("t{at}")), &[&name]).await;
        assert_eq!(read_all(&bridge, &token, &name).await.unwrap().len(), 200);
        desk.sql(&format!(
            "set session_replication_role = replica;
             update runtime.sync_stream_events set {change} where stream_id = '{name}' and seq = 120"
        ))
        .await
        .unwrap();
        let found = refused(get(&bridge, &name, "?after=0"), &token).await;
        assert_eq!(found, (409, "chain_mismatch".to_owned()), "{change}");
        let before = refused(get(&bridge, &name, "?after=0&limit=119"), &token).await;
        assert_eq!(before.0, 200, "the events before are still served: {change}");
    }
    desk.sql(
        "set session_replication_role = replica;
         delete from runtime.sync_stream_events where stream_id = 'notes' and seq = 120",
    )
    .await
    .unwrap();
    assert_eq!(refused(get(&bridge, NOTES, "?after=0"), &token).await.0, 409);
    assert_eq!(refused(get(&bridge, NOTES, "?after=119"), &token).await.0, 409);
    assert_eq!(refused(get(&bridge, NOTES, "?after=120"), &token).await.0, 409);
    assert!(bridge.said("the authority's log do not match").await);
    let broken = bridge.metrics().await.unwrap()["delivery"]["broken_log_total"].clone();
    assert!(broken.as_u64() >= Some(8), "{broken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_during_a_replay_is_invisible_to_the_reader() {
    let often = [
        ("history.session_burst", "100000".to_owned()),
        ("history.session_per_minute", "1000000".to_owned()),
    ];
    let (desk, bridge, token) = written(6_000, &often).await;
    let log = whole_log(&desk, NOTES).await;
    desk.sql(
        "update runtime.sync_streams set published_seq = head_seq;
         update runtime.sync_retention set window_events = 10, log_events = 100 where class = 'otherwise'",
    )
    .await
    .unwrap();
    // Purges a little at a time, as the bridge does.
    let purge = async |events| desk.authority.purge(&id(NOTES), events).await.unwrap();
    // The first seq that the log still holds, both for a reader who gets a page and for one who comes too late.
    let read = async |after: u64| {
        let chain = match after {
            0 => ChainHash::genesis(&id(NOTES)),
            after => log[after as usize - 1].chain_hash,
        };
        match page(&bridge, &token, NOTES, after, chain).await {
            Ok(page) => {
                let read = events(&page, Seq::new(after).unwrap());
                assert_eq!(read[..], log[after as usize..after as usize + read.len()]);
                assert!(!read.is_empty() && page.oldest_seq.get() <= after + 1);
                Ok(page.oldest_seq.get() - 1)
            }
            Err(body) => {
                assert_eq!(body["reason_codes"], json!(["retention_floor_breach"]));
                let floor = body["oldest_available_cursor"].as_u64().unwrap();
                assert_eq!(
                    body["oldest_available_chain"],
                    json!(log[floor as usize - 1].chain_hash)
                );
                assert!(floor > after);
                Err(floor)
            }
        }
    };
    let (mut after, mut purged_first) = (0, 0);
    loop {
        // Purge and read run at the same time. The read sees the log before or after the purge, and nothing in between.
        let (purged, met) = tokio::join!(purge(7), read(after));
        purged_first += u32::from(met.is_err());
        // Now nothing moves: a reader who was told where to continue can continue there.
        after = match read(after).await {
            Ok(floor) => floor,
            Err(floor) => read(floor).await.unwrap(),
        };
        if purged == 0 {
            break;
        }
        if purge(100).await > 0 {
            assert!(read(after).await.unwrap_err() > after);
        }
    }
    eprintln!("the purge was first {purged_first} times");
    assert_eq!(after, 5_900);
}

#[tokio::test]
async fn too_many_history_requests_are_limited() {
    let few = [
        ("history.session_burst", "3".to_owned()),
        ("history.session_per_minute", "1".to_owned()),
    ];
    let (desk, bridge, token) = written(3, &few).await;
    let began = std::time::Instant::now();
    for _ in 0..3 {
        assert_eq!(refused(get(&bridge, NOTES, "?after=0"), &token).await.0, 200);
    }
    let response = send(get(&bridge, NOTES, "?after=0"), &token).await;
    assert_eq!(response.status(), 429);
    let retry_after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    // The next request is allowed a minute after the first. The answer says so in whole seconds.
    let least = 59_u64.saturating_sub(began.elapsed().as_secs());
    assert!((least..=60).contains(&retry_after), "{retry_after}, at least {least}");
    let other = self::token(&bridge, &desk.session("7", "s2"), &[NOTES]).await;
    assert_eq!(refused(get(&bridge, NOTES, "?after=0"), &other).await.0, 200);
    // Asking for a forbidden stream costs the authority a query too, so it counts.
    let curious = self::token(&bridge, &desk.session("7", "s3"), &[NOTES]).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(refused(get(&bridge, "secret", "?after=0"), &curious).await.0);
    }
    assert_eq!(statuses, [403, 403, 403, 429]);
}
