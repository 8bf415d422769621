//! Seals: what SpacetimeDB holds and the bridge has not sealed reaches no application, and the bridge removes it.

use std::time::Duration;

use spacetime_sync_tests::lane::{Lane, stream, wait};
use spacetime_sync_tests::load::{Payload, Writer};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_event_is_never_applied_and_the_bridge_puts_the_true_one_in_its_place() {
    let lane = Lane::start().await.unwrap();
    let id = stream(1);
    let mut client = lane.client(std::slice::from_ref(&id)).await.unwrap();
    client.start().unwrap();
    client.until_live(SOON).await.unwrap();
    // Whoever has the bridge's token can write this, and so can the owner of the database.
    lane.append_as_bridge(&id).await.unwrap();
    let noticed = || client.log().matches("not proven to be the authority's").count() > 2;
    wait(SOON, "the client sees the forged event again and again", noticed).await;
    assert_eq!(client.applied(), 0, "{}", client.log());

    let bridge = lane.bridge().unwrap();
    let mut writer = Writer::new(&lane.authority, &id, "w", Payload::UpTo(300), 1);
    writer.append(3).await.unwrap();
    client.until_applied(3, SOON).await.unwrap();
    client.until_live(SOON).await.unwrap();
    assert!(
        bridge.process.log().contains("they are not sealed"),
        "{}",
        bridge.process.log()
    );
    let metrics = bridge.text("/metrics").await.unwrap();
    assert!(metrics.contains("\nspacetime_sync_forgeries_total 1\n"), "{metrics}");
    let verdict = client.compare(&lane.authority).await.unwrap();
    assert!(verdict.is_equal() && verdict.applied == 3, "{verdict:?}");
    lane.verified().await;
}
