//! The authority's functions and the bridge's side of them, on a real Postgres.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use spacetime_sync_bridge::authority::{Advanced, Authority, AuthorityError, NewEvent};
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{ChainHash, Event, IdempotencyKey, Kind, Seq, StreamId, limit};
use spacetime_sync_tests::postgres::{Cluster, Database};
use spacetime_sync_tests::proxy::{Direction, Proxy};
use sqlx::postgres::PgDatabaseError;
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(20);
const ALL: usize = usize::MAX;

async fn setup() -> (Database, Authority) {
    let database = Cluster::shared().await.create_database().await.unwrap();
    let authority = Authority::connect(database.url(), 8).await.unwrap();
    (database, authority)
}

async fn client(database: &Database) -> PgConnection {
    PgConnection::connect(database.url()).await.unwrap()
}

fn stream(id: &str) -> StreamId {
    StreamId::new(id).unwrap()
}

fn seq(seq: u64) -> Seq {
    Seq::new(seq).unwrap()
}

fn event(key: &str, kind: &str, payload: &[u8]) -> NewEvent {
    NewEvent {
        idempotency_key: IdempotencyKey::new(key).unwrap(),
        kind: Kind::new(kind).unwrap(),
        payload: Bytes::copy_from_slice(payload),
    }
}

fn numbered(from: usize, to: usize) -> Vec<NewEvent> {
    (from..=to)
        .map(|n| event(&format!("key-{n}"), "test.event", format!("payload {n}").as_bytes()))
        .collect()
}

/// Every event of a stream, after a check that it is one chain from the beginning, as the contract computes it.
async fn verified_log(authority: &Authority, stream_id: &StreamId) -> Vec<Event> {
    let log = authority
        .read_events(stream_id, Seq::ZERO, 1_000_000, ALL)
        .await
        .unwrap();
    let mut chain = ChainHash::genesis(stream_id);
    let mut at = Seq::ZERO;
    for event in &log {
        at = at.next();
        assert_eq!(event.seq, at);
        assert!(event.payload_matches(), "payload of {at}");
        assert!(event.follows(&chain), "chain at {at}");
        chain = event.chain_hash;
    }
    assert_eq!(authority.chain_at(stream_id, at).await.unwrap(), Some(chain));
    assert_eq!(authority.chain_at(stream_id, at.next()).await.unwrap(), None);
    log
}

/// The SQLSTATE with which a statement fails. The message and the hint must say something.
async fn refusal(connection: &mut PgConnection, statement: &str) -> String {
    let error = connection.execute(statement).await.expect_err(statement);
    let error = error.as_database_error().unwrap().downcast_ref::<PgDatabaseError>();
    if error.code().starts_with("SY") {
        assert!(error.message().len() > 20, "{}", error.message());
        assert!(error.hint().is_some(), "{}", error.message());
    }
    error.code().to_owned()
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, wait)
        .await
        .unwrap_or_else(|_| panic!("never seen: {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writers_leave_no_gap_and_rollbacks_leave_no_trace() {
    let (database, authority) = setup().await;
    let id = stream("runtime.run.1.events");
    let done = Arc::new(AtomicBool::new(false));

    // What a reader sees at any time is all up to the head, and the chain holds.
    let reader = tokio::spawn({
        let (authority, id, done) = (authority.clone(), id.clone(), done.clone());
        async move {
            let mut chain = ChainHash::genesis(&id);
            let mut at = Seq::ZERO;
            loop {
                let last = done.load(Ordering::Acquire);
                let head = authority
                    .position(&id)
                    .await
                    .unwrap()
                    .map_or(Seq::ZERO, |position| position.head_seq);
                let page = authority.read_events(&id, at, 1_000, ALL).await.unwrap();
                for event in &page {
                    assert_eq!(event.seq, at.next());
                    assert!(event.follows(&chain));
                    (at, chain) = (event.seq, event.chain_hash);
                }
                assert!(
                    at >= head || page.len() == 1_000,
                    "head {head} is visible, the log ends at {at}"
                );
                if last && page.is_empty() {
                    return at;
                }
            }
        }
    });

    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let url = database.url().to_owned();
            tokio::spawn(async move {
                let mut random = StdRng::seed_from_u64(writer);
                let mut connection = PgConnection::connect(&url).await.unwrap();
                let mut committed = Vec::new();
                for n in 0..40 {
                    let keys: Vec<_> = (0..random.random_range(1..5))
                        .map(|m| format!("{writer}/{n}/{m}"))
                        .collect();
                    let mut transaction = connection.begin().await.unwrap();
                    if random.random_bool(0.5) {
                        for key in &keys {
                            sqlx::query("select runtime.sync_append('runtime.run.1.events', $1, 'k', 'p')")
                                .bind(key)
                                .execute(&mut *transaction)
                                .await
                                .unwrap();
                        }
                    } else {
                        let count = i32::try_from(keys.len()).unwrap();
                        sqlx::query(
                            "select runtime.sync_append_batch('runtime.run.1.events', $1,
                               array_fill('k'::text, array[$2]), array_fill('p'::bytea, array[$2]))",
                        )
                        .bind(&keys)
                        .bind(count)
                        .execute(&mut *transaction)
                        .await
                        .unwrap();
                    }
                    if random.random_bool(0.25) {
                        transaction.rollback().await.unwrap();
                    } else {
                        transaction.commit().await.unwrap();
                        committed.extend(keys);
                    }
                }
                committed
            })
        })
        .collect();
    let mut committed = HashSet::new();
    for writer in writers {
        committed.extend(writer.await.unwrap());
    }
    done.store(true, Ordering::Release);
    let read = timeout(SOON, reader).await.unwrap().unwrap();

    let log = verified_log(&authority, &id).await;
    let keys: HashSet<_> = log
        .iter()
        .map(|event| event.idempotency_key.as_str().to_owned())
        .collect();
    assert_eq!(keys, committed);
    assert_eq!(log.len(), committed.len());
    assert_eq!(read.get() as usize, log.len());
    assert!(
        log.windows(2)
            .all(|pair| pair[0].committed_at_us <= pair[1].committed_at_us)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_in_sql_is_the_chain_of_the_contract() {
    let (_database, authority) = setup().await;
    let mut random = StdRng::seed_from_u64(7);
    let alphabet: Vec<char> = "aZ09 .:/%'\"\\$ü€𝄞\u{a0}\u{200b}漢".chars().collect();
    let text = |most: usize, random: &mut StdRng| -> String {
        (0..random.random_range(1..=most))
            .map(|_| alphabet[random.random_range(0..alphabet.len())])
            .collect()
    };
    for id in ["a", "runtime.topic.a%3Ab~+=@/_-", &"x".repeat(limit::STREAM_ID_BYTES)] {
        let id = stream(id);
        let mut sent = Vec::new();
        for round in 0..12 {
            let count = if round % 2 == 0 { 1 } else { random.random_range(1..60) };
            let events: Vec<_> = (0..count)
                .map(|n| {
                    let key = format!("{}{round}-{n}", text(100, &mut random));
                    let mut payload = vec![0; random.random_range(1..3_000)];
                    random.fill(&mut payload[..]);
                    event(&key, ["a", "run.step", "a:b/c@d+e=f~g%h_-."][n % 3], &payload)
                })
                .collect();
            let seqs = match &events[..] {
                [one] => vec![authority.append(&id, one).await.unwrap()],
                all => authority.append_batch(&id, all).await.unwrap(),
            };
            let expected: Vec<_> = (sent.len() + 1..=sent.len() + count).map(|n| seq(n as u64)).collect();
            assert_eq!(seqs, expected);
            sent.extend(events);
        }
        let log = verified_log(&authority, &id).await;
        let read: Vec<_> = log
            .into_iter()
            .map(|event| NewEvent {
                idempotency_key: event.idempotency_key,
                kind: event.kind,
                payload: event.payload,
            })
            .collect();
        assert_eq!(read, sent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_event_of_the_contract_is_accepted() {
    let (_database, authority) = setup().await;
    let id = stream(&"s".repeat(limit::STREAM_ID_BYTES));
    let largest = NewEvent {
        idempotency_key: IdempotencyKey::new(&"ü".repeat(limit::IDEMPOTENCY_KEY_BYTES / 2)).unwrap(),
        kind: Kind::new(&"k".repeat(limit::KIND_BYTES)).unwrap(),
        payload: vec![7; limit::PAYLOAD_BYTES].into(),
    };
    assert_eq!(authority.append(&id, &largest).await.unwrap(), seq(1));
    assert_eq!(authority.append_batch(&id, &[largest]).await.unwrap(), [seq(1)]);
    assert_eq!(verified_log(&authority, &id).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_returns_the_first_seq_and_writes_nothing() {
    let (_database, authority) = setup().await;
    let id = stream("s");
    let events = numbered(1, 5);
    assert_eq!(authority.append(&id, &events[0]).await.unwrap(), seq(1));
    assert_eq!(authority.append(&id, &events[0]).await.unwrap(), seq(1));
    assert_eq!(authority.append(&id, &events[1]).await.unwrap(), seq(2));
    assert_eq!(authority.append(&id, &events[0]).await.unwrap(), seq(1));
    let expected: Vec<_> = (1..=5).map(seq).collect();
    assert_eq!(authority.append_batch(&id, &events).await.unwrap(), expected);
    assert_eq!(authority.append_batch(&id, &events).await.unwrap(), expected);

    // Held ones, fresh ones and repeats inside the call, in any order.
    let more = numbered(6, 7);
    let mixed = [&more[1], &events[2], &more[0], &more[1], &events[2], &more[0]].map(Clone::clone);
    assert_eq!(
        authority.append_batch(&id, &mixed).await.unwrap(),
        [6, 3, 7, 6, 3, 7].map(seq)
    );
    assert_eq!(authority.append(&id, &more[0]).await.unwrap(), seq(7));
    assert_eq!(verified_log(&authority, &id).await.len(), 7);
    // Another stream has keys of its own.
    assert_eq!(authority.append(&stream("t"), &events[3]).await.unwrap(), seq(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_inside_the_same_transaction_is_absorbed() {
    let (database, authority) = setup().await;
    let mut connection = client(&database).await;
    let mut transaction = connection.begin().await.unwrap();
    for expected in [1_i64, 1, 2] {
        let key = if expected == 2 { "b" } else { "a" };
        let found: i64 = sqlx::query_scalar("select runtime.sync_append('s', $1, 'k', 'p')")
            .bind(key)
            .fetch_one(&mut *transaction)
            .await
            .unwrap();
        assert_eq!(found, expected);
    }
    transaction.commit().await.unwrap();
    assert_eq!(verified_log(&authority, &stream("s")).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_used_for_another_event_is_refused_and_nothing_is_written() {
    let (_database, authority) = setup().await;
    let id = stream("s");
    let held = event("key", "kind", b"payload");
    authority.append(&id, &held).await.unwrap();
    let before = authority.position(&id).await.unwrap();
    let fresh = event("fresh", "kind", b"payload");
    let other_payload = event("key", "kind", b"other");
    let other_kind = event("key", "other", b"payload");
    for other in [&other_payload, &other_kind] {
        let single = authority.append(&id, other).await.unwrap_err();
        let bulk = authority
            .append_batch(&id, &[fresh.clone(), other.clone()])
            .await
            .unwrap_err();
        for error in [single, bulk] {
            assert_eq!(error.refusal(), Some("SY001"), "{error}");
            assert_eq!(error.class(), RefusalClass::Reject);
        }
    }
    let inside = [event("new", "kind", b"1"), fresh, event("new", "kind", b"2")];
    let error = authority.append_batch(&id, &inside).await.unwrap_err();
    assert_eq!(error.refusal(), Some("SY001"), "{error}");
    assert_eq!(authority.position(&id).await.unwrap(), before);
    assert_eq!(verified_log(&authority, &id).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_contract_does_not_allow_is_refused_with_its_own_code() {
    let (database, authority) = setup().await;
    let mut connection = client(&database).await;
    for (code, stream_id, key, kind, payload) in [
        ("SY002", "''", "'k'", "'k'", "'p'"),
        ("SY002", "null", "'k'", "'k'", "'p'"),
        ("SY002", "repeat('s', 256)", "'k'", "'k'", "'p'"),
        ("SY002", "'a b'", "'k'", "'k'", "'p'"),
        ("SY002", "E'a\\n'", "'k'", "'k'", "'p'"),
        ("SY002", "'ü'", "'k'", "'k'", "'p'"),
        ("SY002", "'a^'", "'k'", "'k'", "'p'"),
        ("SY003", "'s'", "''", "'k'", "'p'"),
        ("SY003", "'s'", "null", "'k'", "'p'"),
        ("SY003", "'s'", "repeat('ü', 257)", "'k'", "'p'"),
        ("SY003", "'s'", "E'a\\tb'", "'k'", "'p'"),
        ("SY003", "'s'", "E'a\\u0085b'", "'k'", "'p'"),
        ("SY003", "'s'", "E'\\x7f'", "'k'", "'p'"),
        ("SY004", "'s'", "'k'", "''", "'p'"),
        ("SY004", "'s'", "'k'", "null", "'p'"),
        ("SY004", "'s'", "'k'", "repeat('k', 129)", "'p'"),
        ("SY004", "'s'", "'k'", "'k k'", "'p'"),
        ("SY004", "'s'", "'k'", "E'k\\n'", "'p'"),
        ("SY005", "'s'", "'k'", "'k'", "''"),
        ("SY005", "'s'", "'k'", "'k'", "null"),
        ("SY005", "'s'", "'k'", "'k'", "convert_to(repeat('p', 262145), 'UTF8')"),
    ] {
        let single = format!("select runtime.sync_append({stream_id}, {key}, {kind}, {payload})");
        let bulk = format!(
            "select runtime.sync_append_batch({stream_id}, array['fine', {key}]::text[], \
             array['fine', {kind}]::text[], array['fine', {payload}]::bytea[])"
        );
        assert_eq!(refusal(&mut connection, &single).await, code, "{single}");
        assert_eq!(refusal(&mut connection, &bulk).await, code, "{bulk}");
    }
    for (keys, kinds, payloads) in [
        ("'{}'", "'{}'", "'{}'"),
        ("null", "'{k}'", "'{p}'"),
        ("'{a,b}'", "'{k}'", "'{p,p}'"),
        ("'{a}'", "'{k}'", "'{p,p}'"),
        ("'{a}'", "'{k}'", "null"),
        ("'{{a},{b}}'", "'{k,k}'", "'{p,p}'"),
    ] {
        let bulk = format!("select runtime.sync_append_batch('s', {keys}, {kinds}, {payloads})");
        assert_eq!(refusal(&mut connection, &bulk).await, "SY006", "{bulk}");
    }
    let too_many = "select runtime.sync_append_batch('s', array_agg(i::text), array_agg('k'::text), \
                    array_agg('p'::bytea)) from generate_series(1, 10001) i";
    assert_eq!(refusal(&mut connection, too_many).await, "SY006");
    assert_eq!(authority.streams_after(None, 10).await.unwrap(), []);

    authority
        .append_batch(&stream("s"), &numbered(1, 10_000))
        .await
        .unwrap();
    assert_eq!(verified_log(&authority, &stream("s")).await.len(), 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_never_changed_or_removed() {
    let (database, authority) = setup().await;
    authority.append(&stream("s"), &event("k", "k", b"p")).await.unwrap();
    let mut connection = client(&database).await;
    for statement in [
        "update runtime.sync_stream_events set payload = 'q'",
        "delete from runtime.sync_stream_events",
        "truncate runtime.sync_stream_events",
    ] {
        assert_eq!(refusal(&mut connection, statement).await, "SY007", "{statement}");
    }
    assert_eq!(verified_log(&authority, &stream("s")).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_dirty_streams_are_paged_in_order() {
    let (_database, authority) = setup().await;
    let ids: Vec<_> = ["B", "a", "a.1", "a:1", "b"].map(stream).into();
    for id in &ids {
        authority.append(id, &event("k", "k", b"p")).await.unwrap();
    }
    authority.advance_published(&[(ids[1].clone(), seq(1))]).await.unwrap();
    let mut all = Vec::new();
    while let Some(next) = authority.streams_after(all.last(), 2).await.unwrap().into_iter().next() {
        all.push(next.stream_id);
    }
    assert_eq!(all, ids);
    let dirty = authority.dirty_streams(None, 2).await.unwrap();
    let found: Vec<_> = dirty.iter().map(|position| position.stream_id.as_str()).collect();
    assert_eq!(found, ["B", "a.1"]);
    assert_eq!((dirty[0].head_seq, dirty[0].published_seq), (seq(1), Seq::ZERO));
    let rest = authority.dirty_streams(Some(&dirty[1].stream_id), 9).await.unwrap();
    let found: Vec<_> = rest.iter().map(|position| position.stream_id.as_str()).collect();
    assert_eq!(found, ["a:1", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn published_moves_forward_only_and_never_above_the_head() {
    let (_database, authority) = setup().await;
    let id = stream("s");
    authority.append_batch(&id, &numbered(1, 5)).await.unwrap();
    let published = async || authority.position(&id).await.unwrap().unwrap().published_seq;
    let to = |to| [(id.clone(), seq(to))];

    assert_eq!(authority.advance_published(&to(3)).await.unwrap(), Advanced::default());
    assert_eq!(published().await, seq(3));
    assert_eq!(authority.advance_published(&to(2)).await.unwrap(), Advanced::default());
    assert_eq!(published().await, seq(3));

    // One that is wrong does not hold the others up.
    let (other, missing) = (stream("other"), stream("missing"));
    authority.append(&other, &event("k", "k", b"p")).await.unwrap();
    let asked = [(id.clone(), seq(6)), (other.clone(), seq(1)), (missing.clone(), seq(1))];
    let mut advanced = authority.advance_published(&asked).await.unwrap();
    advanced.above_head.sort();
    assert_eq!(advanced.above_head, [missing, id.clone()]);
    assert_eq!(advanced.locked, []);
    assert_eq!(published().await, seq(3));
    assert_eq!(authority.position(&other).await.unwrap().unwrap().published_seq, seq(1));

    // Named twice in one call: the further one counts.
    let twice = [(id.clone(), seq(5)), (id.clone(), seq(4))];
    assert_eq!(authority.advance_published(&twice).await.unwrap(), Advanced::default());
    assert_eq!(published().await, seq(5));
    assert_eq!(authority.dirty_streams(None, 9).await.unwrap(), []);

    authority.rewind_published(&id, seq(2)).await.unwrap();
    assert_eq!(published().await, seq(2));
    authority.rewind_published(&id, seq(4)).await.unwrap();
    assert_eq!(published().await, seq(2));
    assert_eq!(authority.dirty_streams(None, 9).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_holds_a_stream_never_holds_the_bridge_up() {
    let (database, authority) = setup().await;
    let (held, free) = (stream("held"), stream("free"));
    for id in [&held, &free] {
        authority.append(id, &event("k", "k", b"p")).await.unwrap();
    }
    let mut connection = client(&database).await;
    let mut transaction = connection.begin().await.unwrap();
    transaction
        .execute("select runtime.sync_append('held', 'k2', 'k', 'p')")
        .await
        .unwrap();

    let asked = [(held.clone(), seq(1)), (free.clone(), seq(1))];
    let advanced = timeout(SOON, authority.advance_published(&asked))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(advanced.locked, std::slice::from_ref(&held));
    assert_eq!(advanced.above_head, []);
    assert_eq!(authority.position(&free).await.unwrap().unwrap().published_seq, seq(1));
    assert_eq!(
        authority.position(&held).await.unwrap().unwrap().published_seq,
        Seq::ZERO
    );
    transaction.commit().await.unwrap();
    assert_eq!(authority.advance_published(&asked).await.unwrap(), Advanced::default());
    let position = authority.position(&held).await.unwrap().unwrap();
    assert_eq!((position.published_seq, position.head_seq), (seq(1), seq(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_sleeping_bridge_is_woken_and_only_by_a_clean_stream() {
    let (database, authority) = setup().await;
    let id = stream("s");
    let mut raw = sqlx::postgres::PgListener::connect(database.url()).await.unwrap();
    raw.listen_all(["sync_wake", "marker"]).await.unwrap();
    let mut connection = client(&database).await;
    // Notifications arrive in the order of their commits: what came before the marker is all there was.
    let mut woken = async || {
        connection.execute("notify marker").await.unwrap();
        let mut count = 0;
        loop {
            match timeout(SOON, raw.recv()).await.unwrap().unwrap().channel() {
                "marker" => return count,
                _ => count += 1,
            }
        }
    };
    let events = numbered(1, 9);
    authority.append(&id, &events[0]).await.unwrap();
    assert_eq!(woken().await, 0, "awake");
    authority.set_sleeping(true).await.unwrap();
    authority.append(&id, &events[1]).await.unwrap();
    authority.append_batch(&id, &events[2..4]).await.unwrap();
    assert_eq!(woken().await, 0, "dirty already");
    authority.advance_published(&[(id.clone(), seq(4))]).await.unwrap();
    authority.append(&id, &events[0]).await.unwrap();
    authority.append_batch(&id, &events[0..2]).await.unwrap();
    assert_eq!(woken().await, 0, "repeats");
    authority.append(&id, &events[4]).await.unwrap();
    assert_eq!(woken().await, 1, "clean to dirty");
    authority.advance_published(&[(id.clone(), seq(5))]).await.unwrap();
    authority.append_batch(&id, &events[5..7]).await.unwrap();
    assert_eq!(woken().await, 1, "clean to dirty, in bulk");
    authority.append(&stream("new"), &events[0]).await.unwrap();
    assert_eq!(woken().await, 1, "a new stream");
    authority.set_sleeping(false).await.unwrap();
    authority.advance_published(&[(id.clone(), seq(7))]).await.unwrap();
    authority.append(&id, &events[7]).await.unwrap();
    assert_eq!(woken().await, 0, "awake again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_hears_the_wake_up_and_survives_its_connection() {
    let (database, authority) = setup().await;
    let mut listener = authority.listen().await.unwrap();
    authority.set_sleeping(true).await.unwrap();
    authority.append(&stream("s"), &event("k", "k", b"p")).await.unwrap();
    timeout(SOON, listener.woken()).await.unwrap().unwrap();

    let mut connection = client(&database).await;
    let end_listeners = "select pg_terminate_backend(pid) from pg_stat_activity \
                         where datname = current_database() and query ilike 'listen%'";
    connection.execute(end_listeners).await.unwrap();
    eventually("a wake-up after the loss of the connection", async || {
        timeout(SOON, listener.woken()).await.unwrap().is_ok()
    })
    .await;
    // Whether or not that was the loss itself, from here on the next append of a clean stream is heard.
    let mut count = 0;
    eventually("a wake-up over the new connection", async || {
        count += 1;
        let id = stream(&format!("s{count}"));
        authority.append(&id, &event("k", "k", b"p")).await.unwrap();
        matches!(timeout(Duration::from_millis(200), listener.woken()).await, Ok(Ok(())))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_bounded_in_events_and_in_bytes() {
    let (_database, authority) = setup().await;
    let id = stream("s");
    let events: Vec<_> = (1..=20)
        .map(|n| event(&format!("k{n}"), "k", &vec![n; 100_000]))
        .collect();
    authority.append_batch(&id, &events).await.unwrap();
    let page = async |after, max_events, max_bytes| {
        let page = authority
            .read_events(&id, seq(after), max_events, max_bytes)
            .await
            .unwrap();
        page.iter().map(|event| event.seq.get()).collect::<Vec<_>>()
    };
    assert_eq!(page(0, 3, ALL).await, [1, 2, 3]);
    assert_eq!(page(0, 100, 350_000).await, [1, 2, 3]);
    assert_eq!(page(0, 100, 300_000).await, [1, 2, 3]);
    assert_eq!(page(17, 100, 1_000_000).await, [18, 19, 20]);
    assert_eq!(page(5, 100, 1).await, [6], "the first event always comes");
    assert!(page(20, 100, ALL).await.is_empty());
    assert!(page(0, 0, ALL).await.is_empty());
    assert_eq!(
        authority
            .read_events(&stream("none"), Seq::ZERO, 10, ALL)
            .await
            .unwrap(),
        []
    );
}

/// Blocks that a statement touches, those of the functions it calls included.
async fn blocks(connection: &mut PgConnection, statement: &str) -> i64 {
    let plan: serde_json::Value = sqlx::query_scalar(&format!("explain (analyze, buffers, format json) {statement}"))
        .fetch_one(connection)
        .await
        .unwrap();
    let of = |what: &str| plan[0]["Plan"][what].as_i64().unwrap();
    of("Shared Hit Blocks") + of("Shared Read Blocks")
}

/// A database whose tables Postgres believes empty, whatever comes into them.
async fn believed_empty() -> (Database, PgConnection) {
    let database = Cluster::shared().await.create_database().await.unwrap();
    let mut connection = client(&database).await;
    for statement in [
        "alter table runtime.sync_streams set (autovacuum_enabled = false)",
        "alter table runtime.sync_stream_events set (autovacuum_enabled = false)",
        "vacuum analyze runtime.sync_streams, runtime.sync_stream_events",
    ] {
        connection.execute(statement).await.unwrap();
    }
    (database, connection)
}

fn batch(from: usize, to: usize) -> String {
    format!(
        "select runtime.sync_append_batch('s', array_agg('key-' || n), array_agg('k'::text), array_agg('\\x01'::bytea))
         from generate_series({from}, {to}) n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_append_costs_does_not_depend_on_what_is_there() {
    let (_database, mut connection) = believed_empty().await;
    // Each kind of append twice, among few events and among many, in one session, for a plan lives as long as that.
    let kinds = async |connection: &mut PgConnection, held: usize| {
        let single = |n: usize| format!("select runtime.sync_append('s', 'key-{n}', 'k', '\\x01')");
        [
            ("a batch", blocks(connection, &batch(held + 1, held + 10)).await),
            (
                "a batch of repeats",
                blocks(connection, &batch(held + 1, held + 10)).await,
            ),
            (
                "a batch with repeats",
                blocks(connection, &batch(held + 6, held + 15)).await,
            ),
            ("one event", blocks(connection, &single(held + 16)).await),
            ("a repeat", blocks(connection, &single(held + 16)).await),
        ]
    };
    kinds(&mut connection, 0).await;
    let few = kinds(&mut connection, 100).await;
    for from in (1_001..20_000).step_by(1_000) {
        connection.execute(&*batch(from, from + 999)).await.unwrap();
    }
    for n in 0..2_000 {
        let statement = format!("select runtime.sync_append('other-{n}', 'key', 'k', '\\x01')");
        connection.execute(&*statement).await.unwrap();
    }
    let many = kinds(&mut connection, 30_000).await;
    for ((what, few), (_, many)) in few.into_iter().zip(many) {
        // The indexes are a level higher.
        assert!(
            many <= 2 * few,
            "{what}: {few} blocks among 100 events, {many} among 20,000"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_bridge_asks_does_not_cost_more_as_the_tables_grow() {
    const ROUNDS: usize = 10;
    let (database, mut connection) = believed_empty().await;
    let id = stream("s");
    let authority = Authority::connect(database.url(), 1).await.unwrap();
    let round = async || {
        authority.position(&id).await.unwrap();
        authority.chain_at(&id, seq(1)).await.unwrap();
        authority.chains_at(&[(id.clone(), seq(1))]).await.unwrap();
        authority.read_events(&id, Seq::ZERO, 10, ALL).await.unwrap();
        authority.dirty_streams(None, 10).await.unwrap();
        authority.streams_after(None, 10).await.unwrap();
        authority.advance_published(&[(id.clone(), seq(1))]).await.unwrap();
        authority.rewind_published(&id, Seq::ZERO).await.unwrap();
    };
    connection.execute(&*batch(1, 10)).await.unwrap();
    // The server keeps a statement's plan from the sixth time on.
    for _ in 0..ROUNDS {
        round().await;
    }
    connection.execute(&*batch(11, 10_000)).await.unwrap();
    for n in 0..5_000 {
        let statement = format!("select runtime.sync_append('other-{n}', 'key', 'k', '\\x01')");
        connection.execute(&*statement).await.unwrap();
    }
    let touched = async |connection: &mut PgConnection| -> i64 {
        connection.execute("select pg_stat_force_next_flush()").await.unwrap();
        sqlx::query_scalar(
            "select sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)::bigint
             from pg_statio_user_tables where schemaname = 'runtime'",
        )
        .fetch_one(connection)
        .await
        .unwrap()
    };
    let before = touched(&mut connection).await;
    for _ in 0..ROUNDS {
        round().await;
    }
    // A connection that ends gives up what it has counted.
    authority.close().await;
    eventually("the end of the bridge's connection", async || {
        let others: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        others == 0
    })
    .await;
    let each = (touched(&mut connection).await - before) / ROUNDS as i64;
    assert!(each < 200, "{each} blocks a round");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_fit_the_build_is_refused_with_what_to_do() {
    let cluster = Cluster::shared().await;
    let database = cluster.create_empty_database().await.unwrap();
    let error = Authority::connect(database.url(), 1).await.unwrap_err();
    assert!(
        matches!(error, AuthorityError::NotMigrated { found: 0, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("spacetime-sync migrate"), "{error}");
    assert_eq!(error.class(), RefusalClass::Fatal);

    // Two at once, then again: each is harmless.
    let (one, two) = tokio::join!(Authority::migrate(database.url()), Authority::migrate(database.url()));
    one.unwrap();
    two.unwrap();
    Authority::migrate(database.url()).await.unwrap();
    Authority::connect(database.url(), 1).await.unwrap();

    let mut connection = client(&database).await;
    let application_ledger: bool = sqlx::query_scalar("select to_regclass('public._sqlx_migrations') is not null")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert!(!application_ledger);

    connection
        .execute("update spacetime_sync._sqlx_migrations set checksum = '\\x00' where version = 1")
        .await
        .unwrap();
    let error = Authority::connect(database.url(), 1).await.unwrap_err();
    assert!(
        matches!(error, AuthorityError::ForeignMigration { version: 1, .. }),
        "{error:?}"
    );

    connection
        .execute(
            "insert into spacetime_sync._sqlx_migrations (version, description, success, checksum, execution_time)
             select 9999, 'from later', true, '\\x00', 0;
             delete from spacetime_sync._sqlx_migrations where version < 9999",
        )
        .await
        .unwrap();
    for error in [
        Authority::connect(database.url(), 1).await.unwrap_err(),
        Authority::migrate(database.url()).await.unwrap_err(),
    ] {
        assert!(
            matches!(error, AuthorityError::NewerSchema { found: 9999, .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("upgrade the bridge"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_bridge_leads_when_the_first_one_is_gone() {
    let (database, authority) = setup().await;
    let mut first = authority.try_lead().await.unwrap().expect("nobody leads");
    assert!(authority.try_lead().await.unwrap().is_none());
    let mut connection = client(&database).await;
    connection
        .execute(
            "select pg_terminate_backend(pid) from pg_locks
             where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())",
        )
        .await
        .unwrap();
    // Who waits for other things too gives this wait up again and again.
    eventually("the loss of the lead", async || {
        timeout(Duration::from_millis(20), first.lost()).await.is_ok()
    })
    .await;
    let second = authority.try_lead().await.unwrap().expect("the lead is free");
    second.release().await;
    eventually("the lead, given up", async || {
        authority.try_lead().await.unwrap().is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_works_through_a_kill_of_postgres() {
    let cluster = Cluster::start().await.unwrap();
    if !cluster.can_be_killed() {
        return;
    }
    let database = cluster.create_database().await.unwrap();
    let authority = Authority::connect(database.url(), 4).await.unwrap();
    let id = stream("s");
    authority.append_batch(&id, &numbered(1, 100)).await.unwrap();
    let mut lead = authority.try_lead().await.unwrap().unwrap();
    cluster.kill().unwrap();
    timeout(SOON, lead.lost()).await.unwrap();
    let error = authority.append(&id, &numbered(101, 101)[0]).await.unwrap_err();
    assert_eq!(error.class(), RefusalClass::Retry, "{error:?}");
    cluster.restart().await.unwrap();
    let again = numbered(101, 101);
    eventually("an append after the restart", async || {
        match authority.append(&id, &again[0]).await {
            Ok(at) => at == seq(101),
            Err(error) => {
                assert_eq!(error.class(), RefusalClass::Retry, "{error:?}");
                false
            }
        }
    })
    .await;
    assert_eq!(verified_log(&authority, &id).await.len(), 101);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_in_the_middle_of_a_call_is_of_class_retry() {
    let (database, _) = setup().await;
    let Some(addr) = Cluster::shared().await.addr() else {
        return;
    };
    let proxy = Proxy::start(addr).await.unwrap();
    let authority = Authority::connect(&database.url_at(proxy.addr()).unwrap(), 1)
        .await
        .unwrap();
    let id = stream("s");
    // The first call prepares the statement, so that the second one is a single round trip.
    authority.append(&id, &numbered(1, 1)[0]).await.unwrap();
    proxy.stall(Direction::ToClient);
    let call = tokio::spawn({
        let (authority, id) = (authority.clone(), id.clone());
        async move { authority.append(&id, &numbered(2, 2)[0]).await }
    });
    // The append is committed, and its answer held back: the caller cannot know.
    let direct = Authority::connect(database.url(), 1).await.unwrap();
    eventually("the append", async || {
        direct.position(&id).await.unwrap().unwrap().head_seq == seq(2)
    })
    .await;
    proxy.refuse().await;
    proxy.cut();
    let error = timeout(SOON, call).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.class(), RefusalClass::Retry, "{error:?}");
    proxy.resume(Direction::ToClient);
    proxy.accept().await;
    eventually(
        "the repeat",
        async || matches!(authority.append(&id, &numbered(2, 2)[0]).await, Ok(at) if at == seq(2)),
    )
    .await;
    assert_eq!(verified_log(&authority, &id).await.len(), 2);
}
