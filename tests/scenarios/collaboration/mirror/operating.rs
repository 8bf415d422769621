//! What an operator sees and does.

use spacetime_sync_tests::relays::{OddRelay, RealRelay, Treats};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_is_parked_and_retries_or_drops_it_on_record() {
    let stage = Stage::new().await;
    let relay = OddRelay::start(Treats::Refusing("blocked: not you")).await.unwrap();
    stage.receipts("s", &[], &[relay.url()], None).await;
    stage.append("s", "step", 3).await;
    let mirror = stage.start(&[]);
    stage.until("parked", 3).await;
    mirror.until("outbox_parked", SOON, |parked| parked == 3).await;
    let (listed, said) = stage.outbox(&["list"]);
    let names: Vec<String> = said
        .lines()
        .filter(|line| line.starts_with("receipt_ptr.v1:"))
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert!(listed && names.len() == 3, "{said}");
    assert!(
        said.contains("parked") && said.contains("validation") && said.contains("blocked: not you"),
        "{said}"
    );
    let (done, said) = stage.outbox(&["drop", &names[0]]);
    assert!(done && said.contains("is dropped"), "{said}");
    let (done, said) = stage.outbox(&["drop", &names[0]]);
    assert!(
        !done && said.contains("expected entries") && said.contains(&names[0]),
        "{said}"
    );
    relay.treat(Treats::Honestly);
    let (done, said) = stage.outbox(&["retry", "--all-parked"]);
    assert!(done && said.matches("is published again").count() == 2, "{said}");
    stage.until("sent", 2).await;
    let (listed, said) = stage.outbox(&["list", "--sent"]);
    assert!(
        listed && said.contains(&names[1]) && !said.contains(&names[0]),
        "{said}"
    );
    let acts: Vec<(String, String, String)> =
        sqlx::query_as("select act, subject, actor from runtime.sync_audit where act like '%outbox' order by id")
            .fetch_all(&mut stage.owner().await)
            .await
            .unwrap();
    let acts: Vec<_> = acts
        .iter()
        .map(|(act, subject, actor)| (act.as_str(), subject.as_str(), actor.as_str()))
        .collect();
    assert_eq!(
        acts[0],
        ("drop_outbox", format!("outbox:{}", names[0]).as_str(), "operator:ada")
    );
    assert_eq!(acts.len(), 3);
    assert!(
        acts[1..]
            .iter()
            .all(|(act, _, actor)| (*act, *actor) == ("retry_outbox", "operator:ada"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_and_what_is_parked_is_forgotten_oldest_first() {
    let stage = Stage::new().await;
    let (good, bad) = (
        RealRelay::start().await.unwrap(),
        OddRelay::start(Treats::Refusing("invalid: no")).await.unwrap(),
    );
    stage.receipts("s", &[], &[good.url()], None).await;
    stage.receipts("t", &[], &[bad.url()], None).await;
    let mirror = stage.start(&[("sent", "5"), ("parked", "3")]);
    stage.append("s", "step", 20).await;
    stage.append("t", "step", 10).await;
    mirror.until("published_total", SOON, |count| count == 20).await;
    mirror.until("parked_total", SOON, |count| count == 10).await;
    stage.until("sent", 5).await;
    stage.until("parked", 3).await;
    mirror.until("parked_forgotten_total", SOON, |count| count == 7).await;
    // What is forgotten does not come again.
    stage.append("s", "step", 1).await;
    mirror.until("published_total", SOON, |count| count == 21).await;
    assert!(good.received.ids().values().all(|ids| ids.len() == 1));
    assert_eq!(good.received.all().len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_another_key_is_parked_until_the_mirror_has_that_key() {
    let stage = Stage::new().await;
    let relay = RealRelay::start().await.unwrap();
    stage.receipts("s", &[], &[relay.url()], None).await;
    sqlx::query(
        "insert into runtime.sync_outbox (event_id, policy_id, source, nostr_kind, schema, d_tag, content, created_at_s, author,
             published_as, quorum)
         values ('x', 'p', 'events', 30078, 'openagents.bridge.receipt_ptr.v1', 'd', '{}', 1,
             '79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798', repeat('0', 64), 1)",
    )
    .execute(&mut stage.owner().await)
    .await
    .unwrap();
    sqlx::query("insert into runtime.sync_outbox_deliveries (event_id, relay) values ('x', $1)")
        .bind(relay.url())
        .execute(&mut stage.owner().await)
        .await
        .unwrap();
    stage.append("s", "step", 1).await;
    let _mirror = stage.start(&[]);
    stage.until("sent", 1).await;
    stage.until("parked", 1).await;
    let (_, said) = stage.outbox(&["list"]);
    assert!(said.contains(" key another key is its author"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_leads_to_plaintext_elsewhere_has_no_effect() {
    let stage = Stage::new().await;
    let relay = RealRelay::start().await.unwrap();
    stage
        .receipts("s", &[], &[relay.url(), "ws://10.0.0.1:1".to_owned()], Some(1))
        .await;
    stage.receipts("t", &[], &[relay.url()], None).await;
    stage.append("s", "step", 1).await;
    stage.append("t", "step", 1).await;
    let mirror = stage.start(&[]);
    stage.until("sent", 1).await;
    mirror.until("bad_policies", SOON, |count| count == 1).await;
    assert!(relay.received.ids().contains_key("t:1") && relay.received.ids().len() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_credential_of_a_relays_address_is_shown_and_a_relay_that_nobody_names_is_forgotten() {
    let stage = Stage::new().await;
    let relay = OddRelay::start(Treats::Refusing("invalid: no hunter3 for me"))
        .await
        .unwrap();
    let authority = relay.url().replace("ws://", "");
    let with_credentials = format!("ws://me:hunter2@{authority}/?token=hunter3");
    let (down, real) = (
        spacetime_sync_tests::port::free().unwrap(),
        RealRelay::start().await.unwrap(),
    );
    let unreached = format!("ws://hunter2@{down}");
    stage.receipts("s", &[], &[with_credentials, unreached], None).await;
    stage.receipts("t", &[], &[real.url()], None).await;
    stage.append("s", "step", 3).await;
    stage.append("t", "step", 3).await;
    let mirror = stage.start(&[]);
    let reached = |shown: &str| format!("relay_reached{{relay=\"{shown}\"}}");
    let (refuses, gone) = (format!("ws://…@{authority}/?…"), format!("ws://…@{down}"));
    mirror.until(&reached(&refuses), SOON, |reached| reached == 1).await;
    mirror.until(&reached(&gone), SOON, |reached| reached == 0).await;
    stage.until("parked", 3).await;
    let (listed, list) = stage.outbox(&["list"]);
    assert!(
        listed && list.contains(&format!("{refuses} failed 1 validation invalid: no … for me")),
        "{list}"
    );
    let (_, health) = mirror.ask("/healthz").await.unwrap();
    let log = mirror.process.log();
    assert!(log.contains(&refuses), "{log}");
    for shown in [&list, &health.to_string(), &log] {
        assert!(!shown.contains("hunter"), "{shown}");
    }
    // Whatever waits for a relay keeps it known, and what is named does.
    for sql in [
        "delete from runtime.sync_mirror_policy where pattern = 's'",
        "delete from runtime.sync_outbox_deliveries where relay like '%@%'",
    ] {
        sqlx::query(sql).execute(&mut stage.owner().await).await.unwrap();
    }
    spacetime_sync_tests::lane::wait_for(SOON, "the relays are forgotten", async || {
        let (_, health) = mirror.ask("/healthz").await.unwrap();
        let relays = health["relays"].as_object().unwrap();
        relays.len() == 1 && relays.contains_key(&real.url())
    })
    .await;
}
