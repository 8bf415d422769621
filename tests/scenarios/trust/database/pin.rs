//! A bridge publishes to the database that its configuration names, and to no other.

use std::time::Duration;

use serde_json::Value;
use spacetime_sync_proto::DatabasePin;
use spacetime_sync_stdb::admin::Breaking;
use spacetime_sync_tests::lane::{Bridge, BridgeOptions, Lane, stream};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::tool;

use super::stranger::{Stranger, lose};

const SOON: Duration = Duration::from_secs(30);
/// How soon a bridge is red, which is less than it takes an outage.
const RED: Duration = Duration::from_secs(8);

/// Waits until the bridge is red and says that `expected` is not what it has found.
async fn says(bridge: &Bridge, expected: &DatabasePin, found: &str) {
    let red = bridge.until("/healthz", RED, |good, body| {
        let problems = body["problems"].to_string();
        !good
            && body["ready"] == false
            && problems.contains("is not the one that the configuration names")
            && problems.contains(&format!("expected {expected}, found"))
            && problems.contains(found)
    });
    red.await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", bridge.process.log()));
    bridge.until("/readyz", RED, |good, _| !good).await.unwrap();
}

#[derive(Debug, Clone, Copy)]
enum Taken {
    Name,
    Identity,
}

/// The lane's database is lost, and a stranger publishes in its place, while the bridge runs.
async fn a_stranger_takes(what: Taken) {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let pin = lane.pin().unwrap();
    let id = stream(1);
    let ids = std::slice::from_ref(&id);
    let bridge = lane.bridge().unwrap();
    let mut writer = Writer::new(&lane.authority, &id, "w", Payload::UpTo(300), 1);
    writer.append(5).await.unwrap();
    assert!(lane.published(SOON).await, "{}", bridge.process.log());

    lose(&lane).await;
    let address = match what {
        Taken::Name => lane.name.clone(),
        Taken::Identity => pin.database_identity.to_string(),
    };
    let stranger = Stranger::takes(&lane, &address).await;
    says(&bridge, &pin, &stranger.owner.identity).await;
    writer.append(5).await.unwrap();
    // The bridge tries again and again.
    let refused = || bridge.process.log().matches("is not the one that").count();
    let before = refused();
    let again = spacetime_sync_tests::until(SOON, || refused() > before + 1).await;
    assert!(again, "{}", bridge.process.log());
    assert_eq!(lane.recorded(ids).await.unwrap(), [5]);
    assert_eq!(stranger.holds("sync_event").await, 0);
    assert_eq!(
        stranger.holds("sync_session").await,
        0,
        "nor does the bridge sign in there"
    );

    // The same at the start.
    assert_eq!(bridge.stop().await.unwrap(), 0);
    let bridge = lane.bridge().unwrap();
    says(&bridge, &pin, &stranger.owner.identity).await;
    assert_eq!(stranger.holds("sync_event").await, 0);

    // The owner publishes again. That is another database, and the bridge waits for a person to say that it is the right one.
    stranger.leaves().await;
    lane.publish(Breaking::Refuse).await.unwrap();
    let moved = lane.pin().unwrap();
    assert_eq!(moved.owner_identity, pin.owner_identity);
    if moved != pin {
        says(&bridge, &pin, moved.database_identity.as_str()).await;
        assert_eq!(lane.recorded(ids).await.unwrap(), [5]);
    }
    assert_eq!(bridge.stop().await.unwrap(), 0);
    let bridge = lane.bridge().unwrap();
    bridge
        .until("/healthz", SOON, |good, body| good && body["ready"] == true)
        .await
        .unwrap();
    assert!(lane.published(SOON).await, "{}", bridge.process.log());
    assert_eq!(lane.held(ids).await.unwrap(), [10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_takes_the_name_of_a_lost_database_is_sent_nothing() {
    a_stranger_takes(Taken::Name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_takes_the_identity_of_a_lost_database_is_sent_nothing() {
    a_stranger_takes(Taken::Identity).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_pin_a_stranger_who_takes_the_name_is_sent_every_event() {
    let lane = Lane::start().await.unwrap();
    let id = stream(1);
    lose(&lane).await;
    let stranger = Stranger::takes(&lane, &lane.name).await;
    let options = BridgeOptions {
        unpinned: true,
        ..BridgeOptions::default()
    };
    let bridge = lane.bridge_with(&options).unwrap();
    let mut writer = Writer::new(&lane.authority, &id, "w", Payload::UpTo(300), 1);
    writer.append(5).await.unwrap();
    // What the pin is for, and what the tests above would see without it.
    assert!(lane.published(SOON).await, "{}", bridge.process.log());
    assert!(stranger.holds("sync_event").await > 0);
    assert!(bridge.process.log().contains("no pin"), "{}", bridge.process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_learns_the_pin_from_a_publish_and_of_a_database_that_is_there() {
    let lane = Lane::start().await.unwrap();
    let pin = lane.pin().unwrap();
    let lines = format!(
        "database_identity = \"{}\"\nowner_identity = \"{}\"\n",
        pin.database_identity, pin.owner_identity
    );
    let of = ["--uri", lane.server.uri(), "--database", &lane.name];
    let (owner, bridge) = (lane.path("owner.token"), lane.path("bridge.token"));
    let (owner, bridge) = (owner.to_str().unwrap(), bridge.to_str().unwrap());
    let configure = [
        "publish",
        "--configure-only",
        "--token-file",
        owner,
        "--bridge-token-file",
        bridge,
    ];
    let said = tool::run("spacetime-sync", &[&configure[..], &of].concat(), &[])
        .await
        .good();
    assert!(said.contains(&lines), "{said}");

    let database = [&["database"][..], &of].concat();
    let said = tool::run("spacetime-sync", &database, &[]).await;
    said.failed(2, &["--token-file"]);
    let of_anybody = [&database[..], &["--whoever-owns-it"]].concat();
    assert_eq!(tool::run("spacetime-sync", &of_anybody, &[]).await.good(), lines);
    let as_owner = [&database[..], &["--token-file", owner, "--json"]].concat();
    let said = tool::run("spacetime-sync", &as_owner, &[]).await.good();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["database_identity"], pin.database_identity.as_str());
    assert_eq!(said["owner_identity"], pin.owner_identity.as_str());
    let not_the_owner = [&database[..], &["--token-file", bridge]].concat();
    let said = tool::run("spacetime-sync", &not_the_owner, &[]).await;
    said.failed(
        1,
        &[
            "belongs to",
            pin.owner_identity.as_str(),
            "somebody else has taken the name",
        ],
    );
}
