//! The engine's limit on what one query may scan, which a publish sets.

use std::time::Duration;

use spacetime_sync_stdb::admin::Admin;
use spacetime_sync_tests::lane::{Lane, stream};
use spacetime_sync_tests::load::{Payload, Writer};

const SOON: Duration = Duration::from_secs(30);

/// A join that finds 145 rows of the engine's own for each of 145, once more for each of these, and once more.
const FOUR: &str = "SELECT a.* FROM st_column a JOIN st_column b ON a.col_pos = b.col_pos \
                    JOIN st_column c ON b.col_pos = c.col_pos JOIN st_column d ON c.col_pos = d.col_pos";

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_would_hold_the_lane_is_refused_and_clients_notice_nothing() {
    let lane = Lane::start().await.unwrap();
    let _bridge = lane.bridge().unwrap();
    let id = stream(1);
    let mut writer = Writer::new(&lane.authority, &id, "w", Payload::UpTo(300), 1);
    writer.append_all(2_000, 100).await.unwrap();
    let mut client = lane.client(std::slice::from_ref(&id)).await.unwrap();
    client.start().unwrap();
    client.until_applied(2_000, SOON).await.unwrap();
    let anybody = Admin::new_identity(lane.server.uri()).await.unwrap();
    let url = format!("{}/v1/database/{}/sql", lane.server.uri(), lane.name);
    let request = reqwest::Client::new().post(url).timeout(SOON).body(FOUR);
    let answer = request.bearer_auth(anybody.token.expose()).send().await.unwrap();
    let (status, said) = (answer.status().as_u16(), answer.text().await.unwrap());
    assert!(status == 400 && said.contains("exceeds limit"), "{status} {said}");
    writer.append_all(100, 1).await.unwrap();
    client.until_applied(2_100, SOON).await.unwrap();
    client.until_live(SOON).await.unwrap();
}
