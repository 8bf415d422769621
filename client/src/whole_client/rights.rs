//! The presence of a session, what it may read, and how early.

use super::*;

fn said(status: &str, node: &str) -> (String, String, String) {
    ("s1".to_owned(), node.to_owned(), status.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_is_announced_on_every_connection_until_the_session_leaves() {
    let host = FakeHost::start(5).await;
    let run = Run::start(&host, &[Give::Token(600, 20_000)]).await;
    let handle = run.client.presence(Presence::online("desk")).unwrap();
    let mut seen = run.client.presences(&[]).unwrap();
    let found = timeout(SECONDS, seen.wait_for(|seen| !seen.rows.is_empty())).await;
    let (key, one) = found
        .unwrap()
        .unwrap()
        .rows
        .iter()
        .next()
        .map(|(k, v)| (k.clone(), v.clone()))
        .unwrap();
    assert_eq!((key.session_id.as_str(), key.node_id.as_str()), ("s1", "desk"));
    assert_eq!((one.status, one.reason), (PresenceStatus::Online, None));

    // A new connection repeats the presence at once.
    run.until("a refresh", |status| status.counters.refreshes == 1).await;
    run.until("a heartbeat", |status| status.counters.heartbeats == 2).await;
    let busy = Presence {
        status: PresenceStatus::Busy,
        ..Presence::online("desk")
    };
    handle.update(busy).unwrap();
    let is_busy = |seen: &Watched<Presences>| seen.rows.values().all(|one| one.status == PresenceStatus::Busy);
    timeout(SECONDS, seen.wait_for(is_busy)).await.unwrap().unwrap();

    handle.clear();
    let is_gone = |seen: &Watched<Presences>| {
        seen.rows
            .values()
            .all(|one| one.reason == Some(OfflineReason::Explicit))
    };
    timeout(SECONDS, seen.wait_for(is_gone)).await.unwrap().unwrap();
    let expected = ["online", "online", "busy", "offline"].map(|status| said(status, "desk"));
    assert_eq!(host.seen().said, expected);

    let _handle = run.client.presence(Presence::online("couch")).unwrap();
    run.until("a heartbeat", |status| status.counters.heartbeats == 5).await;
    run.end().await;
    assert_eq!(
        host.seen().said[4..],
        ["online", "offline"].map(|status| said(status, "couch"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_loses_a_grant_asks_the_issuer_why() {
    let host = FakeHost::start(5).await;
    let revoked = Give::No(TokenError::refused(RefusalCode::TokenRevoked, "revoked"));
    let run = Run::start(&host, &[Give::Token(60_000, 80_000), revoked]).await;
    run.until_live().await;
    host.take_grant(&token(1));
    assert_eq!(run.stopped().await.refusal(), Some(RefusalCode::TokenRevoked));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ended_by_spacetimedbs_clock_returns_with_a_new_token() {
    let host = FakeHost::start(5).await;
    let run = Run::start(&host, &[]).await;
    run.until_live().await;
    host.take_grant(&token(1));
    run.until("forbidden", |status| {
        matches!(status.streams[&stream()].phase, StreamPhase::Forbidden { .. })
    })
    .await;
    host.append();
    let (status, _) = run.end().await;
    assert_eq!((status.counters.refreshes, status.counters.reconnects), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_client_that_asks_for_it_reads_early() {
    for (reads, allowed, confirmed) in [
        (Reads::Confirmed, false, true),
        (Reads::Confirmed, true, true),
        (Reads::Early, true, false),
    ] {
        let host = FakeHost::start(5).await;
        host.allow_early_reads(allowed);
        let run = Run::reading(reads, &host, Credential::Anonymous, Arc::default()).await;
        run.until_live().await;
        host.append();
        run.end().await;
        assert_eq!(host.seen().confirmed, [confirmed], "{reads:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_must_be_durable_is_applied_early() {
    let host = FakeHost::start(5).await;
    let run = Run::reading(Reads::Early, &host, Credential::Anonymous, Arc::default()).await;
    assert_eq!(run.stopped().await, StopReason::EveryStreamStopped);
    let status = run.client.status().borrow().clone();
    let reason = StreamStop::DurableReads;
    assert_eq!(status.streams[&stream()].phase, StreamPhase::Stopped { reason });
    assert_eq!(*run.applied.lock().unwrap(), [0_u64; 0]);
}
