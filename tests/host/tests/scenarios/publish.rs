//! Publishing: who may do it, what an update may change, and what it does to connected clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Method;
use serde_json::json;
use spacetimedb_lib::Identity;
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

use crate::support::{Gone, Host, Person, Socket, module, send};

/// Number of callers while a database is cleared.
const CALLERS: u64 = 4;
/// Calls in flight per caller.
const IN_FLIGHT: u64 = 1_000;
/// How often the database is cleared.
const CLEARED: usize = 5;

#[tokio::test]
async fn the_first_publish_creates_and_the_next_one_updates() {
    let (_dir, host, owner) = Host::with_demo().await;
    let identity = host.get("/v1/database/demo/identity", None).await.ok().text;
    let updated = host.publish("demo", "", "plain", &owner).await.ok().json();
    assert_eq!(
        updated,
        json!({ "Success": { "domain": "demo", "database_identity": identity, "op": "updated" } })
    );

    let unnamed = send(
        host.request(Method::POST, "/v1/database", Some(&owner))
            .body(module("plain")),
    )
    .await
    .ok()
    .json();
    let success = &unnamed["Success"];
    assert_eq!((&success["domain"], &success["op"]), (&json!(null), &json!("created")));
    let identity = success["database_identity"].as_str().unwrap();
    host.call(identity, "add_note", json!([1, "by identity"]), &owner)
        .await
        .ok();
}

#[tokio::test]
async fn a_database_reports_its_identity() {
    let (_dir, host, owner) = Host::with_demo().await;
    let identity = host.get("/v1/database/demo/identity", None).await.ok().text;
    let info = host.get("/v1/database/demo", None).await.ok().json();
    assert_eq!(
        info["database_identity"]["__identity__"],
        json!(format!("0x{identity}"))
    );
    assert_eq!(
        info["owner_identity"]["__identity__"],
        json!(format!("0x{}", owner.identity))
    );
    assert_eq!(info["host_type"], json!({ "Wasm": [] }));
    assert_eq!(
        host.get(&format!("/v1/database/{identity}/names"), None)
            .await
            .ok()
            .json(),
        json!({ "names": ["demo"] })
    );
    assert_eq!(
        host.get("/v1/database/nobody", None).await.pair(),
        (404, "`nobody` not found")
    );
    let unused = Identity::from_claims("no", "body");
    assert_eq!(
        host.get(&format!("/v1/database/{unused}"), None).await.pair(),
        (404, "No such database.")
    );
}

#[tokio::test]
async fn only_the_owner_may_update_clear_plan_and_delete() {
    let (_dir, host, owner) = Host::with_demo().await;
    let stranger = host.newcomer().await;
    assert_eq!(host.publish("demo", "", "compatible", &stranger).await.status, 403);
    assert_eq!(
        host.publish("demo", "?clear=true", "plain", &stranger).await.status,
        403
    );
    assert_eq!(host.plan("demo", "compatible", &stranger).await.status, 403);
    assert_eq!(
        send(host.request(Method::DELETE, "/v1/database/demo", Some(&stranger)))
            .await
            .status,
        403
    );

    let mut socket = Socket::open(&host, "demo", &stranger).await;
    send(host.request(Method::DELETE, "/v1/database/demo", Some(&owner)))
        .await
        .ok();
    assert!(matches!(socket.end().await, Gone::Closed { code: 1001, .. }));
    assert_eq!(host.get("/v1/database/demo", None).await.status, 404);
    let again = host.publish("demo", "", "plain", &stranger).await.ok().json();
    assert_eq!(again["Success"]["op"], "created");
}

#[tokio::test]
async fn a_module_that_cannot_start_leaves_nothing_behind() {
    let (dir, host, owner) = Host::with_demo().await;
    let refused = host.publish("still", "", "stillborn", &owner).await;
    assert_eq!(refused.status, 500);
    assert!(refused.text.contains("this module never starts"), "{}", refused.text);
    let rubbish = send(
        host.request(Method::PUT, "/v1/database/still", Some(&owner))
            .body("not a module"),
    )
    .await;
    assert_eq!(rubbish.status, 500);
    let rubbish = send(
        host.request(Method::PUT, "/v1/database/demo", Some(&owner))
            .body("not a module"),
    )
    .await;
    assert_eq!(rubbish.status, 500);
    let javascript = host.publish("still", "?host_type=Js", "plain", &owner).await;
    assert_eq!(
        javascript.pair(),
        (400, "this host runs WebAssembly modules only, not Js")
    );
    assert_eq!(host.publish("Not_A_Name", "", "plain", &owner).await.status, 400);
    assert_eq!(host.get("/v1/database/still", None).await.status, 404);
    host.call("demo", "add_note", json!([1, "still here"]), &owner)
        .await
        .ok();

    host.kill().await;
    let host = Host::start(dir.path()).await;
    assert_eq!(
        host.publish("still", "", "plain", &owner).await.ok().json()["Success"]["op"],
        "created"
    );
    host.call("demo", "add_note", json!([2, "still here"]), &owner)
        .await
        .ok();
}

#[tokio::test]
async fn clearing_removes_the_rows_for_good() {
    let (dir, host, owner) = Host::with_demo().await;
    host.call("demo", "add_note", json!([1, "gone"]), &owner).await.ok();
    let before = host.get("/v1/database/demo/identity", None).await.ok().text;
    let mut socket = Socket::open(&host, "demo", &owner).await;
    let cleared = host.publish("demo", "?clear=true", "plain", &owner).await.ok().json();
    assert_eq!(cleared["Success"]["op"], "updated");
    assert!(matches!(socket.end().await, Gone::Closed { code: 1001, .. }));
    assert_eq!(host.rows("demo", "SELECT * FROM note", &owner).await, json!([]));
    host.call("demo", "add_note", json!([2, "new"]), &owner).await.ok();

    // An answer over HTTP says nothing about durability. A confirmed read does.
    assert_eq!(
        host.rows("demo", "SELECT * FROM note", &owner).await,
        json!([[2, "new"]])
    );
    host.kill().await;
    let host = Host::start(dir.path()).await;
    assert_eq!(
        host.rows("demo", "SELECT * FROM note", &owner).await,
        json!([[2, "new"]])
    );
    assert_eq!(host.get("/v1/database/demo/identity", None).await.ok().text, before);
}

/// Sends calls, many of them in flight at once, until `over` is set.
async fn flood(host: Arc<Host>, owner: Arc<Person>, caller: u64, over: Arc<AtomicBool>) {
    let mut socket = Socket::open(&host, "demo", &owner).await;
    for call in 0_u64.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let note = (call * CALLERS + caller, "x".repeat(200));
        socket.start_call("add_note", &note).await;
        if call >= IN_FLIGHT && socket.next().await.is_err() {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_while_their_database_is_cleared_leave_the_host_alone() {
    let (_dir, host, owner) = Host::with_demo().await;
    let (host, owner) = (Arc::new(host), Arc::new(owner));
    let over = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (host, owner, over) = (host.clone(), owner.clone(), over.clone());
        callers.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                // The flood ends with its database, by a panic if it was sending.
                let _ = tokio::spawn(flood(host.clone(), owner.clone(), caller, over.clone())).await;
            }
        });
    }
    for _ in 0..CLEARED {
        host.publish("demo", "?clear=true", "plain", &owner).await.ok();
    }
    over.store(true, Ordering::Relaxed);
    host.publish("demo", "?clear=true", "plain", &owner).await.ok();
    while let Some(called) = callers.join_next().await {
        called.unwrap();
    }
    host.call("demo", "add_note", json!([u64::MAX, "here"]), &owner)
        .await
        .ok();
}

#[tokio::test]
async fn a_compatible_update_keeps_rows_and_clients() {
    let (dir, host, owner) = Host::with_demo().await;
    host.call("demo", "add_note", json!([1, "old"]), &owner).await.ok();
    let mut connected = Socket::open(&host, "demo", &owner).await;
    assert_eq!(connected.subscribe("SELECT * FROM note").await, Ok(1));
    assert_eq!(host.call("demo", "add_label", json!(["x"]), &owner).await.status, 404);

    let plan = host.plan("demo", "compatible", &owner).await.ok().json();
    assert_eq!(plan["AutoMigrate"]["break_clients"], json!(false));
    assert!(
        plan["AutoMigrate"]["migrate_plan"].as_str().unwrap().contains("label"),
        "{plan}"
    );
    host.publish("demo", "", "compatible", &owner).await.ok();

    // Connected clients stay connected, receive updates and reach the new module.
    host.call("demo", "add_note", json!([2, "new"]), &owner).await.ok();
    assert_eq!(connected.next_inserts().await.len(), 1);
    assert_eq!(
        connected
            .call("add_label", &("from an old connection".to_owned(),))
            .await,
        Ok(())
    );
    let mut fresh = Socket::open(&host, "demo", &owner).await;
    assert_eq!(fresh.subscribe("SELECT * FROM label").await, Ok(1));
    assert_eq!(
        host.rows("demo", "SELECT id FROM note", &owner)
            .await
            .as_array()
            .unwrap()
            .len(),
        2
    );

    // An update is durable when the host answers.
    host.kill().await;
    let host = Host::start(dir.path()).await;
    host.call("demo", "add_label", json!(["after the restart"]), &owner)
        .await
        .ok();
}

#[tokio::test]
async fn an_update_that_breaks_clients_needs_permission() {
    let (_dir, host, owner) = Host::with_demo().await;
    host.call("demo", "add_note", json!([1, "old"]), &owner).await.ok();
    let mut connected = Socket::open(&host, "demo", &owner).await;
    assert_eq!(connected.subscribe("SELECT * FROM note").await, Ok(1));

    let refused = host.publish("demo", "", "breaking", &owner).await;
    assert_eq!(refused.status, 400, "{}", refused.text);
    assert!(refused.text.contains("client-breaking change"), "{}", refused.text);
    let refused = host.publish("demo", "?policy=BreakClients", "breaking", &owner).await;
    assert_eq!(
        refused.pair(),
        (
            400,
            "Migration policy is set to `BreakClients`, but no migration token was provided."
        )
    );
    assert_eq!(
        connected.call("add_note", &(2_u64, "undisturbed".to_owned())).await,
        Ok(())
    );

    let plan = host.plan("demo", "breaking", &owner).await.ok().json();
    assert_eq!(plan["AutoMigrate"]["break_clients"], json!(true));
    let token = plan["AutoMigrate"]["token"].as_str().unwrap();
    let query = format!("?policy=BreakClients&token={token}");
    host.publish("demo", &query, "breaking", &owner).await.ok();
    connected.end().await;
    let rows = host
        .rows("demo", "SELECT id, stars FROM note WHERE id = 1", &owner)
        .await;
    assert_eq!(rows, json!([[1, 7]]));
}

#[tokio::test]
async fn an_update_that_cannot_be_done_automatically_is_refused() {
    let (_dir, host, owner) = Host::with_demo().await;
    let refused = host.publish("demo", "", "incompatible", &owner).await;
    assert_eq!(refused.status, 400, "{}", refused.text);
    assert!(
        refused.text.starts_with("Database update rejected: "),
        "{}",
        refused.text
    );
    let plan = host.plan("demo", "incompatible", &owner).await.ok().json();
    assert!(
        plan["ManualMigrate"]["reason"].as_str().unwrap().contains("text"),
        "{plan}"
    );
    host.call("demo", "add_note", json!([1, "undisturbed"]), &owner)
        .await
        .ok();
    // An owner who does not need the rows can still update.
    host.publish("demo", "?clear=true", "incompatible", &owner).await.ok();
    host.call("demo", "add_note", json!([1, 5]), &owner).await.ok();
}

#[tokio::test]
async fn a_publisher_that_hangs_up_leaves_no_half_made_database() {
    let (_dir, host, owner) = Host::with_demo().await;
    let wasm = module("plain");
    for name in ["hasty-1", "hasty-2", "hasty-3"] {
        let head = format!(
            "PUT /v1/database/{name} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
            owner.token,
            wasm.len()
        );
        let mut tcp = tokio::net::TcpStream::connect(host.url.trim_start_matches("http://"))
            .await
            .unwrap();
        tcp.write_all(head.as_bytes()).await.unwrap();
        tcp.write_all(&wasm).await.unwrap();
        drop(tcp);
        // The host runs one publish at a time. When this one has finished, the abandoned one was either completed or
        // never seen.
        host.publish(name, "", "plain", &owner).await.ok();
        host.call(name, "add_note", json!([1, "whole"]), &owner).await.ok();
        assert_eq!(
            host.rows(name, "SELECT ticks FROM clock", &owner).await,
            json!([[0]]),
            "set up exactly once"
        );
    }
}
