//! What an append does, and what it refuses.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writers_leave_no_gap_and_rollbacks_leave_no_trace() {
    let (database, authority) = setup().await;
    let id = stream("runtime.run.1.events");
    let done = Arc::new(AtomicBool::new(false));

    // A reader sees at any time all events up to the head, and their chain holds.
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
                    "head {head} is visible, but the log ends at {at}"
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

    // Known events, new ones and repeats inside the call, in any order.
    let more = numbered(6, 7);
    let mixed = [&more[1], &events[2], &more[0], &more[1], &events[2], &more[0]].map(Clone::clone);
    assert_eq!(
        authority.append_batch(&id, &mixed).await.unwrap(),
        [6, 3, 7, 6, 3, 7].map(seq)
    );
    assert_eq!(authority.append(&id, &more[0]).await.unwrap(), seq(7));
    assert_eq!(verified_log(&authority, &id).await.len(), 7);
    // Another stream has its own keys.
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
async fn each_violation_of_the_contract_has_its_own_sqlstate() {
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
