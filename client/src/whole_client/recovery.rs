//! What the whole client does when SpacetimeDB does not continue what was applied: whom it asks, and what its status
//! shows.

use super::*;
use crate::{History, StaleAnswer, WithoutDocument};

/// A client whose token carries the number of the request, and that asks the authority at the fake host.
async fn run(host: &FakeHost, on_stale: StaleAnswer) -> Run {
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let provider = move |_: WantedToken| {
        let mut count = count.lock().unwrap();
        *count += 1;
        std::future::ready(Ok(AccessToken::new(token(*count), Duration::from_secs(60))))
    };
    let at = host.uri.clone();
    Run::configured(host, Credential::provider(provider), asked, move |config| {
        config.history = History::At(at);
        config.on_stale = on_stale;
        config.limits.verify_every = Duration::from_millis(300);
    })
    .await
}

fn rung(status: &Status) -> Option<&'static str> {
    match &status.streams[&stream()].phase {
        StreamPhase::Recovering { rung, .. } => Some(rung.code()),
        _ => None,
    }
}

fn stopped(status: &Status) -> Option<&'static str> {
    match &status.streams[&stream()].phase {
        StreamPhase::Stopped { reason } => Some(reason.code()),
        _ => None,
    }
}

impl Run {
    fn seqs(&self) -> Vec<u64> {
        self.applied.lock().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_before_the_window_come_from_the_authority_with_the_same_token() {
    let host = FakeHost::start(80).await;
    host.hold_after(65);
    let run = run(&host, StaleAnswer::Stop).await;
    run.until("live", |status| status.phase == Phase::Live).await;
    assert_eq!(run.seqs(), (1..=80).collect::<Vec<_>>());
    let asked = host.seen().histories;
    assert_eq!(asked.len(), 7, "ten events at a time: {asked:?}");
    assert!(asked.iter().all(|(by, _)| *by == token(1)), "{asked:?}");
    host.append();
    run.until("the next", |status| status.streams[&stream()].applied.seq.get() == 81)
        .await;
    assert_eq!(run.seqs(), (1..=81).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_waits_while_a_wiped_spacetimedb_is_refilled() {
    let host = FakeHost::start(40).await;
    let run = run(&host, StaleAnswer::Stop).await;
    run.until("live", |status| status.phase == Phase::Live).await;
    host.hold(0, 0);
    run.until("waits", |status| rung(status) == Some("await_lane")).await;
    host.hold(20, 25);
    run.until("still waits", |status| {
        let attempt = match &status.streams[&stream()].phase {
            StreamPhase::Recovering { attempt, .. } => *attempt,
            _ => 0,
        };
        attempt >= 3
    })
    .await;
    host.append();
    host.hold_after(20);
    run.until("live again", |status| {
        status.phase == Phase::Live && status.streams[&stream()].applied.seq.get() == 41
    })
    .await;
    assert_eq!(run.seqs(), (1..=41).collect::<Vec<_>>());
    assert_eq!(run.begun.lock().unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_cursor_has_the_answer_that_was_chosen() {
    let gone = || async {
        let host = FakeHost::start(80).await;
        host.purge(50);
        host.hold_after(70);
        host
    };
    let host = gone().await;
    let stops = run(&host, StaleAnswer::Stop).await;
    let status = stops.until("stops", |status| stopped(status).is_some()).await;
    assert_eq!(
        (stopped(&status), status.counters.stale_cursors),
        (Some("stale_cursor"), 1)
    );
    assert!(stops.seqs().is_empty());

    let restarts = run(&host, StaleAnswer::Restart).await;
    restarts.until("live", |status| status.phase == Phase::Live).await;
    assert_eq!(*restarts.begun.lock().unwrap(), [(50, None)]);
    assert_eq!(restarts.seqs(), (51..=80).collect::<Vec<_>>());

    let without = run(&host, StaleAnswer::Rebootstrap(WithoutDocument::Restart)).await;
    without.until("live", |status| status.phase == Phase::Live).await;
    assert_eq!(*without.begun.lock().unwrap(), [(50, None)]);

    host.put_document(60, false);
    let bootstraps = run(&host, StaleAnswer::Rebootstrap(WithoutDocument::Stop)).await;
    let status = bootstraps.until("live", |status| status.phase == Phase::Live).await;
    assert_eq!(*bootstraps.begun.lock().unwrap(), [(60, Some("doc".to_owned()))]);
    assert_eq!(bootstraps.seqs(), (61..=80).collect::<Vec<_>>());
    assert_eq!((status.counters.rebootstraps, status.counters.restarts), (1, 0));

    host.put_document(60, true);
    let altered = run(&host, StaleAnswer::Rebootstrap(WithoutDocument::Stop)).await;
    let status = altered.until("stops", |status| stopped(status).is_some()).await;
    assert_eq!(stopped(&status), Some("payload_mismatch"));
    assert_eq!(altered.begun.lock().unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_authority_is_asked_again_and_a_token_it_rejects_is_replaced() {
    let host = FakeHost::start(30).await;
    host.hold_after(20);
    host.do_not_serve(503, 3);
    let run = run(&host, StaleAnswer::Stop).await;
    run.until("live", |status| status.phase == Phase::Live).await;
    assert_eq!(run.seqs(), (1..=30).collect::<Vec<_>>());

    let host = FakeHost::start(30).await;
    host.hold_after(20);
    host.do_not_serve(401, 1_000);
    let run = self::run(&host, StaleAnswer::Stop).await;
    let deadline = tokio::time::Instant::now() + SECONDS;
    while *run.asked.lock().unwrap() < 2 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the client asked for no other token in time"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    host.do_not_serve(401, 0);
    run.until("live", |status| status.phase == Phase::Live).await;
    assert_eq!(run.seqs(), (1..=30).collect::<Vec<_>>());

    let host = FakeHost::start(30).await;
    host.hold_after(20);
    host.do_not_serve(403, 1_000);
    let run = self::run(&host, StaleAnswer::Stop).await;
    run.until("forbidden", |status| {
        matches!(status.streams[&stream()].phase, StreamPhase::Forbidden { .. })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_authority_to_ask_a_stream_stops_and_says_what_to_configure() {
    let host = FakeHost::start(30).await;
    host.hold_after(20);
    let run = Run::start(&host, &[]).await;
    let status = run.until("stops", |status| stopped(status).is_some()).await;
    let StreamPhase::Stopped { reason } = &status.streams[&stream()].phase else {
        panic!("not stopped");
    };
    assert_eq!(reason.code(), "below_window");
    assert!(reason.to_string().contains("`history`"), "{reason}");
}
