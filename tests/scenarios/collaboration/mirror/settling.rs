//! What relays said is recorded, whoever records it, and given up when a person says so.

use spacetime_sync_authority::{Attempt, Delivery, OutboxState, Outcome};
use spacetime_sync_tests::lane::wait_for;
use spacetime_sync_tests::port;
use spacetime_sync_tests::relays::{OddRelay, RealRelay, Treats};

use super::*;

/// How many entries two mirrors settle at once.
const ENTRIES: usize = 200;

fn accepted(due: Vec<Delivery>) -> Vec<Outcome> {
    let outcome = |delivery: Delivery| Outcome {
        event_id: delivery.entry.event_id,
        attempt: Attempt::Accepted,
    };
    due.into_iter().map(outcome).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_mirrors_that_settle_at_once_each_sees_what_the_other_has_recorded() {
    let stage = Stage::new().await;
    // Nobody is there: the test says what they said.
    let relays = [port::free().unwrap(), port::free().unwrap()].map(|address| format!("ws://{address}"));
    stage.receipts("s", &[], &relays, None).await;
    stage.append("s", "step", ENTRIES).await;
    let reading = stage.start(&[]);
    stage.until("pending", ENTRIES).await;
    reading.process.kill();
    let settle = async |relay: &str, authority: Authority| {
        let due = authority.outbox_due(relay, ENTRIES).await.unwrap();
        assert_eq!(due.len(), ENTRIES);
        // In another order each time, so that both are about the same entries at the same moment.
        let mut outcomes = accepted(due);
        if relay == relays[1] {
            outcomes.reverse();
        }
        let mut settled = Vec::new();
        for some in outcomes.chunks(8) {
            settled.extend(authority.outbox_settle(relay, some).await.unwrap());
        }
        settled
    };
    let another = || async { Authority::connect(stage.database.url(), 1).await.unwrap() };
    // One of the two relays is settled by two mirrors, of which one has lost the lead.
    let (first, second, third) = (another().await, another().await, another().await);
    let (first, second, third) = tokio::join!(
        settle(&relays[0], first),
        settle(&relays[1], second),
        settle(&relays[1], third)
    );
    let mut settled: Vec<String> = [first, second, third]
        .concat()
        .into_iter()
        .map(|(event_id, state)| {
            assert_eq!(state, OutboxState::Sent);
            event_id
        })
        .collect();
    settled.sort();
    settled.dedup();
    assert_eq!((settled.len(), stage.count("sent").await), (ENTRIES, ENTRIES));
    let attempts: Vec<(String, i32)> =
        sqlx::query_as("select status, attempts from runtime.sync_outbox_deliveries group by status, attempts")
            .fetch_all(&mut stage.owner().await)
            .await
            .unwrap();
    assert_eq!(attempts, [("accepted".to_owned(), 1)], "each outcome counts once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_never_comes_back_is_given_up_on_record_and_holds_nothing_up() {
    let stage = Stage::new().await;
    let (real, refusing) = (
        RealRelay::start().await.unwrap(),
        OddRelay::start(Treats::Refusing("invalid: no")).await.unwrap(),
    );
    let gone = format!("ws://me:hunter2@{}/?token=hunter3", port::free().unwrap());
    // With another relay; with one that has refused, so that none is left of two; and with none.
    stage.receipts("a", &[], &[real.url(), gone.clone()], None).await;
    stage
        .receipts("b", &[], &[real.url(), refusing.url(), gone.clone()], Some(2))
        .await;
    stage.receipts("c", &[], std::slice::from_ref(&gone), None).await;
    for stream in ["a", "b", "c"] {
        stage.append(stream, "step", 3).await;
    }
    let mirror = stage.start(&[("pending", "9")]);
    mirror.until("outbox_depth", SOON, |depth| depth == 9).await;
    mirror
        .until("failures_total{kind=\"validation\"}", SOON, |count| count == 3)
        .await;
    wait_for(SOON, "the other relay has what it is to have", async || {
        real.received.ids().len() == 6
    })
    .await;
    let (refused, said) = stage.outbox(&["give-up", "wss://elsewhere.example"]);
    assert!(
        !refused && said.contains("expected a relay that something waits for"),
        "{said}"
    );
    let (done, said) = stage.outbox(&["give-up", &gone]);
    assert!(done && said.contains("9 entries do not wait for"), "{said}");
    assert_eq!(said.matches("still names it").count(), 3, "{said}");
    assert!(!said.contains("hunter"), "{said}");
    stage.until("pending", 0).await;
    stage.until("sent", 3).await;
    stage.until("parked", 3).await;
    stage.until("dropped", 3).await;
    let acts: Vec<(String, String, String, String)> = sqlx::query_as(
        "select act, subject, actor, detail from runtime.sync_audit where act = 'give_up_relay' order by id",
    )
    .fetch_all(&mut stage.owner().await)
    .await
    .unwrap();
    let [(_, subject, actor, detail)] = acts.as_slice() else {
        panic!("{acts:?}");
    };
    assert!(
        subject.starts_with("relay:ws://…@127.0.0.1:") && subject.ends_with("/?…"),
        "{subject}"
    );
    assert_eq!(
        (actor.as_str(), detail.as_str()),
        ("operator:ada", "9 entries: 3 dropped, 3 parked, 3 sent")
    );
    // The streams go on.
    stage.append("a", "step", 1).await;
    wait_for(SOON, "what is new is heard", async || real.received.ids().len() == 7).await;
}
