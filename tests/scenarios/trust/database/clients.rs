//! A client connects to the database that the bridge names, and to no other.

use std::time::Duration;

use spacetime_sync_proto::StreamId;
use spacetime_sync_stdb::admin::Breaking;
use spacetime_sync_tests::follower::Follower;
use spacetime_sync_tests::lane::{Lane, stream, wait};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;

use super::stranger::{Stranger, lose};

const SOON: Duration = Duration::from_secs(30);

/// Waits until a client says for one of these reasons that it does not connect.
async fn stays_away(client: &Follower, reasons: &[&str]) {
    let away = || {
        let status = client.status();
        let told = |text: &&str| status["reason"] == **text || status["code"] == **text;
        status["phase"] == "backoff" && reasons.iter().any(told)
    };
    wait(SOON, "the client does not connect", away).await;
}

/// Publishes some events, and has a client apply them.
async fn follow(lane: &Lane, id: &StreamId, uri: Option<std::net::SocketAddr>) -> (Writer, Follower) {
    let mut writer = Writer::new(&lane.authority, id, "w", Payload::UpTo(300), 1);
    writer.append(5).await.unwrap();
    let mut client = lane.client(std::slice::from_ref(id)).await.unwrap();
    if let Some(address) = uri {
        client = client.at(address);
    }
    client = client.option("--retry-ms", 500);
    client.start().unwrap();
    client.until_applied(5, SOON).await.unwrap();
    client.until_live(SOON).await.unwrap();
    (writer, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_an_issuer_stay_away_from_a_stranger_and_follow_a_pin_that_moves() {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let id = stream(1);
    let bridge = lane.bridge().unwrap();
    let (mut writer, old) = follow(&lane, &id, None).await;
    lose(&lane).await;
    let identity = lane.pin().unwrap().database_identity;
    for address in [lane.name.as_str(), identity.as_str()] {
        let stranger = Stranger::takes(&lane, address).await;
        bridge.until("/healthz", SOON, |good, _| !good).await.unwrap();
        // One with a token from before, and one that needs its first.
        let mut new = lane.client(std::slice::from_ref(&id)).await.unwrap();
        new.start().unwrap();
        for client in [&old, &new] {
            stays_away(client, &["no_database", "wrong_database", "no_token"]).await;
        }
        stays_away(&new, &["wrong_database"]).await;
        assert_eq!(stranger.holds("sync_session").await, 0, "{}", old.log());
        stranger.leaves().await;
    }
    lane.publish(Breaking::Refuse).await.unwrap();
    assert_eq!(bridge.stop().await.unwrap(), 0);
    let _bridge = lane.bridge().unwrap();
    writer.append(5).await.unwrap();
    // Nobody restarts it or changes its configuration.
    old.until_applied(10, SOON)
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", old.log()));
    old.until_live(SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_fixed_tokens_go_by_their_configuration() {
    let lane = Lane::start().await.unwrap();
    let id = stream(1);
    let _bridge = lane.bridge().unwrap();
    let (_writer, client) = follow(&lane, &id, None).await;
    lose(&lane).await;
    let stranger = Stranger::takes(&lane, &lane.name).await;
    stays_away(&client, &["no_database", "wrong_database"]).await;
    stranger.leaves().await;
    let identity = lane.pin().unwrap().database_identity;
    let stranger = Stranger::takes(&lane, identity.as_str()).await;
    stays_away(&client, &["wrong_database"]).await;
    let detail = client.status()["detail"].to_string();
    assert!(detail.contains(&stranger.owner.identity), "{detail}");
    stranger.leaves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_leads_to_the_pinned_database_and_lets_nobody_through_to_a_stranger() {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let id = stream(1);
    let bridge = lane.bridge().unwrap();
    let gate = lane.gate(&[]).unwrap();
    gate.until_ready(true).await.unwrap();
    let (mut writer, client) = follow(&lane, &id, Some(gate.address())).await;
    lose(&lane).await;
    let identity = lane.pin().unwrap().database_identity;
    let stranger = Stranger::takes(&lane, identity.as_str()).await;
    stays_away(&client, &["wrong_database", "no_token"]).await;
    wait(SOON, "the gate says so", || {
        gate.process.log().contains("is not the one that the bridge names")
    })
    .await;
    assert_eq!(stranger.holds("sync_session").await, 0);
    stranger.leaves().await;
    lane.publish(Breaking::Refuse).await.unwrap();
    assert_eq!(bridge.stop().await.unwrap(), 0);
    let _bridge = lane.bridge().unwrap();
    writer.append(5).await.unwrap();
    client
        .until_applied(10, SOON)
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", client.log()));
}
