//! Parity while everything moves, and parity with planted differences.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::lane::{BridgeOptions, Lane, wait};
use spacetime_sync_tests::load::Pace;
use spacetime_sync_tests::port;
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::process::built;
use spacetime_sync_tests::scene::Scene;
use sqlx::{Connection, PgConnection};

const SOON: Duration = Duration::from_secs(30);

async fn scene() -> Scene {
    let mut scene = Scene::new(Lane::start_on(Cluster::shared().await).await.unwrap(), 1);
    let mut client = scene.client().await.unwrap();
    client.start().unwrap();
    scene.clients.push(client);
    scene
}

/// Runs the tool.
pub(crate) async fn compare(lane: &Lane, clients: &[&Follower], arguments: &[&str]) -> Output {
    let environment = lane
        .environment(&BridgeOptions::default(), port::free().unwrap())
        .unwrap();
    let mut command = tokio::process::Command::new(built("spacetime-sync"));
    command.arg("parity").args(arguments).arg("--json").envs(environment);
    for client in clients {
        command.arg("--client").arg(client.store());
    }
    if !clients.is_empty() {
        command.args(["--client-table", "applied"]);
    }
    let output = command.output().await.unwrap();
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs the tool, and returns its verdict and its line of JSON.
pub(crate) async fn verdict(lane: &Lane, clients: &[&Follower], arguments: &[&str]) -> (bool, Value) {
    let Output { status, stdout, .. } = compare(lane, clients, arguments).await;
    let json = serde_json::from_slice(&stdout).unwrap_or_else(|_| panic!("no JSON, but {status}"));
    (status.success(), json)
}

async fn parity(scene: &Scene, clients: &[&Follower], extent: &[&str]) -> (bool, Value) {
    verdict(&scene.lane, clients, extent).await
}

/// Which party differs at which seq, as the tool reports it.
fn mismatches(found: &Value) -> Vec<(String, u64)> {
    let of = |mismatch: &Value| {
        let party = match &mismatch["party"] {
            Value::String(party) => party.clone(),
            _ => "client".to_owned(),
        };
        (party, mismatch["seq"].as_u64().unwrap())
    };
    let mismatches = found["rounds"][0]["mismatches"].as_array().unwrap();
    mismatches.iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn parity_holds_while_events_move() {
    let mut scene = scene().await;
    let _bridge = scene.lane.bridge().unwrap();
    scene.write(Pace::Mixed);
    wait(SOON, "events", || scene.clients[0].applied() > 1_000).await;
    for extent in [&["--sample", "100"][..], &["--whole"]] {
        let (fits, found) = parity(&scene, &[&scene.clients[0]], extent).await;
        assert!(fits && found["mismatches"] == 0, "{found}");
        let round = &found["rounds"][0];
        assert_eq!(
            (round["streams"].as_u64(), round["positions"].as_u64()),
            (Some(4), Some(8))
        );
        let (events, comparisons) = (
            round["events"].as_u64().unwrap(),
            round["comparisons"].as_u64().unwrap(),
        );
        let whole = extent.len() == 1;
        assert!(if whole { events >= 1_000 } else { events == 100 }, "{found}");
        assert!(comparisons > 2 * events, "{found}");
    }
    scene.settle(SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn parity_locates_every_tampered_event() {
    let mut scene = scene().await;
    let bridge = scene.lane.bridge().unwrap();
    scene.write(Pace::Mixed);
    wait(SOON, "events", || {
        scene.clients[0].heads().iter().all(|head| *head > 20)
    })
    .await;
    scene.settle(SOON).await.unwrap();
    assert_eq!(bridge.stop().await.unwrap(), 0);
    let client = &scene.clients[0];
    client.kill();
    let stream_id = scene.streams[1].clone();
    assert!(parity(&scene, &[client], &["--whole"]).await.0);

    // First a client's effect, then its checkpoint.
    let store = rusqlite::Connection::open(client.store()).unwrap();
    let change = |sql: &str| assert_eq!(store.execute(sql, [stream_id.as_str()]).unwrap(), 1);
    change("UPDATE applied SET payload = x'00' WHERE stream_id = ?1 AND seq = 7");
    let (fits, found) = parity(&scene, &[client], &["--whole"]).await;
    assert_eq!((fits, mismatches(&found)), (false, vec![("client".to_owned(), 7)]));
    change("DELETE FROM applied WHERE stream_id = ?1 AND seq = 7");
    let (fits, found) = parity(&scene, &[client], &["--whole"]).await;
    assert_eq!((fits, mismatches(&found)), (false, vec![("client".to_owned(), 7)]));
    let head = client.heads()[1];
    change("UPDATE spacetime_sync_checkpoint SET chain_hash = zeroblob(32) WHERE stream_id = ?1");
    let (fits, found) = parity(&scene, &[client], &["--sample", "1"]).await;
    assert!(
        !fits && mismatches(&found).contains(&("client".to_owned(), head)),
        "{found}"
    );

    // The authority, bypassing the trigger that would refuse it. SpacetimeDB still has the original event.
    let mut superuser = PgConnection::connect(scene.lane.database.url()).await.unwrap();
    sqlx::query("set session_replication_role = replica")
        .execute(&mut superuser)
        .await
        .unwrap();
    let set = "update runtime.sync_stream_events set payload = 'something else' where stream_id = $1 and seq = 9";
    let changed = sqlx::query(set)
        .bind(stream_id.as_str())
        .execute(&mut superuser)
        .await
        .unwrap();
    assert_eq!(changed.rows_affected(), 1);
    let (fits, found) = parity(&scene, &[], &["--whole"]).await;
    let found = mismatches(&found);
    assert!(!fits && found.contains(&("authority".to_owned(), 9)), "{found:?}");
    assert!(found.iter().all(|(_, seq)| *seq == 9), "{found:?}");
    // A log that begins past everything SpacetimeDB holds.
    for change in [
        "delete from runtime.sync_stream_events where stream_id = $1",
        "select runtime.sync_append($1, 'later', 'k', 'p')",
    ] {
        let change = sqlx::query(change).bind(stream_id.as_str());
        change.execute(&mut superuser).await.unwrap();
    }
    let compared = tokio::time::timeout(SOON, parity(&scene, &[], &["--whole"])).await;
    let (fits, found) = compared.expect("the comparison did not end");
    assert!(
        !fits && mismatches(&found).contains(&("authority".to_owned(), 1)),
        "{found}"
    );
}

/// SpacetimeDB holds an event of another origin: parity finds it, and the bridge removes it.
#[tokio::test(flavor = "multi_thread")]
async fn parity_finds_a_foreign_event_in_spacetimedb_until_the_bridge_has_removed_it() {
    let mut scene = scene().await;
    scene.lane.append_as_bridge(&scene.streams[0]).await.unwrap();
    scene.write_bulk(100, 300).await.unwrap();
    let (fits, found) = parity(&scene, &[], &["--sample", "10"]).await;
    let mut found = mismatches(&found);
    found.dedup();
    assert_eq!((fits, found), (false, vec![("spacetimedb".to_owned(), 1)]));
    let _bridge = scene.lane.bridge().unwrap();
    assert!(scene.lane.published(SOON).await);
    let (fits, found) = parity(&scene, &[], &["--whole"]).await;
    assert!(fits, "{found}");
}
