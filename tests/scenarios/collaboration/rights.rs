//! Which scopes the calls need, who gets them, and that whoever does not know them goes on as before.

use serde_json::json;
use spacetime_sync_proto::RefusalCode;
use spacetime_sync_tests::issuing::{Desk, Issuing, answer};
use spacetime_sync_tests::postgres::Cluster;

use super::{ASKS, PROVIDES, conflict, is};
use crate::access::guarded::Guarded;

#[tokio::test(flavor = "multi_thread")]
async fn each_call_needs_its_scope() {
    let guarded = Guarded::start().await;
    let asks = guarded.scoped("7", "asks", ASKS);
    let one = guarded.provider("8", "one", "p1").await;
    guarded.open(&asks, "r1", "", "{}", 600).await.done();
    let missing = RefusalCode::MissingScope;
    // A token from before these scopes.
    let old = guarded.session("7", "old", &["user:7:*"]);
    guarded.publish(&old, "p7", "gpu", 1, "{}", 600).await.refused(missing);
    guarded.open(&old, "r2", "", "{}", 600).await.refused(missing);
    guarded.update(&old, "r1", 1, "cancelled", "").await.refused(missing);
    guarded.update(&old, "r9", 1, "cancelled", "").await.refused(missing);
    guarded.publish(&asks, "p7", "gpu", 1, "{}", 600).await.refused(missing);
    guarded.open(&one, "r2", "", "{}", 600).await.refused(missing);
    // Users are parties, but each of their sessions does only what its own token allows.
    let worker = guarded.scoped("7", "worker", PROVIDES);
    guarded.update(&worker, "r1", 1, "cancelled", "").await.refused(missing);
    let reader = guarded.scoped("8", "reader", ASKS);
    guarded.update(&one, "r1", 1, "accepted", "p1").await.done();
    guarded.update(&reader, "r1", 2, "running", "").await.refused(missing);
    assert_eq!(guarded.assignments(&asks).await, [is("r1", 2, "accepted", "p1")]);
    // What its user may know, a session is told before its scope counts.
    guarded.open(&asks, "r5", "p1", "{}", 600).await.done();
    guarded.update(&one, "r5", 1, "accepted", "").await.done();
    conflict(
        guarded.update(&worker, "r5", 1, "cancelled", "").await,
        &["version 1", "cancelled", "accepted at version 2", "p1"],
    );
    guarded.update(&worker, "r5", 2, "cancelled", "").await.refused(missing);
    guarded.update(&asks, "r5", 2, "cancelled", "").await.done();
    // A worker of the requester's own user may take what the user asks for.
    guarded.publish(&worker, "p7", "gpu", 1, "{}", 600).await.done();
    guarded.open(&asks, "r3", "", "{}", 600).await.done();
    guarded.update(&worker, "r3", 1, "accepted", "p7").await.done();
    // Neither operator has a session.
    let module = &guarded.module;
    for who in [&module.owner, &module.bridge] {
        let said = guarded.open(who, "r4", "", "{}", 600).await;
        said.refused(RefusalCode::Unauthorized);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_before_these_scopes_works_as_before() {
    let guarded = Guarded::start().await;
    let module = &guarded.module;
    let id = crate::lane::hostile::stream("user:7:notes");
    let log = crate::lane::hostile::log(&id, 2, 1);
    let genesis = spacetime_sync_proto::ChainHash::genesis(&id);
    module.append(&id, &log, &genesis).await.done();
    let asks = guarded.scoped("7", "asks", ASKS);
    guarded.open(&asks, "r1", "", "{}", 600).await.done();
    let old = guarded.session("7", "old", &["user:7:*"]);
    let page = module.call(Some(&old), "read_events", &json!([id.as_str(), 0])).await;
    assert_eq!(page.done()[1], 2);
    let ack = json!([id.as_str(), 2, crate::lane::hostile::column(&log[1].chain_hash)]);
    module.call(Some(&old), "ack_checkpoint", &ack).await.done();
    let beat = json!(["old", "n1", "online", "", "", ["user:7:notes"]]);
    module.call(Some(&old), "upsert_presence", &beat).await.done();
    // It sees what its user asked for, though it may not ask itself. It is no provider.
    assert_eq!(guarded.assignments(&old).await, [is("r1", 1, "open", "")]);
    let foreign = guarded.session("8", "foreign", &["user:8:*"]);
    assert_eq!(guarded.assignments(&foreign).await, []);
}

/// The scopes that a session gets that asks for these.
async fn granted(bridge: &Issuing, credential: &str, scopes: &[&str]) -> serde_json::Value {
    let body = json!({ "scopes": scopes, "streams": ["notes"] });
    let response = bridge.ask(credential).json(&body).send().await.unwrap();
    let (status, token) = answer(response).await.unwrap();
    assert_eq!(status, 200, "{token}");
    token["scopes"].clone()
}

#[tokio::test]
async fn anybody_may_ask_for_work_and_the_policy_says_who_provides_and_who_mirrors() {
    let desk = Desk::new(Cluster::shared().await).await.unwrap();
    desk.allow("everyone", "notes").await.unwrap();
    let bridge = desk.bridge(&[]).await.unwrap();
    let all = ["sync.subscribe", "sync.assignment.open", "sync.provider"];
    let asks = json!(["sync.subscribe", "sync.assignment.open"]);
    assert_eq!(granted(&bridge, &desk.session("7", "before"), &all).await, asks);
    desk.sql("insert into runtime.sync_scope_policy values ('user:7', 'sync.provider')")
        .await
        .unwrap();
    assert_eq!(granted(&bridge, &desk.session("7", "after"), &all).await, json!(all));
    assert_eq!(granted(&bridge, &desk.session("8", "other"), &all).await, asks);
    let mirrors = ["sync.subscribe", "sync.mirror"];
    let subscribes = json!(["sync.subscribe"]);
    assert_eq!(
        granted(&bridge, &desk.session("9", "mirror-before"), &mirrors).await,
        subscribes
    );
    desk.sql("insert into runtime.sync_scope_policy values ('user:9', 'sync.mirror')")
        .await
        .unwrap();
    assert_eq!(
        granted(&bridge, &desk.session("9", "mirror-after"), &mirrors).await,
        json!(mirrors)
    );
    // Whoever does not know these scopes, and so does not ask for them, gets what it got before.
    let known = ["sync.subscribe", "sync.checkpoint.write"];
    assert_eq!(granted(&bridge, &desk.session("7", "old"), &known).await, json!(known));
    let unneeded = desk.sql("insert into runtime.sync_scope_policy values ('user:7', 'sync.assignment.open')");
    assert!(
        unneeded.await.is_err(),
        "a scope that anybody gets is no matter of policy"
    );
}
