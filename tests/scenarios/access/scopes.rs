//! Scopes that only those get whom the authority's policy names.

use serde_json::{Value, json};
use spacetime_sync_tests::issuing::{Issuing, answer};

use super::desk;

/// The scopes that a session gets that asks to read a stream, and to say what it serves.
async fn scopes(bridge: &Issuing, credential: &str) -> Value {
    let body = json!({ "scopes": ["sync.subscribe", "sync.presence.serve"], "streams": ["notes"] });
    let response = bridge.ask(credential).json(&body).send().await.unwrap();
    let (status, token) = answer(response).await.unwrap();
    assert_eq!(status, 200, "{token}");
    token["scopes"].clone()
}

#[tokio::test]
async fn the_scope_to_serve_streams_goes_to_whom_the_policy_names() {
    let desk = desk().await;
    desk.allow("everyone", "notes").await.unwrap();
    let bridge = desk.bridge(&[]).await.unwrap();
    let reads = json!(["sync.subscribe"]);
    assert_eq!(scopes(&bridge, &desk.session("7", "before")).await, reads);
    desk.sql("insert into runtime.sync_scope_policy values ('user:7', 'sync.presence.serve')")
        .await
        .unwrap();
    let serves = json!(["sync.subscribe", "sync.presence.serve"]);
    assert_eq!(scopes(&bridge, &desk.session("7", "after")).await, serves);
    assert_eq!(scopes(&bridge, &desk.session("8", "another")).await, reads);
    let unknown = desk.sql("insert into runtime.sync_scope_policy values ('user:7', 'sync.append')");
    assert!(unknown.await.is_err(), "no policy gives the bridge's scope away");
}
