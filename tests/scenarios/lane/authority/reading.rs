//! What the bridge reads of the log, and what it records.

use super::*;
use spacetime_sync_proto::StreamProgress;

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
async fn a_look_brings_the_next_few_events_of_the_dirty_streams_that_it_names() {
    let (_database, authority) = setup().await;
    let [clean, long, large, other] = ["clean", "long", "large", "other"].map(stream);
    for id in [&clean, &long, &other] {
        authority.append_batch(id, &numbered(1, 100)).await.unwrap();
    }
    let sizes = [30_000, 30_000, 30_000, 100_000];
    for (at, size) in sizes.into_iter().enumerate() {
        let event = event(&format!("k{at}"), "k", &vec![1; size]);
        authority.append(&large, &event).await.unwrap();
    }
    authority.advance_published(&[(clean.clone(), seq(100))]).await.unwrap();
    let look = async |read: &[(&StreamId, u64)]| {
        let read: Vec<_> = read.iter().map(|(id, at)| ((*id).clone(), seq(*at))).collect();
        let looked = authority.look(None, 9, &read).await.unwrap();
        assert_eq!(looked.progress, authority.dirty_streams(None, 9).await.unwrap());
        for (id, events) in &looked.events {
            let after = read.iter().find(|(name, _)| name == id).unwrap().1;
            assert_eq!(
                *events,
                authority.read_events(id, after, events.len(), ALL).await.unwrap()
            );
        }
        let counts = looked.events.iter().map(|(id, events)| (id.to_string(), events.len()));
        counts.collect::<Vec<_>>()
    };
    let counts = |of: &[(&StreamId, usize)]| {
        of.iter()
            .map(|(id, count)| (id.to_string(), *count))
            .collect::<Vec<_>>()
    };
    assert_eq!(look(&[]).await, []);
    let missing = stream("missing");
    let named = [(&clean, 9), (&long, 98), (&missing, 0)];
    assert_eq!(look(&named).await, counts(&[(&long, 2)]));
    assert_eq!(
        look(&[(&long, 7), (&other, 99)]).await,
        counts(&[(&long, 64), (&other, 1)])
    );
    assert_eq!(look(&[(&long, 100), (&other, 200)]).await, []);
    // 64 KiB at most, and none of a large event: its page brings it.
    assert_eq!(look(&[(&large, 0)]).await, counts(&[(&large, 2)]));
    assert_eq!(look(&[(&large, 3)]).await, []);
    let both = [(long.clone(), seq(0)), (other, seq(0))];
    let limited = authority.look(Some(&large), 1, &both).await.unwrap();
    assert_eq!(
        (limited.progress.len(), limited.events.into_keys().collect()),
        (1, vec![long])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn published_seq_only_moves_forward_and_never_past_the_head() {
    let (_database, authority) = setup().await;
    let id = stream("s");
    authority.append_batch(&id, &numbered(1, 5)).await.unwrap();
    let published = async || authority.position(&id).await.unwrap().unwrap().published_seq;
    let to = |to| [(id.clone(), seq(to))];

    assert_eq!(authority.advance_published(&to(3)).await.unwrap(), Advanced::default());
    assert_eq!(published().await, seq(3));
    assert_eq!(authority.advance_published(&to(2)).await.unwrap(), Advanced::default());
    assert_eq!(published().await, seq(3));

    // A wrong entry does not block the others.
    let (other, missing) = (stream("other"), stream("missing"));
    authority.append(&other, &event("k", "k", b"p")).await.unwrap();
    let asked = [(id.clone(), seq(6)), (other.clone(), seq(1)), (missing.clone(), seq(1))];
    let mut advanced = authority.advance_published(&asked).await.unwrap();
    advanced.above_head.sort();
    assert_eq!(advanced.above_head, [missing, id.clone()]);
    assert_eq!(advanced.locked, []);
    assert_eq!(published().await, seq(3));
    assert_eq!(authority.position(&other).await.unwrap().unwrap().published_seq, seq(1));

    // If one call names a stream twice, the higher seq counts.
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
async fn a_writer_that_locks_a_stream_never_blocks_the_bridge() {
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
    assert_eq!(page(5, 100, 1).await, [6], "a page always holds its first event");
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

#[tokio::test(flavor = "multi_thread")]
async fn an_infinite_commit_time_fails_only_its_stream() {
    let (database, authority) = setup().await;
    for name in ["s", "sound"] {
        authority.append(&stream(name), &event("k", "k", b"p")).await.unwrap();
    }
    client(&database)
        .await
        .execute(
            "set session_replication_role = replica;
             update runtime.sync_stream_events set committed_at = 'infinity' where stream_id = 's'",
        )
        .await
        .unwrap();
    let error = authority
        .read_events(&stream("s"), Seq::ZERO, 10, ALL)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, AuthorityError::Corrupt { seq: 1, .. }) && error.class() == RefusalClass::Reject,
        "{error:?}"
    );
    let sound = authority.read_events(&stream("sound"), Seq::ZERO, 10, ALL).await;
    assert_eq!(sound.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_with_an_invalid_stream_name_is_skipped() {
    let (database, authority) = setup().await;
    for name in ["a", "z"] {
        authority.append(&stream(name), &event("k", "k", b"p")).await.unwrap();
    }
    client(&database)
        .await
        .execute(
            "insert into runtime.sync_streams (stream_id, head_seq, head_chain)
                 values ('no name', 1, sha256('')), (e'b\n', 1, sha256(''));
             update runtime.sync_retention set log_events = window_events",
        )
        .await
        .unwrap();
    let found = |positions: Vec<StreamProgress>| -> Vec<_> {
        let names = positions.into_iter().map(|position| position.stream_id);
        names.collect()
    };
    let expected = [stream("a"), stream("z")];
    assert_eq!(found(authority.dirty_streams(None, 2).await.unwrap()), expected);
    assert_eq!(found(authority.streams_after(None, 2).await.unwrap()), expected);
    assert_eq!(authority.purgeable_streams(None, 2).await.unwrap(), expected);
    assert_eq!(authority.misnamed_streams(10).await.unwrap(), ["b\n", "no name"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_a_class_keeps_everything_and_can_be_read() {
    let (database, authority) = setup().await;
    let id = stream("s");
    authority.append_batch(&id, &numbered(1, 5)).await.unwrap();
    client(&database)
        .await
        .execute("delete from runtime.sync_retention")
        .await
        .unwrap();
    let history = authority.history(&id, seq(2), 10, ALL).await.unwrap();
    assert_eq!(history.events.len(), 3);
    let extent = history.extent.unwrap();
    assert_eq!((extent.window_events, extent.window_floor()), (None, Seq::ZERO));
    assert_eq!(authority.purge(&id, 10).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_the_expected_row_costs_no_connection() {
    let database = Cluster::shared().await.create_database().await.unwrap();
    let authority = Authority::connect(database.url(), 1).await.unwrap();
    let mut other = client(&database).await;
    other.execute("delete from runtime.sync_epoch").await.unwrap();
    let mut backends = async || -> Vec<i32> {
        sqlx::query_scalar(
            "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
               and application_name = 'spacetime-sync' order by pid",
        )
        .fetch_all(&mut other)
        .await
        .unwrap()
    };
    authority.dirty_streams(None, 1).await.unwrap();
    // The connections of the setup may still be closing.
    eventually("one connection", async || backends().await.len() == 1).await;
    let before = backends().await;
    let error = authority.epoch().await.unwrap_err();
    assert_eq!(error.class(), RefusalClass::Fatal, "{error:?}");
    authority.dirty_streams(None, 1).await.unwrap();
    assert_eq!(backends().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_chain_hash_is_reported_as_corrupt_and_affects_only_its_stream() {
    let (database, authority) = setup().await;
    let [bad, sound] = ["bad", "sound"].map(stream);
    for id in [&bad, &sound] {
        authority.append(id, &event("k", "k", b"p")).await.unwrap();
    }
    client(&database)
        .await
        .execute(
            "set session_replication_role = replica;
             update runtime.sync_stream_events set chain_hash = '\\x00' where stream_id = 'bad'",
        )
        .await
        .unwrap();
    let corrupt = |error: &AuthorityError| {
        let here = matches!(
            error,
            AuthorityError::Corrupt {
                seq: 1,
                what: "a chain hash",
                ..
            }
        );
        assert!(here && error.class() == RefusalClass::Reject, "{error:?}");
    };
    corrupt(&authority.chain_at(&bad, seq(1)).await.unwrap_err());
    let asked = [(bad.clone(), seq(1)), (sound.clone(), seq(1))];
    let found = authority.standings(&asked).await.unwrap();
    corrupt(found[0].as_ref().unwrap_err());
    let sound_chain = authority.chain_at(&sound, seq(1)).await.unwrap();
    assert!(sound_chain.is_some());
    assert_eq!(found[1].as_ref().unwrap().chain, sound_chain);
    let named = [bad.clone(), sound.clone()].map(|id| (id, Seq::ZERO));
    let looked = authority.look(None, 9, &named).await.unwrap();
    let both: Vec<_> = looked.progress.into_iter().map(|progress| progress.stream_id).collect();
    assert_eq!(
        (both, looked.events.into_keys().collect()),
        (vec![bad, sound.clone()], vec![sound])
    );
}
