//! What SpacetimeDB keeps back: a client notices it within a bounded time, and reads it from the authority.

use std::time::Duration;

use serde_json::json;
use spacetime_sync_proto::{Position, Seq};
use spacetime_sync_tests::lane::{Lane, stream, wait};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn events_that_spacetimedb_keeps_back_reach_a_client_from_the_authority() {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let id = stream(1);
    let bridge = lane.bridge().unwrap();
    let mut writer = Writer::new(&lane.authority, &id, "w", Payload::UpTo(300), 1);
    writer.append(5).await.unwrap();
    assert!(lane.published(SOON).await, "{}", bridge.process.log());
    // Whoever holds SpacetimeDB makes it forget the last three. Every seal of what is left is good.
    let kept = Seq::new(2).unwrap();
    let chain = lane.authority.chain_at(&id, kept).await.unwrap().unwrap();
    let last = Seq::new(5).unwrap();
    let seen = lane.authority.chain_at(&id, last).await.unwrap().unwrap();
    let to = Position { seq: kept, chain };
    let seal = lane.seal(&id, &to).unwrap();
    let [to, seen] = [to.chain, seen].map(|chain| format!("0x{}", hex::encode(chain.as_bytes())));
    let rewind = json!([
        id.as_str(),
        kept.get(),
        to,
        hex::encode(seal.to_bytes()),
        last.get(),
        seen
    ]);
    lane.owner().unwrap().call("rewind_stream", rewind).await.unwrap();

    let mut client = lane.client(std::slice::from_ref(&id)).await.unwrap();
    client = client.option("--overdue-ms", 1_000);
    client.start().unwrap();
    let noticed = || client.status()["counters"]["withheld"] == 1;
    wait(SOON, "the client notices what is kept back", noticed).await;
    client.until_applied(5, SOON).await.unwrap();

    // The next append shows the bridge that events are gone, and it brings them back.
    writer.append(1).await.unwrap();
    client.until_applied(6, SOON).await.unwrap();
    client.until_live(SOON).await.unwrap();
    assert_eq!(lane.held(std::slice::from_ref(&id)).await.unwrap(), [6]);
    let verdict = client.compare(&lane.authority).await.unwrap();
    assert!(verdict.is_equal() && verdict.applied == 6, "{verdict:?}");
}
