//! I12: whatever relays do to the mirror, the lane does not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use spacetime_sync_tests::lane::{Lane, stream};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::mirror::Mirrors;
use spacetime_sync_tests::port;
use spacetime_sync_tests::relays::{OddRelay, Treats};

use super::*;

/// How many single events are timed in each part of the run.
const TIMED: usize = 120;
/// How many events go through at once.
const AT_ONCE: usize = 2_000;

/// How fast the lane was.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// From the append of one event until it is published: the median, and what 19 of 20 stay below.
    median: Duration,
    p95: Duration,
    /// Until many events are published.
    many: Duration,
}

async fn figures(lane: &Lane, number: usize) -> Figures {
    let mut writer = Writer::new(&lane.authority, &stream(number), "w", Payload::UpTo(300), number as u64);
    let mut times = Vec::new();
    for seq in 1..=TIMED as u64 {
        let began = Instant::now();
        writer.append(1).await.unwrap();
        published(lane, number, seq).await;
        times.push(began.elapsed());
    }
    times.sort();
    let began = Instant::now();
    let mut appended = TIMED;
    while appended < TIMED + AT_ONCE {
        writer.append(100).await.unwrap();
        appended += 100;
    }
    published(lane, number, appended as u64).await;
    Figures {
        median: times[TIMED / 2],
        p95: times[TIMED * 19 / 20],
        many: began.elapsed(),
    }
}

async fn published(lane: &Lane, number: usize, seq: u64) {
    let deadline = tokio::time::Instant::now() + SOON;
    while lane.recorded(&[stream(number)]).await.unwrap()[0] < seq {
        assert!(tokio::time::Instant::now() < deadline, "seq {seq} is not published");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Looks, until it is told to end, whether anybody waits for a lock of this role. Returns what was found.
fn waiting_for(lane: &Lane, role: String, end: Arc<AtomicBool>) -> tokio::task::JoinHandle<(u64, Vec<String>)> {
    let url = lane.database.url().to_owned();
    tokio::spawn(async move {
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let (mut looks, mut found) = (0, Vec::new());
        while !end.load(Ordering::Relaxed) {
            let waiting: Vec<String> = sqlx::query_scalar(
                "select a.usename || ' waits: ' || left(a.query, 80) from pg_stat_activity a
                 where a.wait_event_type = 'Lock' and a.usename <> $1 and exists (
                   select from unnest(pg_blocking_pids(a.pid)) b(pid) join pg_stat_activity m on m.pid = b.pid
                   where m.usename = $1)",
            )
            .bind(&role)
            .fetch_all(&mut connection)
            .await
            .unwrap();
            looks += 1;
            found.extend(waiting);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (looks, found)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_relay_down_or_lying_and_a_full_outbox_the_lane_is_as_fast_as_without_a_mirror() {
    let lane = Lane::start().await.unwrap();
    let _bridge = lane.bridge().unwrap();
    let mut odd = Vec::new();
    for treats in [
        Treats::Forgets,
        Treats::OfAnother,
        Treats::Garbage,
        Treats::MidFrame,
        Treats::Silently,
        Treats::NoHandshake,
    ] {
        odd.push(OddRelay::start(treats).await.unwrap());
    }
    let mut relays: Vec<String> = odd.iter().map(OddRelay::url).collect();
    relays.push(format!("ws://{}", port::free().unwrap()));
    let mirrors = Mirrors::of(&lane.database).await.unwrap();
    let (authority, database) = (&lane.authority, &lane.database);
    let mut owner = PgConnection::connect(database.url()).await.unwrap();
    policy(&mut owner, "runtime.run.*", &[], &relays, None).await;

    let role: String = {
        let mut as_mirror = PgConnection::connect(mirrors.url()).await.unwrap();
        sqlx::query_scalar("select current_user::text")
            .fetch_one(&mut as_mirror)
            .await
            .unwrap()
    };
    // More than its duty allows, or Postgres would keep it from every lock, and this would say nothing about the mirror itself.
    let more = format!("grant update on runtime.sync_streams, runtime.sync_stream_events to {role}");
    lane.sql(&more).await.unwrap();
    let end = Arc::new(AtomicBool::new(false));
    let watch = waiting_for(&lane, role, end.clone());
    let warm = figures(&lane, 1).await;
    let without = figures(&lane, 2).await;
    // It reads all the time, because there is room, and no relay ever has anything.
    let reading = mirrors.start(&[("pending", "1000000"), ("attempts", "1000")]).unwrap();
    reading.until("outbox_depth", SOON, |depth| depth > 100).await;
    let while_it_reads = figures(&lane, 3).await;
    reading.process.kill();
    let full = mirrors.start(&[("pending", "1"), ("attempts", "1000")]).unwrap();
    full.until("leading", SOON, |leading| leading == 1).await;
    let while_it_is_full = figures(&lane, 4).await;
    let again = figures(&lane, 5).await;
    full.process.kill();
    end.store(true, Ordering::Relaxed);
    let (looks, waited) = watch.await.unwrap();
    eprintln!(
        "warming up {warm:?}\nwithout a mirror {without:?}\nwhile it reads {while_it_reads:?}\nwhile it is full \
         {while_it_is_full:?} and again {again:?}; {looks} looks at locks"
    );
    assert!(looks > 100, "{looks} looks");
    assert!(waited.is_empty(), "somebody waited for the mirror: {waited:?}");
    // Other processes of this machine take their time from both alike, but not at the same moment.
    for with in [while_it_reads, while_it_is_full, again] {
        assert!(
            with.median <= without.median * 2 + Duration::from_millis(40),
            "{with:?}, without {without:?}"
        );
        assert!(
            with.p95 <= without.p95 * 3 + Duration::from_millis(150),
            "{with:?}, without {without:?}"
        );
        assert!(
            with.many <= without.many * 3 + Duration::from_secs(1),
            "{with:?}, without {without:?}"
        );
    }
    let pending = authority.outbox_depth().await.unwrap().pending;
    assert!(pending > 1_000, "{pending} entries wait for relays");
}
