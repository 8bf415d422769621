//! Keys of purged events: a late repeat is known as what it is, and what is kept of it leaves in the end.

use spacetime_sync_tests::issuing::Desk;

use super::*;

/// A stream of so many events, of which the newest are kept.
async fn purged(events: usize, kept: usize) -> (Database, Authority, PgConnection) {
    let (database, authority) = setup().await;
    let mut owner = client(&database).await;
    authority
        .append_batch(&stream("s"), &numbered(1, events))
        .await
        .unwrap();
    keep(&mut owner, kept).await;
    count_exactly(&mut owner).await;
    purge(&authority, &mut owner).await;
    (database, authority, owner)
}

async fn keep(owner: &mut PgConnection, events: usize) {
    let set =
        format!("update runtime.sync_retention set window_events = 1, log_events = {events} where class = 'otherwise'");
    owner.execute(&*set).await.unwrap();
}

async fn purge(authority: &Authority, owner: &mut PgConnection) {
    owner
        .execute("update runtime.sync_streams set published_seq = head_seq")
        .await
        .unwrap();
    authority.purge(&stream("s"), 1_000_000).await.unwrap();
}

/// Has what Postgres counts of kept keys be exact. If it analyzes the table before a session has told what it removed, that is
/// subtracted twice, and the next analysis corrects it: about how many there are is all that is promised.
async fn count_exactly(owner: &mut PgConnection) {
    let off = "alter table runtime.sync_kept_keys set (autovacuum_enabled = off)";
    owner.execute(off).await.unwrap();
}

async fn kept(owner: &mut PgConnection) -> i64 {
    sqlx::query_scalar("select count(*) from runtime.sync_kept_keys")
        .fetch_one(owner)
        .await
        .unwrap()
}

/// The row of the stream, as text.
async fn row(owner: &mut PgConnection) -> String {
    sqlx::query_scalar("select s::text from runtime.sync_streams s where stream_id = 's'")
        .fetch_one(owner)
        .await
        .unwrap()
}

async fn seqs(authority: &Authority, events: &[NewEvent]) -> Vec<u64> {
    let seqs = authority.append_batch(&stream("s"), events).await.unwrap();
    seqs.into_iter().map(Seq::get).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_repeat_of_a_purged_event_has_its_first_seq_and_changes_nothing() {
    let (database, authority, mut owner) = purged(100, 10).await;
    assert_eq!(kept(&mut owner).await, 90);
    let before = row(&mut owner).await;
    for n in [1, 90, 91, 100] {
        let again = authority.append(&stream("s"), &numbered(n, n)[0]).await.unwrap();
        assert_eq!(again.get(), n as u64);
    }
    assert_eq!(
        seqs(&authority, &numbered(85, 95)).await,
        (85..=95).collect::<Vec<u64>>()
    );
    assert_eq!(row(&mut owner).await, before, "nothing is appended, and no head moves");
    // Among new ones, in the order of the call, and one of them twice.
    let mixed = [
        numbered(101, 101),
        numbered(5, 5),
        numbered(102, 102),
        numbered(95, 95),
        numbered(101, 101),
    ];
    assert_eq!(seqs(&authority, &mixed.concat()).await, [101, 5, 102, 95, 101]);
    let next = authority
        .append(&stream("s"), &event("key-103", "k", b"p"))
        .await
        .unwrap();
    assert_eq!(next, seq(103));
    // Where nothing of the log is left but its end, too.
    owner
        .execute("update runtime.sync_retention set log_events = null, window_age = '1 second', log_age = '1 second'")
        .await
        .unwrap();
    let emptied = async || {
        purge(&authority, &mut client(&database).await).await;
        let extent = authority.extent(&stream("s")).await.unwrap().unwrap();
        extent.floor() == extent.head_seq
    };
    eventually("the log is empty", emptied).await;
    let before = row(&mut owner).await;
    assert_eq!(seqs(&authority, &numbered(100, 102)).await, [100, 101, 102]);
    let last = authority
        .append(&stream("s"), &event("key-103", "k", b"p"))
        .await
        .unwrap();
    assert_eq!((last, row(&mut owner).await), (seq(103), before));
    let new = authority
        .append(&stream("s"), &event("key-104", "k", b"p"))
        .await
        .unwrap();
    assert_eq!(new, seq(104));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_event_under_the_key_of_a_purged_one_is_refused() {
    let (_database, authority, mut owner) = purged(100, 10).await;
    let before = row(&mut owner).await;
    for statement in [
        "select runtime.sync_append('s', 'key-7', 'test.event', 'other')",
        "select runtime.sync_append('s', 'key-7', 'other.event', 'payload 7')",
        "select runtime.sync_append_batch('s', array['key-101', 'key-7'], array['k', 'test.event'], array['p', 'other']::bytea[])",
        "select runtime.sync_append_batch('s', array['key-7', 'key-95'], array['k', 'k'], array['payload 7', 'p']::bytea[])",
    ] {
        assert_eq!(refusal(&mut owner, statement).await, "SY001", "{statement}");
    }
    assert_eq!(row(&mut owner).await, before);
    let text = authority
        .append(&stream("s"), &event("key-7", "test.event", b"x"))
        .await;
    assert!(
        text.unwrap_err().to_string().contains("seq 7"),
        "it names what the key stands for"
    );
    // Another stream's keys are its own.
    let other = authority.append(&stream("t"), &event("key-7", "k", b"other")).await;
    assert_eq!(other.unwrap(), seq(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_leave_when_their_time_is_over_in_bounded_steps() {
    let (_database, authority, mut owner) = purged(100, 60).await;
    assert_eq!(authority.forget_keys(1_000).await.unwrap(), 0, "after 30 days");
    let days: bool = sqlx::query_scalar(
        "select bool_and(kept_until between now() + interval '29 days' and now() + interval '31 days') from runtime.sync_kept_keys",
    )
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert!(days);
    // What is purged from here on is kept for ever; what was purged before is not.
    owner
        .execute("update runtime.sync_retention set keys_age = null")
        .await
        .unwrap();
    keep(&mut owner, 50).await;
    purge(&authority, &mut owner).await;
    owner
        .execute("update runtime.sync_kept_keys set kept_until = kept_until - interval '40 days'")
        .await
        .unwrap();
    let mut gone = Vec::new();
    for _ in 0..4 {
        gone.push(authority.forget_keys(15).await.unwrap());
    }
    assert_eq!((gone, kept(&mut owner).await), (vec![15, 15, 10, 0], 10));
    // A repeat of what is forgotten is a new event; of what is kept, it is not.
    assert_eq!(seqs(&authority, &numbered(40, 41)).await, [101, 41]);
    let about = async || authority.kept_keys().await.unwrap() == 10;
    eventually("Postgres has counted them", about).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_may_be_kept_as_briefly_and_as_long_as_events() {
    let (_database, _, mut owner) = purged(2, 1).await;
    for (age, fits) in [
        ("'1 second'", true),
        ("'36500 days'", true),
        ("null", true),
        ("'0 seconds'", false),
        ("'36501 days'", false),
        ("'infinity'::text::interval", false),
    ] {
        let set = format!("update runtime.sync_retention set keys_age = {age}");
        assert_eq!(owner.execute(&*set).await.is_ok(), fits, "{age}");
    }
}

/// A repeat that waits for a purge finds what the purge has kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_beside_a_purge_is_a_repeat() {
    let (database, authority) = setup().await;
    let mut owner = client(&database).await;
    authority.append_batch(&stream("s"), &numbered(1, 100)).await.unwrap();
    owner
        .execute("update runtime.sync_streams set published_seq = head_seq")
        .await
        .unwrap();
    keep(&mut owner, 1).await;
    let mut purging = client(&database).await;
    let mut open = purging.begin().await.unwrap();
    let gone: i64 = sqlx::query_scalar("select runtime.sync_purge('s', 1000)")
        .fetch_one(&mut *open)
        .await
        .unwrap();
    assert_eq!(gone, 99);
    let repeats = [1, 50].map(|n| {
        let authority = authority.clone();
        tokio::spawn(async move { seqs(&authority, &numbered(n, n + n / 50)).await })
    });
    let waiting =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    let both = async || {
        let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&mut owner).await.unwrap();
        waiting == 2
    };
    eventually("both repeats wait", both).await;
    open.commit().await.unwrap();
    let [one, two] = repeats;
    assert_eq!((one.await.unwrap(), two.await.unwrap()), (vec![1], vec![50, 51]));
    let extent = authority.extent(&stream("s")).await.unwrap().unwrap();
    assert_eq!((extent.head_seq, extent.floor()), (seq(100), seq(99)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_forgets_old_keys_where_it_purges_and_says_how_many_are_left() {
    let desk = Desk::new(Cluster::shared().await).await.unwrap();
    let mut owner = client(&desk.database).await;
    desk.authority
        .append_batch(&stream("s"), &numbered(1, 100))
        .await
        .unwrap();
    keep(&mut owner, 10).await;
    count_exactly(&mut owner).await;
    for statement in [
        "update runtime.sync_streams set published_seq = head_seq",
        "select runtime.sync_purge('s', 1000)",
        "update runtime.sync_kept_keys set kept_until = now() where seq <= 30",
        // What sessions count reaches the others late, and the bridge is not to count what it removes before what is there.
        "select pg_stat_force_next_flush()",
    ] {
        owner.execute(statement).await.unwrap();
    }
    let often = [("retention.every_ms", "1000".to_owned())];
    let bridge = desk.bridge(&often).await.unwrap();
    let told = async || {
        let metrics = bridge.metrics().await.unwrap();
        metrics["counters"]["kept_keys"] == 60 && kept(&mut owner).await == 60
    };
    eventually("60 keys are kept", told).await;
    let text = bridge.text("/metrics").await.unwrap();
    assert!(text.contains("\nspacetime_sync_kept_keys 60\n"), "{text}");
}
