//! How long SpacetimeDB and the authority keep events.

use std::time::Duration;

use serde_json::json;
use spacetime_sync_authority::Authority;
use spacetime_sync_proto::{ChainHash, Seq, StreamId};
use spacetime_sync_stdb::admin::Breaking;
use spacetime_sync_stdb::upkeep::HeldStream;
use spacetime_sync_tests::lane::{Bridge, BridgeOptions, Lane, stream};
use spacetime_sync_tests::load::{Payload, Writer};

use crate::lane::hostile::{Module, column, log};

/// How soon a policy takes effect.
const SOON: Duration = Duration::from_secs(20);

/// A bridge that applies windows and reads the policy very often.
fn keeping(lane: &Lane) -> Bridge {
    let options = BridgeOptions {
        set: vec![
            ("retention.windows", "on".to_owned()),
            ("retention.every_ms", "100".to_owned()),
            ("retention.beat_ms", "50".to_owned()),
        ],
        ..BridgeOptions::default()
    };
    lane.bridge_with(&options).unwrap()
}

async fn policy(lane: &Lane, set: &str) {
    lane.sql(&format!(
        "update runtime.sync_retention set {set} where class = 'otherwise'"
    ))
    .await
    .unwrap();
}

async fn write(authority: &Authority, stream_id: &StreamId, events: u64) {
    let seed = events;
    let mut writer = Writer::new(authority, stream_id, &format!("w{seed}"), Payload::Fixed(100), seed);
    writer.append_all(events, 500).await.unwrap();
}

async fn held_until(lane: &Lane, stream_id: &StreamId, wanted: impl Fn(&HeldStream) -> bool) -> HeldStream {
    let link = lane.link().await.unwrap();
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let streams = link.streams(None).await.unwrap();
        let held = streams.into_iter().find(|held| held.stream_id == *stream_id);
        if let Some(held) = &held
            && wanted(held)
        {
            return held.clone();
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "the window did not become as expected, at last: {held:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn seq(value: u64) -> Seq {
    Seq::new(value).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_keeps_the_newest_events_and_follows_the_policy() {
    let lane = Lane::start().await.unwrap();
    let stream_id = stream(1);
    policy(&lane, "window_events = 2000").await;
    write(&lane.authority, &stream_id, 5_000).await;
    let bridge = keeping(&lane);
    let held = held_until(&lane, &stream_id, |held| {
        held.head.seq == seq(5_000) && held.oldest_seq > seq(2_000)
    })
    .await;
    // Only whole frames leave, so SpacetimeDB holds the window and up to a frame more.
    assert!(held.oldest_seq <= seq(3_001), "{held:?}");
    policy(&lane, "window_events = 10").await;
    held_until(&lane, &stream_id, |held| held.oldest_seq > seq(4_000)).await;
    // What remains is still the authority's log, and later events follow it.
    write(&lane.authority, &stream_id, 1_000).await;
    held_until(&lane, &stream_id, |held| held.head.seq == seq(6_000)).await;
    lane.verified().await;
    assert_eq!(bridge.stop().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_policy_delays_no_event() {
    let lane = Lane::start().await.unwrap();
    let stream_id = stream(1);
    policy(&lane, "window_events = 10").await;
    let more = "insert into runtime.sync_retention (class, stream_prefix, window_events, window_age)
        select 'more_' || n, 'more.' || n, 1, '1 day' from generate_series(1, 256) n";
    lane.sql(more).await.unwrap();
    write(&lane.authority, &stream_id, 2_000).await;
    let _bridge = keeping(&lane);
    let held = held_until(&lane, &stream_id, |held| held.head.seq == seq(2_000)).await;
    assert_eq!(held.oldest_seq, seq(1), "{held:?}");
    // The policy is applied as soon as it is valid.
    lane.sql("delete from runtime.sync_retention where class like 'more%'")
        .await
        .unwrap();
    held_until(&lane, &stream_id, |held| held.oldest_seq > seq(1_000)).await;
    lane.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_events_leave_the_window_and_the_log_continues_when_it_is_empty() {
    let lane = Lane::start().await.unwrap();
    let stream_id = stream(1);
    policy(&lane, "window_age = '1 second'").await;
    write(&lane.authority, &stream_id, 300).await;
    let _bridge = keeping(&lane);
    held_until(&lane, &stream_id, |held| {
        held.head.seq == seq(300) && held.oldest_seq == seq(301)
    })
    .await;
    policy(&lane, "window_age = '1 hour'").await;
    write(&lane.authority, &stream_id, 200).await;
    held_until(&lane, &stream_id, |held| {
        held.head.seq == seq(500) && held.oldest_seq == seq(301)
    })
    .await;
    lane.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_purges_by_policy_and_only_published_events() {
    let lane = Lane::start().await.unwrap();
    let stream_id = stream(1);
    policy(&lane, "window_events = 500, log_events = 1000").await;
    write(&lane.authority, &stream_id, 5_000).await;
    assert_eq!(lane.authority.purge(&stream_id, 1_000).await.unwrap(), 0);
    let chain = lane.authority.chain_at(&stream_id, seq(4_000)).await.unwrap();
    let _bridge = keeping(&lane);
    let deadline = tokio::time::Instant::now() + SOON;
    let extent = loop {
        let extent = lane.authority.extent(&stream_id).await.unwrap().unwrap();
        if extent.oldest_seq == seq(4_001) {
            break extent;
        }
        assert!(tokio::time::Instant::now() < deadline, "{extent:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // The chain hash at the floor outlives its event.
    assert_eq!(Some(extent.floor_chain), chain);
    assert_eq!(lane.authority.chain_at(&stream_id, seq(4_000)).await.unwrap(), chain);
    assert_eq!(lane.authority.chain_at(&stream_id, seq(3_999)).await.unwrap(), None);
    let page = lane
        .authority
        .read_events(&stream_id, seq(4_000), 10, 1_000_000)
        .await
        .unwrap();
    assert!(page[0].follows(&extent.floor_chain));
    // Nobody can delete events by hand.
    let refused = lane.sql("delete from runtime.sync_stream_events").await.unwrap_err();
    assert!(refused.to_string().contains("expected only inserts"), "{refused}");
    write(&lane.authority, &stream_id, 700).await;
    held_until(&lane, &stream_id, |held| held.head.seq == seq(5_700)).await;
    lane.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_spacetimedb_gets_its_windows_back_and_not_the_whole_log() {
    let lane = Lane::start().await.unwrap();
    let (long, short) = (stream(1), stream(2));
    policy(&lane, "window_events = 1000, log_events = 2000").await;
    write(&lane.authority, &long, 5_000).await;
    write(&lane.authority, &short, 300).await;
    let bridge = keeping(&lane);
    assert!(lane.published(SOON).await);
    assert_eq!(bridge.stop().await.unwrap(), 0);
    lane.publish(Breaking::DeleteData).await.unwrap();
    let _bridge = keeping(&lane);
    let held = held_until(&lane, &long, |held| held.head.seq == seq(5_000)).await;
    assert!(held.oldest_seq >= seq(4_001), "{held:?}");
    let held = held_until(&lane, &short, |held| held.head.seq == seq(300)).await;
    assert_eq!(held.oldest_seq, seq(1));
    lane.verified().await;
}

#[tokio::test]
async fn an_empty_window_ages_from_its_first_event_on() {
    let module = Module::start().await;
    let id = stream(1);
    let events = log(&id, 7, 1);
    // As after a wipe: SpacetimeDB holds nothing of what the authority has purged.
    let begun = json!([
        id.as_str(),
        5,
        column(&events[4].chain_hash),
        "",
        0,
        column(&ChainHash::genesis(&id))
    ]);
    module.call(Some(&module.bridge), "rewind_stream", &begun).await.done();
    let class =
        json!([[{ "class": "c", "stream_prefix": "", "window_events": 9, "window_age": 1, "durable_reads": true }]]);
    module.call(Some(&module.owner), "set_retention", &class).await.done();
    for number in [5, 6] {
        let (event, base) = (&events[number..=number], &events[number - 1].chain_hash);
        module.append(&id, event, base).await.done();
        let left = format!("SELECT oldest_seq FROM sync_head WHERE oldest_seq = {}", number + 2);
        let deadline = tokio::time::Instant::now() + SOON;
        while module.sql(Some(&module.owner), &left).await.unwrap().is_empty() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "event {} never leaves the window",
                number + 1
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
