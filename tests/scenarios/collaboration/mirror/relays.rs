//! Relays that are down, slow, or lie: an entry waits for its relay, and nothing waits for the entry.

use spacetime_sync_tests::mirror::Mirror;
use spacetime_sync_tests::port;
use spacetime_sync_tests::relays::{OddRelay, RealRelay, Treats};

use super::*;

/// A relay that treats everybody oddly, beside a real one. The real one has everything; what the odd one lacks is parked, with
/// this kind of failure; and once it is honest, an operator has it published.
async fn odd_beside_a_real_one(treats: Treats, kind: &str) {
    let stage = Stage::new().await;
    let (real, odd) = (
        RealRelay::start().await.unwrap(),
        OddRelay::start(treats.clone()).await.unwrap(),
    );
    stage.receipts("s", &[], &[real.url(), odd.url()], None).await;
    stage.append("s", "step", 3).await;
    let mirror = stage.start(&[("attempts", "3"), ("relay_deadline_ms", "300")]);
    stage.until("parked", 3).await;
    assert_eq!(real.received.ids().len(), 3, "{treats:?}");
    for (relay, status, attempts, failure) in stage.failures().await {
        let at_odd = relay == odd.url();
        let expected = if at_odd { ("failed", kind) } else { ("accepted", "") };
        assert_eq!((status.as_str(), failure.as_str()), expected, "{treats:?} at {relay}");
        assert!(!at_odd || attempts == 3, "{attempts} attempts");
    }
    let failing = format!("outbox_failing{{kind=\"{kind}\"}}");
    mirror.until(&failing, SOON, |failing| failing == 3).await;
    odd.treat(Treats::Honestly);
    stage.retry_all().await;
    stage.until("sent", 3).await;
    let ids = odd.received.ids();
    assert!(ids.len() == 3 && ids.values().all(|ids| ids.len() == 1), "{ids:?}");
    assert_eq!(ids, real.received.ids());
}

impl Stage {
    async fn retry_all(&self) {
        let parked =
            "select runtime.sync_retry_outbox(array(select event_id from runtime.sync_outbox), 'operator', null)";
        sqlx::query(parked).execute(&mut self.owner().await).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_takes_an_event_and_forgets_it_does_not_count() {
    odd_beside_a_real_one(Treats::Forgets, "forgotten").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_about_another_event_does_not_count() {
    odd_beside_a_real_one(Treats::OfAnother, "network").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_no_answer() {
    odd_beside_a_real_one(Treats::Garbage, "network").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_long_is_no_answer() {
    odd_beside_a_real_one(Treats::Flood, "network").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_within_the_answer_is_no_answer() {
    odd_beside_a_real_one(Treats::MidFrame, "network").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_never_answers_is_given_up() {
    odd_beside_a_real_one(Treats::Silently, "network").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_has_too_much_to_do_is_tried_again() {
    odd_beside_a_real_one(Treats::Refusing("rate-limited: slow down"), "rate_limited").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_refuses_for_good_is_parked_at_once_and_alone() {
    let stage = Stage::new().await;
    let refusing = Treats::RefusingOne("s:2".to_owned(), "invalid: I do not like it");
    let relay = OddRelay::start(refusing).await.unwrap();
    stage.receipts("s", &[], &[relay.url()], None).await;
    stage.append("s", "step", 5).await;
    let mirror = stage.start(&[]);
    stage.until("sent", 4).await;
    stage.until("parked", 1).await;
    let tried = relay.received.all();
    let tried = tried.iter().filter(|event| event.tags.identifier() == Some("s:2"));
    assert_eq!(tried.count(), 1);
    mirror
        .until("failures_total{kind=\"validation\"}", SOON, |count| count == 1)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_over_which_a_relay_breaks_the_connection_fails_alone() {
    let stage = Stage::new().await;
    let relay = OddRelay::start(Treats::BreakingOver("s:7".to_owned())).await.unwrap();
    stage.receipts("s", &[], &[relay.url()], None).await;
    stage.append("s", "step", 40).await;
    let _mirror = stage.start(&[("attempts", "6")]);
    stage.until("sent", 39).await;
    stage.until("parked", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_down_costs_no_entry_an_attempt_and_no_other_relay_a_moment() {
    let stage = Stage::new().await;
    let (real, unheard) = (
        RealRelay::start().await.unwrap(),
        OddRelay::start(Treats::NoHandshake).await.unwrap(),
    );
    let down = port::free().unwrap();
    let relays = [real.url(), unheard.url(), format!("ws://{down}")];
    stage.receipts("s", &[], &relays, Some(1)).await;
    stage.append("s", "step", 30).await;
    let mirror: Mirror = stage.start(&[("attempts", "2"), ("relay_deadline_ms", "300")]);
    // One relay is enough for this policy.
    stage.until("sent", 30).await;
    mirror.until("unreached_total", SOON, |count| count > 6).await;
    assert_eq!(stage.count("parked").await, 0);
    let back = RealRelay::start_at(down).await.unwrap();
    spacetime_sync_tests::lane::wait(SOON, "the relay that is back has all", || {
        back.received.ids().len() == 30
    })
    .await;
    assert_eq!(back.received.ids(), real.received.ids());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_outbox_stops_the_reading_and_goes_on_when_relays_are_back() {
    let stage = Stage::new().await;
    let down = port::free().unwrap();
    stage.receipts("s", &[], &[format!("ws://{down}")], None).await;
    stage.append("s", "step", 100).await;
    let mirror = stage.start(&[("pending", "10")]);
    mirror.until("outbox_depth", SOON, |depth| depth == 10).await;
    mirror.until("unreached_total", SOON, |count| count > 4).await;
    assert_eq!(stage.count("pending").await, 10);
    assert!(
        mirror.ask("/readyz").await.unwrap().0,
        "relays are no reason to be unready"
    );
    let relay = RealRelay::start_at(down).await.unwrap();
    stage.until("sent", 100).await;
    let ids = relay.received.ids();
    assert!(ids.len() == 100 && ids.values().all(|ids| ids.len() == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_relay_fills_the_share_of_its_policy_and_no_other_policy_waits() {
    let stage = Stage::new().await;
    let real = RealRelay::start().await.unwrap();
    let down = format!("ws://{}", port::free().unwrap());
    stage.receipts("dead.*", &[], &[down], None).await;
    stage.receipts("sound.*", &[], &[real.url()], None).await;
    stage.append("dead.1", "step", 100).await;
    let mirror = stage.start(&[("pending", "20")]);
    mirror.until("outbox_depth", SOON, |depth| depth == 10).await;
    // Many times its own share, while that of the other one is full.
    for round in 1..=3 {
        stage.append("sound.1", "step", 100).await;
        stage.append("dead.2", "step", 10).await;
        stage.until("sent", 100 * round).await;
    }
    assert_eq!(stage.count("pending").await, 10);
    let ids = real.received.ids();
    assert!(
        ids.len() == 300 && ids.keys().all(|name| name.starts_with("sound.1:")),
        "{ids:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_written_twice_is_one_relay() {
    let stage = Stage::new().await;
    let relay = RealRelay::start().await.unwrap();
    let written = [relay.url(), format!("{}/", relay.url()), format!("{}/#x", relay.url())];
    stage.receipts("s", &[], &written[..2], None).await;
    stage.receipts("t", &[], &written[2..], None).await;
    // As many as there are not: it has no effect.
    stage.receipts("u", &[], &written, Some(2)).await;
    for stream in ["s", "t", "u"] {
        stage.append(stream, "step", 5).await;
    }
    let mirror = stage.start(&[]);
    stage.until("sent", 10).await;
    mirror.until("bad_policies", SOON, |count| count == 1).await;
    assert_eq!(relay.received.all().len(), 10, "{:?}", relay.received.ids());
    let relays: Vec<String> = sqlx::query_scalar("select distinct relay from runtime.sync_outbox_deliveries")
        .fetch_all(&mut stage.owner().await)
        .await
        .unwrap();
    assert_eq!(relays, [relay.url()]);
}
