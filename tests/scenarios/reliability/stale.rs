//! Clients whose position SpacetimeDB cannot continue: what they get from the authority, and how they start over.

use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use spacetime_sync_client::{Seq, StreamId};
use spacetime_sync_stdb::admin::Breaking;
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::lane::{Bridge, BridgeOptions, Lane, stream, wait};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;

const SOON: Duration = Duration::from_secs(60);

/// A lane with tokens and a short window, and its bridge.
async fn lane(window: u64) -> (Lane, Bridge) {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let policy = format!("update runtime.sync_retention set window_events = {window} where class = 'otherwise'");
    lane.sql(&policy).await.unwrap();
    let bridge = bridge(&lane);
    (lane, bridge)
}

fn bridge(lane: &Lane) -> Bridge {
    let often = BridgeOptions {
        set: vec![("retention.purge", "false".to_owned())],
        ..BridgeOptions::default()
    };
    lane.bridge_with(&often).unwrap()
}

fn writer(lane: &Lane, id: &StreamId, name: &str) -> Writer {
    Writer::new(&lane.authority, id, name, Payload::UpTo(300), 1)
}

/// The first seq that SpacetimeDB holds of the lane's one stream; 0 if there is none.
async fn oldest(lane: &Lane) -> u64 {
    lane.oldest_held().await.unwrap().first().copied().unwrap_or_default()
}

async fn swept_past(lane: &Lane, seq: u64) {
    let deadline = tokio::time::Instant::now() + SOON;
    while oldest(lane).await <= seq {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the window did not move in time"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn applies(client: &Follower, seq: u64) {
    let what = format!("a client gets to {seq}");
    wait(SOON, &what, || client.applied() >= seq).await;
}

async fn is_live(client: &Follower) {
    client.until_live(SOON).await.unwrap();
}

fn counter(client: &Follower, name: &str) -> u64 {
    client.status()["counters"][name].as_u64().unwrap_or_default()
}

/// Where a client has started over: the seq, the document and the reasons.
fn begun(client: &Follower) -> Vec<(u64, Option<String>, Value)> {
    let store = Connection::open_with_flags(client.store(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut rows = store.prepare("SELECT seq, doc_key, reasons FROM begun").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?)));
    rows.unwrap()
        .map(|row| row.map(|(seq, doc_key, reasons)| (seq, doc_key, serde_json::from_str(&reasons).unwrap())))
        .collect::<Result<_, _>>()
        .unwrap()
}

/// Asserts that a client holds exactly the authority's events after a position, up to the head.
async fn holds_all_after(lane: &Lane, client: &Follower, id: &StreamId, after: u64) {
    let log = lane
        .authority
        .read_events(id, Seq::new(after).unwrap(), 1_000_000, 1 << 30);
    let (log, held) = (log.await.unwrap(), client.applied_log(id).unwrap());
    assert_eq!(held.len(), log.len());
    assert!(held == log, "the applied events differ from the authority's log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_below_the_window_catches_up_from_the_authority_and_goes_live() {
    let (lane, _bridge) = lane(400).await;
    let id = stream(1);
    let mut one = writer(&lane, &id, "a");
    let mut away = lane.client(std::slice::from_ref(&id)).await.unwrap();
    away.start().unwrap();
    one.append(1_500).await.unwrap();
    applies(&away, 1_500).await;
    away.kill();
    for _ in 0..30 {
        one.append(1_000).await.unwrap();
    }
    assert!(lane.published(SOON).await);
    swept_past(&lane, 25_000).await;
    // While events arrive and windows move, the authority purges its own log behind the client.
    lane.sql("update runtime.sync_retention set log_events = 31000 where class = 'otherwise'")
        .await
        .unwrap();
    let mut fresh = lane.client(std::slice::from_ref(&id)).await.unwrap();
    away.start().unwrap();
    fresh.start().unwrap();
    let mut purged = 0;
    while purged < 1_000 || away.applied() < 20_000 {
        one.append(20).await.unwrap();
        purged += lane.authority.purge(&id, 100).await.unwrap();
        assert!(purged < 1_500 || away.applied() > purged, "{}", away.log());
        if purged >= 1_000 {
            lane.sql("update runtime.sync_retention set log_events = null where class = 'otherwise'")
                .await
                .unwrap();
        }
    }
    is_live(&away).await;
    one.append(50).await.unwrap();
    applies(&away, one.written()).await;
    assert!(counter(&away, "history_pages") > 0, "{}", away.status());
    assert_eq!(counter(&away, "stale_cursors"), 0);
    let from = away.applied_log(&id).unwrap();
    let seqs = from.iter().map(|event| event.seq.get());
    assert!(seqs.eq(1..=one.written()), "no gap and no duplicate");
    let kept = lane.authority.extent(&id).await.unwrap().unwrap().floor().get();
    let log = lane
        .authority
        .read_events(&id, Seq::new(kept).unwrap(), 1_000_000, 1 << 30);
    assert!(log.await.unwrap() == from[kept as usize..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_client_waits_for_a_wiped_spacetimedb() {
    let (lane, bridge) = lane(2_000).await;
    let id = stream(1);
    let mut one = writer(&lane, &id, "a");
    let mut client = lane.client(std::slice::from_ref(&id)).await.unwrap();
    client.start().unwrap();
    for _ in 0..10 {
        one.append(1_000).await.unwrap();
    }
    applies(&client, 10_000).await;
    is_live(&client).await;
    // The bridge is away, so SpacetimeDB stays empty until it is back.
    assert_eq!(bridge.process.signal(rustix::process::Signal::KILL), ());
    lane.publish(Breaking::DeleteData).await.unwrap();
    let bridge = self::bridge(&lane);
    one.append(100).await.unwrap();
    applies(&client, 10_100).await;
    is_live(&client).await;
    one.append(100).await.unwrap();
    applies(&client, 10_200).await;
    assert!(client.process().unwrap().is_running());
    holds_all_after(&lane, &client, &id, 0).await;
    assert_eq!(begun(&client), []);
    assert_eq!(bridge.stop().await.unwrap(), 0);
}

/// A client that has applied this many events and was killed.
async fn behind(lane: &Lane, id: &StreamId, on_stale: &str, writer: &mut Writer, seq: u64) -> Follower {
    let client = lane.client(std::slice::from_ref(id)).await.unwrap();
    let mut client = client.option("--on-stale", on_stale);
    client.start().unwrap();
    if writer.written() < seq {
        writer.append((seq - writer.written()) as usize).await.unwrap();
    }
    applies(&client, seq).await;
    client.kill();
    client
}

async fn stops(client: &Follower, id: &StreamId) -> Value {
    let stopped = || client.status()["streams"][id.as_str()]["phase"] == "stopped";
    wait(SOON, &format!("the stream stops: {}", client.log()), stopped).await;
    client.status()["streams"][id.as_str()].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_floor_each_client_follows_its_configured_answer() {
    let (lane, bridge) = lane(100).await;
    let id = stream(1);
    let mut one = writer(&lane, &id, "a");
    let mut clients = Vec::new();
    for answer in ["stop", "restart", "rebootstrap", "rebootstrap-or-restart"] {
        clients.push(behind(&lane, &id, answer, &mut one, 200).await);
    }
    for _ in 0..4 {
        one.append(1_000).await.unwrap();
    }
    assert!(lane.published(SOON).await);
    swept_past(&lane, 3_000).await;
    lane.sql("update runtime.sync_retention set log_events = 1200 where class = 'otherwise'")
        .await
        .unwrap();
    while lane.authority.purge(&id, 1_000).await.unwrap() > 0 {}
    let floor = lane.authority.extent(&id).await.unwrap().unwrap().floor().get();
    assert_eq!(floor, 3_000);
    let reasons = json!(["retention_floor_breach"]);

    let [stop, restart, rebootstrap, either] = &mut clients[..] else {
        unreachable!()
    };
    stop.start().unwrap();
    let stopped = stops(stop, &id).await;
    assert_eq!(
        (&stopped["reason"], &stopped["applied"]),
        (&json!("stale_cursor"), &json!(200))
    );
    restart.start().unwrap();
    is_live(restart).await;
    assert_eq!(begun(restart), [(floor, None, reasons.clone())]);
    holds_all_after(&lane, restart, &id, floor).await;
    // No document exists yet.
    rebootstrap.start().unwrap();
    assert_eq!(stops(rebootstrap, &id).await["reason"], "stale_cursor");
    either.start().unwrap();
    is_live(either).await;
    assert_eq!(begun(either), [(floor, None, reasons.clone())]);
    lane.sql(&format!(
        "select runtime.sync_put_snapshot('{id}', 'runtime/run_summary:1', 3500, '\\x7b7d')"
    ))
    .await
    .unwrap();
    rebootstrap.kill();
    rebootstrap.start().unwrap();
    is_live(rebootstrap).await;
    let document = Some("runtime/run_summary:1".to_owned());
    assert_eq!(begun(rebootstrap), [(3_500, document, reasons)]);
    holds_all_after(&lane, rebootstrap, &id, 3_500).await;
    // All clients continue.
    one.append(10).await.unwrap();
    for client in [restart, either, rebootstrap] {
        applies(client, one.written()).await;
    }
    let metrics = bridge.metrics().await.unwrap();
    assert!(
        metrics["delivery"]["stale_cursor_events_total"].as_u64().unwrap() > 0,
        "{metrics}"
    );
}

/// Sets the authority back as a restored backup would: its log ends earlier, and its records say so.
async fn restore(lane: &Lane, id: &StreamId, seq: u64) {
    let text = format!(
        "set session_replication_role = replica;
         delete from runtime.sync_stream_events where stream_id = '{id}' and seq > {seq};
         update runtime.sync_streams s set head_seq = {seq}, published_seq = {seq}, head_chain =
             (select chain_hash from runtime.sync_stream_events e where e.stream_id = '{id}' and e.seq = {seq})
           where s.stream_id = '{id}'"
    );
    lane.sql(&text).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_ahead_or_on_another_chain_stops_or_starts_over() {
    let (lane, bridge) = lane(100_000).await;
    let id = stream(1);
    let mut one = writer(&lane, &id, "a");
    let mut ahead_stops = behind(&lane, &id, "stop", &mut one, 500).await;
    let mut ahead_restarts = behind(&lane, &id, "restart", &mut one, 500).await;
    let mut forked_stops = behind(&lane, &id, "stop", &mut one, 500).await;
    let mut forked_restarts = behind(&lane, &id, "restart", &mut one, 500).await;
    assert_eq!(bridge.stop().await.unwrap(), 0);
    restore(&lane, &id, 300).await;
    lane.publish(Breaking::DeleteData).await.unwrap();
    let _bridge = self::bridge(&lane);

    ahead_stops.start().unwrap();
    let stopped = stops(&ahead_stops, &id).await;
    assert_eq!(stopped["reason"], "stale_cursor");
    assert!(
        stopped["detail"].as_str().unwrap().contains("past the head"),
        "{stopped}"
    );
    ahead_restarts.start().unwrap();
    is_live(&ahead_restarts).await;
    assert_eq!(begun(&ahead_restarts), [(0, None, json!(["ahead_of_head"]))]);
    holds_all_after(&lane, &ahead_restarts, &id, 0).await;

    let mut other = writer(&lane, &id, "b");
    other.append(400).await.unwrap();
    assert!(lane.published(SOON).await);
    applies(&ahead_restarts, 700).await;
    forked_stops.start().unwrap();
    let stopped = stops(&forked_stops, &id).await;
    assert_eq!(stopped["reason"], "stale_cursor");
    assert!(
        stopped["detail"]
            .as_str()
            .unwrap()
            .contains("is not the authority's log"),
        "{stopped}"
    );
    forked_restarts.start().unwrap();
    is_live(&forked_restarts).await;
    assert_eq!(begun(&forked_restarts), [(0, None, json!(["chain_mismatch"]))]);
    holds_all_after(&lane, &forked_restarts, &id, 0).await;
}
