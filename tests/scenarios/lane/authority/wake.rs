//! How a sleeping bridge is woken.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn only_a_sleeping_bridge_is_woken_and_only_by_a_clean_stream() {
    let (database, authority) = setup().await;
    let id = stream("s");
    let mut raw = sqlx::postgres::PgListener::connect(database.url()).await.unwrap();
    raw.listen_all(["sync_wake", "marker"]).await.unwrap();
    let mut connection = client(&database).await;
    // Notifications arrive in the order of their commits, so everything before the marker has arrived with it.
    let mut woken = async || {
        connection.execute("notify marker").await.unwrap();
        let mut count = 0;
        loop {
            match timeout(SOON, raw.recv()).await.unwrap().unwrap().channel() {
                "marker" => return count,
                _ => count += 1,
            }
        }
    };
    let events = numbered(1, 9);
    authority.append(&id, &events[0]).await.unwrap();
    assert_eq!(woken().await, 0, "the bridge is awake");
    authority.set_sleeping(true).await.unwrap();
    authority.append(&id, &events[1]).await.unwrap();
    authority.append_batch(&id, &events[2..4]).await.unwrap();
    assert_eq!(woken().await, 0, "the stream is already dirty");
    authority.advance_published(&[(id.clone(), seq(4))]).await.unwrap();
    authority.append(&id, &events[0]).await.unwrap();
    authority.append_batch(&id, &events[0..2]).await.unwrap();
    assert_eq!(woken().await, 0, "repeats change nothing");
    authority.append(&id, &events[4]).await.unwrap();
    assert_eq!(woken().await, 1, "a clean stream turns dirty");
    authority.advance_published(&[(id.clone(), seq(5))]).await.unwrap();
    authority.append_batch(&id, &events[5..7]).await.unwrap();
    assert_eq!(woken().await, 1, "a clean stream turns dirty in bulk");
    authority.append(&stream("new"), &events[0]).await.unwrap();
    assert_eq!(woken().await, 1, "a new stream");
    authority.set_sleeping(false).await.unwrap();
    authority.advance_published(&[(id.clone(), seq(7))]).await.unwrap();
    authority.append(&id, &events[7]).await.unwrap();
    assert_eq!(woken().await, 0, "the bridge is awake again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_receives_wake_ups_and_survives_the_loss_of_its_connection() {
    let (database, authority) = setup().await;
    let mut listener = authority.listen().await.unwrap();
    authority.set_sleeping(true).await.unwrap();
    authority.append(&stream("s"), &event("k", "k", b"p")).await.unwrap();
    timeout(SOON, listener.woken()).await.unwrap().unwrap();

    let mut connection = client(&database).await;
    let end_listeners = "select pg_terminate_backend(pid) from pg_stat_activity \
                         where datname = current_database() and query ilike 'listen%'";
    connection.execute(end_listeners).await.unwrap();
    eventually("a wake-up after the loss of the connection", async || {
        timeout(SOON, listener.woken()).await.unwrap().is_ok()
    })
    .await;
    // The first wake-up may have been the loss itself. From here on the next append to a clean stream is heard.
    let mut count = 0;
    eventually("a wake-up over the new connection", async || {
        count += 1;
        let id = stream(&format!("s{count}"));
        authority.append(&id, &event("k", "k", b"p")).await.unwrap();
        matches!(timeout(Duration::from_millis(200), listener.woken()).await, Ok(Ok(())))
    })
    .await;
}
