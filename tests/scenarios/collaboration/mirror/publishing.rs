//! What is committed is published: once, as the same event each time, and nothing of its payload.

use std::collections::BTreeMap;

use nostr::JsonUtil as _;
use spacetime_sync_tests::lane::wait;
use spacetime_sync_tests::mirror::AUTHOR;
use spacetime_sync_tests::relays::RealRelay;

use super::*;

/// Asserts that a relay was only ever told of these things, each as one event of the mirror's key.
#[track_caller]
fn heard(relay: &RealRelay, expected: &BTreeMap<&str, std::ops::RangeInclusive<u64>>) {
    let ids = relay.received.ids();
    let names = expected
        .iter()
        .flat_map(|(stream, seqs)| seqs.clone().map(move |seq| format!("{stream}:{seq}")));
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(ids.keys().cloned().collect::<Vec<_>>(), names);
    for (name, ids) in ids {
        assert_eq!(ids.len(), 1, "{name} is {ids:?}");
    }
    for event in relay.received.all() {
        event.verify().unwrap();
        assert_eq!(event.pubkey.to_hex(), AUTHOR);
        assert_eq!(event.kind.as_u16(), 30_078);
        let json = event.as_json();
        assert!(
            json.contains("openagents.bridge.receipt_ptr.v1") && !json.contains(SECRET),
            "{json}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_relay_hears_of_each_event_that_the_policy_names() {
    let stage = Stage::new().await;
    let (first, second) = (RealRelay::start().await.unwrap(), RealRelay::start().await.unwrap());
    stage.append("runtime.run.1.events", "step", 3).await;
    stage
        .receipts("runtime.run.*", &["step"], &[first.url(), second.url()], None)
        .await;
    let mirror = stage.start(&[]);
    stage.until("sent", 3).await;
    // Another stream, other kinds, and more than one pass.
    stage.append("runtime.run.2.events", "step", 600).await;
    stage.append("runtime.run.1.events", "other", 2).await;
    stage.append("runtime.run.1.events", "step", 1).await;
    stage.append("elsewhere", "step", 5).await;
    stage.until("sent", 604).await;
    for relay in [&first, &second] {
        let mut all: BTreeMap<_, _> = relay.received.ids();
        // The one after those of another kind.
        assert_eq!(all.remove("runtime.run.1.events:6").map(|ids| ids.len()), Some(1));
        assert_eq!(all.len(), 603);
        assert!(all.values().all(|ids| ids.len() == 1));
        assert!(all.contains_key("runtime.run.1.events:3") && all.contains_key("runtime.run.2.events:600"));
    }
    assert_eq!(mirror.metric("published_total").await, Some(604));
    assert_eq!(mirror.metric("missed_events_total").await, Some(0));
    assert_eq!(mirror.stop().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_never_publishes_another_event_for_the_same_thing() {
    let stage = Stage::new().await;
    let (first, second) = (RealRelay::start().await.unwrap(), RealRelay::start().await.unwrap());
    stage.receipts("s", &[], &[first.url(), second.url()], None).await;
    let mut appended = 0;
    for round in 0..12_usize {
        stage.append("s", "step", 40).await;
        appended += 40;
        let mirror = stage.start(&[]);
        // The more is heard before the kill, the later in the round it comes.
        let before = first.received.all().len();
        let more = round * 3;
        wait(SOON, "the relay hears more", || {
            first.received.all().len() >= before + more
        })
        .await;
        mirror.process.kill();
    }
    let mirror = stage.start(&[]);
    stage.until("sent", appended).await;
    let expected = BTreeMap::from([("s", 1..=appended as u64)]);
    heard(&first, &expected);
    heard(&second, &expected);
    assert_eq!(mirror.stop().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_mirrors_one_works_and_the_other_takes_over() {
    let stage = Stage::new().await;
    let relay = RealRelay::start().await.unwrap();
    stage.receipts("s", &[], &[relay.url()], None).await;
    let first = stage.start(&[]);
    first.until("leading", SOON, |leading| leading == 1).await;
    let second = stage.start(&[]);
    stage.append("s", "step", 10).await;
    stage.until("sent", 10).await;
    assert_eq!(second.metric("leading").await, Some(0));
    assert!(!second.ask("/readyz").await.unwrap().0 && second.ask("/healthz").await.unwrap().0);
    first.process.kill();
    second.until("leading", SOON, |leading| leading == 1).await;
    stage.append("s", "step", 10).await;
    stage.until("sent", 20).await;
    heard(&relay, &BTreeMap::from([("s", 1..=20)]));
    assert_eq!(second.metric("published_total").await, Some(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_comes_later_begins_with_the_oldest_event_there_is() {
    let stage = Stage::new().await;
    let relay = RealRelay::start().await.unwrap();
    stage.append("s", "step", 5).await;
    stage.append("t", "step", 5).await;
    stage.receipts("s", &[], &[relay.url()], None).await;
    let mirror = stage.start(&[]);
    stage.until("sent", 5).await;
    stage.receipts("t", &[], &[relay.url()], None).await;
    stage.until("sent", 10).await;
    heard(&relay, &BTreeMap::from([("s", 1..=5), ("t", 1..=5)]));
    assert_eq!(mirror.stop().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relays_of_each_policy_that_names_an_event_have_it_as_the_same_one() {
    let stage = Stage::new().await;
    let (first, second) = (RealRelay::start().await.unwrap(), RealRelay::start().await.unwrap());
    stage.receipts("s.*", &[], &[first.url()], None).await;
    stage.append("s.1", "step", 5).await;
    let mirror = stage.start(&[]);
    stage.until("sent", 5).await;
    // This one comes when everything is sent, and what comes next is named by both.
    stage.receipts("s.1", &[], &[second.url(), first.url()], None).await;
    wait(SOON, "the relay of the later policy has all", || {
        second.received.ids().len() == 5
    })
    .await;
    stage.append("s.1", "step", 5).await;
    wait(SOON, "both have all", || {
        first.received.ids().len() == 10 && second.received.ids().len() == 10
    })
    .await;
    stage.until("sent", 10).await;
    let expected = BTreeMap::from([("s.1", 1..=10)]);
    heard(&first, &expected);
    heard(&second, &expected);
    let open: i64 =
        sqlx::query_scalar("select count(*) from runtime.sync_outbox_deliveries where status <> 'accepted'")
            .fetch_one(&mut stage.owner().await)
            .await
            .unwrap();
    assert_eq!(open, 0);
    // Each entry is written once.
    assert_eq!(mirror.metric("enqueued_total").await, Some(10));
    assert_eq!(mirror.stop().await.unwrap(), 0);
}
