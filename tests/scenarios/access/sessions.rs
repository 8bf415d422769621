//! What a session sees, and how it ends.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use spacetime_sync_bindings::read_events;
use spacetime_sync_issuer::keys::now;
use spacetime_sync_proto::{ChainHash, Event, Refusal, RefusalCode, StreamId, limit};
use spacetime_sync_stdb::admin::Credential;
use spacetime_sync_tests::lane::{A_DAY, wait};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::guarded::{Guarded, SWEEP_MS};
use crate::lane::hostile::visibility::Listener;
use crate::lane::hostile::{Module, Said, append_arguments, column, log, stream};

const SOON: Duration = Duration::from_secs(20);

pub(super) async fn append_all(module: &Module, id: &StreamId, count: u64) -> Vec<Event> {
    let events = log(id, count, 1);
    module.append(id, &events, &ChainHash::genesis(id)).await.done();
    events
}

/// Which of these streams a caller may read.
async fn readable<'a>(module: &Module, who: &Credential, ids: &[&'a StreamId]) -> Vec<&'a str> {
    let mut readable = Vec::new();
    for id in ids {
        let said = module.call(Some(who), "read_events", &json!([id.as_str(), 0])).await;
        match said.code() {
            None => readable.push(id.as_str()),
            Some(code) => assert_eq!(code, RefusalCode::ForbiddenStream, "{id}"),
        }
    }
    let rows = module
        .sql(Some(who), "SELECT stream_id FROM sync_stream")
        .await
        .unwrap();
    let mut seen: Vec<&str> = rows.iter().map(|row| row[0].as_str().unwrap()).collect();
    seen.sort_unstable();
    let mut expected = readable.clone();
    expected.sort_unstable();
    assert_eq!(seen, expected, "SQL and procedures show the same streams");
    readable
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_sees_what_its_token_names_now_and_later_and_nothing_else() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let ids = [
        "user:1:notes",
        "user:10:notes",
        "user:1",
        "runtime.run.1.events",
        "runtime.run.2.events",
        "org:a:x",
        "org:a:y",
        "runtime.worker.1.lifecycle",
    ]
    .map(stream);
    let [one, ten, bare, run_1, run_2, org_x, org_y, worker] = &ids;
    let all: Vec<&StreamId> = ids.iter().collect();
    for id in [one, ten, run_1, org_x, worker] {
        append_all(module, id, 2).await;
    }
    let patterns = guarded.session("1", "patterns", &["user:1:*", "runtime.run.*"]);
    let exact = guarded.session("2", "exact", &["user:1", "org:a:y", "runtime.worker.1.lifecycle"]);
    // A session without the scope of their kind does not see the runtime's streams.
    let mut claims = guarded
        .issuer
        .claims("3", "scopeless", &["runtime.run.*", "org:a:x", "runtime.run.1.events"]);
    claims["oa_sync_scopes"] = json!(["sync.subscribe"]);
    let scopeless = guarded.with(&claims);
    let mut claims = guarded.issuer.claims("4", "blind", &["org:a:x"]);
    claims["oa_sync_scopes"] = json!(["sync.checkpoint.write", "runtime.run_events"]);
    let blind = guarded.with(&claims);

    let held = [one, ten, run_1, org_x, worker];
    assert_eq!(readable(module, &patterns, &held).await, [one.as_str(), run_1.as_str()]);
    assert_eq!(readable(module, &exact, &held).await, [""; 0]);
    assert_eq!(readable(module, &scopeless, &held).await, [org_x.as_str()]);
    assert_eq!(readable(module, &blind, &held).await, [""; 0]);

    // These streams are created while the sessions exist.
    for id in [bare, run_2, org_y] {
        append_all(module, id, 2).await;
    }
    let page = module
        .call(Some(&patterns), "read_events", &json!([run_2.as_str(), 0]))
        .await;
    assert_eq!(
        page.done()[1],
        2,
        "the new stream is readable before the session is renewed"
    );
    assert_eq!(
        readable(module, &patterns, &all).await,
        [one.as_str(), run_1.as_str(), run_2.as_str()]
    );
    assert_eq!(readable(module, &exact, &all).await, [bare.as_str(), org_y.as_str()]);
    assert_eq!(readable(module, &scopeless, &all).await, [org_x.as_str()]);
    assert_eq!(readable(module, &blind, &all).await, [""; 0]);
    // No session gets the bridge's own rights.
    module
        .call(Some(&patterns), "read_heads", &json!([[one.as_str()]]))
        .await
        .refused(RefusalCode::Unauthorized);
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledging_needs_its_scope() {
    let guarded = Guarded::start().await;
    let (module, id) = (&guarded.module, stream("user:7:notes"));
    let events = append_all(module, &id, 2).await;
    let ack = json!([id.as_str(), 2, column(&events[1].chain_hash)]);
    module
        .call(Some(&guarded.session("7", "s1", &["user:7:*"])), "ack_checkpoint", &ack)
        .await
        .done();
    let mut claims = guarded.issuer.claims("7", "s2", &["user:7:*"]);
    claims["oa_sync_scopes"] = json!(["sync.subscribe"]);
    let said = module.call(Some(&guarded.with(&claims)), "ack_checkpoint", &ack).await;
    said.refused(RefusalCode::MissingScope);
}

/// A stream that tests append to while clients subscribe.
struct Stream<'a> {
    module: &'a Module,
    id: StreamId,
    events: Vec<Event>,
    appended: usize,
}

impl<'a> Stream<'a> {
    async fn start(module: &'a Module, name: &str) -> Self {
        let id = stream(name);
        let events = log(&id, 5_000, 1);
        let mut stream = Self {
            module,
            id,
            events,
            appended: 0,
        };
        stream.append().await;
        stream
    }

    async fn append(&mut self) -> u64 {
        let base = match self.appended {
            0 => ChainHash::genesis(&self.id),
            at => self.events[at - 1].chain_hash,
        };
        self.module
            .append(&self.id, &self.events[self.appended..=self.appended], &base)
            .await
            .done();
        self.appended += 1;
        self.appended as u64
    }

    async fn listener(&self, who: &Credential) -> Listener {
        let listener = Listener::connect(self.module, who).await;
        for table in ["sync_event", "sync_head", "sync_stream", "stream_grant"] {
            listener.subscribe(&format!("SELECT * FROM {table}")).await.unwrap();
        }
        listener
    }

    /// Appends until a listener receives nothing more, and returns when that was.
    async fn until_deaf(&mut self, listener: &Listener, limit: Duration) -> Instant {
        let deadline = Instant::now() + limit;
        loop {
            let seq = self.append().await;
            listener.fence().await;
            let heard = listener.last_seq();
            // When the grant goes, the client's rows are removed, and nothing more arrives.
            if listener.guarded() == 0 {
                return Instant::now();
            }
            assert!(heard >= seq, "a live session receives every event");
            assert!(Instant::now() < deadline, "the listener still receives events");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_session_receives_nothing_more_on_its_open_connection() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let mut stream = Stream::start(module, "user:7:notes").await;
    let read = json!([stream.id.as_str(), 0]);
    let lasting = guarded.session("7", "lasting", &["user:7:*"]);
    let brief = guarded.short(now() - 10, now() + 300);
    let (brief, long) = (stream.listener(&brief).await, stream.listener(&lasting).await);
    assert_eq!([brief.last_seq(), long.last_seq()], [1, 1]);

    let ends_in = Duration::from_secs(4);
    let began = Instant::now();
    let short = guarded.short(now(), now() + ends_in.as_secs());
    module.call(Some(&short), "read_events", &read).await.done();
    let deaf = stream.until_deaf(&brief, SOON).await;
    let late = deaf.duration_since(began).saturating_sub(ends_in);
    eprintln!("the module ended the session {late:?} after its expiry (sweeps run every {SWEEP_MS} ms)");
    assert!(
        late < Duration::from_millis(u64::from(SWEEP_MS)) + Duration::from_secs(2),
        "{late:?}"
    );
    for _ in 0..20 {
        let seq = stream.append().await;
        brief.fence().await;
        assert_eq!(brief.guarded(), 0);
        wait(SOON, "the other session of the same user receives the event", || {
            long.last_seq() == seq
        })
        .await;
    }
    module
        .call(Some(&short), "read_events", &read)
        .await
        .refused(RefusalCode::TokenExpired);
    module.call(Some(&lasting), "read_events", &read).await.done();

    // A new token of the same session resumes it, even on the existing connection.
    let fresh = guarded.session("7", "short", &["user:7:*"]);
    module.call(Some(&fresh), "read_events", &read).await.done();
    let seq = stream.append().await;
    wait(SOON, "the session receives events again", || brief.last_seq() == seq).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_fail_as_soon_as_the_session_ends_before_any_sweep() {
    let guarded = Guarded::sweeping_every(60_000).await;
    let module = &guarded.module;
    let id = stream("user:7:notes");
    append_all(module, &id, 2).await;
    let listener = Listener::connect(module, &guarded.short(now() - 10, now() + 300)).await;
    let ends = now() + 4;
    let read = json!([id.as_str(), 0]);
    let short = guarded.short(now(), ends);
    module.call(Some(&short), "read_events", &read).await.done();
    let deadline = Instant::now() + SOON;
    loop {
        let (answer, answered) = oneshot::channel();
        let asked_at = now();
        listener
            .connection
            .procedures
            .read_events_then(id.to_string(), 0, move |_, page| {
                // The receiver is gone only if the test has failed.
                let _ = answer.send(page);
            });
        match answered.await.unwrap().unwrap() {
            Ok(page) => assert!(
                page.head_seq == 2 && asked_at <= ends,
                "it still reads {} s after its expiry",
                asked_at - ends
            ),
            Err(refused) => {
                assert_eq!(Refusal::from_wire(&refused).unwrap().code, RefusalCode::ForbiddenStream);
                assert!(now() >= ends, "it was refused before its expiry");
                break;
            }
        }
        assert!(Instant::now() < deadline, "the session still reads");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let sessions = module
        .sql(Some(&module.owner), "SELECT session_id FROM sync_session")
        .await
        .unwrap();
    assert_eq!(sessions.len(), 1, "no sweep has run: {sessions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_session_receives_nothing_more_and_cannot_return() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let mut stream = Stream::start(module, "user:7:notes").await;
    let [revoked, other] = ["s1", "s2"].map(|session| guarded.session("7", session, &["user:7:*"]));
    let (gone, stays) = (stream.listener(&revoked).await, stream.listener(&other).await);
    let grants = guarded.grants().await;

    for _ in 0..2 {
        module
            .call(Some(&module.owner), "revoke_session", &json!(["s1"]))
            .await
            .done();
        gone.fence().await;
        assert_eq!(gone.guarded(), 0, "the client's rows are removed");
        let seq = stream.append().await;
        wait(SOON, "the other session receives the event", || stays.last_seq() == seq).await;
        gone.fence().await;
        assert_eq!(gone.guarded(), 0);
    }
    assert_eq!(guarded.grants().await, grants - 2);

    let read = json!([stream.id.as_str(), 0]);
    let renewed = guarded.session("7", "s1", &["user:7:*"]);
    for who in [&revoked, &renewed] {
        module
            .call(Some(who), "read_events", &read)
            .await
            .refused(RefusalCode::TokenRevoked);
        module
            .call(Some(who), "upsert_presence", &json!(["s1", "n", "online", "", "", []]))
            .await
            .refused(RefusalCode::TokenRevoked);
    }
    module.call(Some(&other), "read_events", &read).await.done();
    // A session can be revoked before it is ever seen.
    module
        .call(Some(&module.owner), "revoke_session", &json!(["s3"]))
        .await
        .done();
    let early = guarded.session("7", "s3", &["user:7:*"]);
    module
        .call(Some(&early), "read_events", &read)
        .await
        .refused(RefusalCode::TokenRevoked);
    for wrong in ["", "a/b", "a b"] {
        module
            .call(Some(&module.owner), "revoke_session", &json!([wrong]))
            .await
            .refused(RefusalCode::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_token_determines_the_sessions_rights() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let ids = ["user:7:a", "user:7:b"].map(stream);
    let all: Vec<&StreamId> = ids.iter().collect();
    for id in &ids {
        append_all(module, id, 1).await;
    }
    let token = |signed: u64, streams: &[&str]| {
        let mut claims = guarded.issuer.claims("7", "s1", streams);
        claims["iat"] = json!(now() - 100 + signed);
        claims["nbf"] = json!(now() - 100);
        guarded.with(&claims)
    };
    let (old, newer, newest) = (
        token(1, &["user:7:*"]),
        token(2, &["user:7:a"]),
        token(3, &["user:7:b", "user:7:c"]),
    );
    assert_eq!(readable(module, &old, &all).await, ["user:7:a", "user:7:b"]);
    assert_eq!(readable(module, &newer, &all).await, ["user:7:a"]);
    assert_eq!(
        readable(module, &old, &all).await,
        ["user:7:a"],
        "an older token restores no grant"
    );
    assert_eq!(readable(module, &newest, &all).await, ["user:7:b"]);
    assert_eq!(readable(module, &newer, &all).await, ["user:7:b"]);
    // Grants given by hand stay.
    let identity = spacetimedb_sdk::Identity::from_claims(&guarded.issuer.url, "user:7/session:s1").to_hex();
    module.as_owner().grant(&identity, &ids[0], A_DAY).await.unwrap();
    assert_eq!(
        readable(module, &token(4, &["user:7:b"]), &all).await,
        ["user:7:a", "user:7:b"]
    );
    module
        .call(Some(&module.owner), "revoke_session", &json!(["s1"]))
        .await
        .done();
    let grants = module
        .sql(Some(&module.owner), "SELECT * FROM stream_grant")
        .await
        .unwrap();
    assert_eq!(grants.len(), 1, "{grants:?}");
}

/// Creates streams of one event each, many at a time.
async fn make_streams(module: &Module, numbers: std::ops::Range<usize>) {
    let client = reqwest::Client::new();
    let url = format!(
        "{}/v1/database/{}/call/append_sync_events",
        module.server.uri(),
        module.name
    );
    let mut at_once = JoinSet::new();
    for number in numbers {
        if at_once.len() == 32 {
            at_once.join_next().await.unwrap().unwrap();
        }
        let id = stream(&format!("user:7:{number}"));
        let arguments = append_arguments(&id, &log(&id, 1, 1), &ChainHash::genesis(&id));
        let request = client.post(&url).bearer_auth(module.bridge.token.expose());
        let request = request.json(&arguments).send();
        at_once.spawn(async move { assert_eq!(request.await.unwrap().status(), 200) });
    }
    at_once.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_patterns_cover_too_many_streams_sees_the_newest_and_those_it_names() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let start = now() - 100;
    let token = |session: &str, signed: u64, streams: &[&str]| {
        let mut claims = guarded.issuer.claims("7", session, streams);
        claims["iat"] = json!(start + signed);
        guarded.with(&claims)
    };
    let reads = async |who: &Credential, id: &str| {
        let said = module.call(Some(who), "read_events", &json!([id, 0])).await;
        said.code()
    };
    make_streams(module, 0..1).await;
    make_streams(module, 1..limit::SESSION_GRANTS).await;
    let early = token("early", 1, &["user:7:*"]);
    let naming = token("naming", 1, &["user:7:*", "user:7:0"]);
    make_streams(module, limit::SESSION_GRANTS..limit::SESSION_GRANTS + 1).await;

    // The session is admitted. The stream of the user's own key needs one more grant.
    let of_patterns = limit::PATTERN_GRANTS + 1;
    assert_eq!(reads(&early, "user:7:10000").await, None);
    assert_eq!(guarded.grants().await, of_patterns);
    assert_eq!(reads(&early, "user:7:0").await, Some(RefusalCode::TooManyGrants));
    assert_eq!(reads(&early, "user:7:none").await, Some(RefusalCode::ForbiddenStream));
    assert_eq!(reads(&early, "user:8:0").await, Some(RefusalCode::ForbiddenStream));
    assert_eq!(reads(&naming, "user:7:0").await, None);
    module
        .call(Some(&module.owner), "revoke_session", &json!(["naming"]))
        .await
        .done();

    // New streams are seen at once, up to the bound. Streams beyond it are seen with the next token.
    let last = limit::SESSION_GRANTS + 1 + limit::SESSION_GRANTS - of_patterns;
    make_streams(module, limit::SESSION_GRANTS + 1..last).await;
    make_streams(module, last..last + 1).await;
    assert_eq!(guarded.grants().await, limit::SESSION_GRANTS);
    let older = token("early", 0, &["user:7:*"]);
    let newer = token("early", 2, &["user:7:*"]);
    let [granted, past] = [last - 1, last].map(|number| format!("user:7:{number}"));
    assert_eq!(reads(&older, &granted).await, None);
    assert_eq!(reads(&older, &past).await, Some(RefusalCode::TooManyGrants));
    assert_eq!(reads(&newer, &past).await, None);
    assert_eq!(guarded.grants().await, of_patterns);
    // The session no longer sees what a newer token does not cover.
    let fewer = token("early", 3, &["user:7:0", "user:8:*"]);
    assert_eq!(reads(&fewer, &past).await, Some(RefusalCode::ForbiddenStream));
    assert_eq!(reads(&fewer, "user:7:0").await, None);
    assert_eq!(guarded.grants().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_checkpoint_is_deleted_with_its_grant() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let ids = ["user:7:a", "user:7:b", "user:7:c"].map(stream);
    let token = |signed: u64, streams: &[&str]| {
        let mut claims = guarded.issuer.claims("7", "s1", streams);
        claims["iat"] = json!(now() - 100 + signed);
        guarded.with(&claims)
    };
    let first = token(1, &["user:7:*"]);
    for id in &ids {
        let events = append_all(module, id, 1).await;
        let ack = json!([id.as_str(), 1, column(&events[0].chain_hash)]);
        module.call(Some(&first), "ack_checkpoint", &ack).await.done();
    }
    let acknowledged = async || {
        let rows = module.sql(Some(&module.owner), "SELECT * FROM sync_checkpoint").await;
        rows.unwrap().len()
    };
    let reads = async |who: &Credential| {
        let page = json!([ids[0].as_str(), 0]);
        module.call(Some(who), "read_events", &page).await.done();
    };
    reads(&token(30, &["user:7:*"])).await;
    assert_eq!(
        acknowledged().await,
        3,
        "a newer token with the same streams changes nothing"
    );
    reads(&token(60, &["user:7:a", "user:7:b"])).await;
    assert_eq!(acknowledged().await, 2);
    // A grant given by hand outlives the session, and so does its acknowledged checkpoint.
    let identity = spacetimedb_sdk::Identity::from_claims(&guarded.issuer.url, "user:7/session:s1").to_hex();
    module.as_owner().grant(&identity, &ids[0], A_DAY).await.unwrap();
    module
        .call(Some(&module.owner), "revoke_session", &json!(["s1"]))
        .await
        .done();
    assert_eq!(acknowledged().await, 1);
    module.as_owner().revoke(&identity, &ids[0]).await.unwrap();
    assert_eq!(acknowledged().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_belongs_to_one_user_and_one_device() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let read = json!(["user:7:a", 0]);
    let code = async |claims: &Value| {
        module
            .call(Some(&guarded.with(claims)), "read_events", &read)
            .await
            .code()
    };
    let first = guarded.issuer.claims("7", "s1", &["user:7:*"]);
    assert_eq!(
        code(&first).await,
        Some(RefusalCode::ForbiddenStream),
        "admitted; the stream does not exist"
    );
    let mut second = guarded.issuer.claims("7", "s1", &["user:7:*"]);
    second["oa_device_id"] = json!("another");
    assert_eq!(code(&second).await, Some(RefusalCode::SessionBound));
    let thief = guarded.issuer.claims("8", "s1", &["user:7:*"]);
    assert_eq!(code(&thief).await, Some(RefusalCode::SessionBound));
    assert_eq!(code(&first).await, Some(RefusalCode::ForbiddenStream));
}

#[tokio::test(flavor = "multi_thread")]
async fn session_tables_are_visible_to_the_owner_only() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let who = guarded.session("7", "s1", &["user:7:*"]);
    module
        .call(Some(&module.owner), "revoke_session", &json!(["s2"]))
        .await
        .done();
    module
        .call(Some(&who), "upsert_presence", &json!(["s1", "n", "online", "", "", []]))
        .await
        .done();
    let by_hand = module.client(&[&stream("user:8:notes")]).await;
    for table in [
        "sync_session",
        "grant_pattern",
        "grant_count",
        "revoked_session",
        "access_sweep",
        "sync_trust",
    ] {
        let statement = format!("SELECT * FROM {table}");
        assert!(
            !module.sql(Some(&module.owner), &statement).await.unwrap().is_empty(),
            "{table}"
        );
        for caller in [&who, &module.bridge, &by_hand] {
            let refused = module.sql(Some(caller), &statement).await.unwrap_err();
            assert!(refused.contains("no such table"), "{table}: {refused}");
        }
    }
    // What every admitted caller can read names no user, session or stream.
    let grants = json!(module.sql(Some(&by_hand), "SELECT * FROM stream_grant").await.unwrap()).to_string();
    assert!(grants.len() > 100, "{grants}");
    for name in ["user", "notes", "s1"] {
        assert!(!grants.contains(name), "{grants}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_database_can_run_sweeps() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let who = guarded.session("7", "s1", &["user:7:*"]);
    let due = json!([{ "sweep_id": 1, "scheduled_at": { "Interval": { "__time_duration_micros__": 1 } } }]);
    for sweep in ["sweep_access", "sweep_log"] {
        for caller in [&who, &module.owner, &module.bridge] {
            let said = module.call(Some(caller), sweep, &due).await;
            // Newer hosts do not even expose it.
            let refused = said.code() == Some(RefusalCode::Unauthorized) || matches!(said, Said::Failed(404, _));
            assert!(refused, "{sweep}: {said:?}");
        }
    }
}
