//! The client inside an application: which streams it may read, and streams that come and go while it runs.

use std::collections::BTreeMap;

use spacetime_sync_client::{
    ClientConfig, Credential, Event, FollowError, HandlerError, HttpTokens, SqliteStore, StreamId, StreamPhase,
    SyncClient, TokenError, Topic,
};
use spacetime_sync_tests::issuing::BUILD;
use spacetime_sync_tests::lane::{Bridge, Lane, stream, wait};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::postgres::Cluster;

use crate::lane::faults::{SOON, ready};

/// An application of user 7 with tokens of the bridge. It keeps every event that it applies.
fn start(lane: &Lane, bridge: &Bridge, streams: &[StreamId]) -> SyncClient {
    let credential = lane.keys().unwrap().session("7", "desktop");
    let tokens = HttpTokens::new(bridge.url(), move || {
        let credential = credential.clone();
        async move { Ok::<_, TokenError>(credential) }
    });
    let mut config = ClientConfig::new(lane.server.uri(), &lane.name, streams.to_vec());
    config.credential = Credential::provider(tokens.unwrap());
    config.client_build_id = BUILD.to_owned();
    let mut store = SqliteStore::open(lane.path("application.sqlite")).unwrap();
    store
        .connection()
        .execute_batch("CREATE TABLE IF NOT EXISTS applied (stream TEXT, seq INTEGER) STRICT")
        .unwrap();
    let handler = |transaction: &mut rusqlite::Transaction<'_>, stream_id: &StreamId, events: &[Event]| {
        for event in events {
            transaction.execute(
                "INSERT INTO applied VALUES (?1, ?2)",
                (stream_id.as_str(), event.seq.to_sql()),
            )?;
        }
        Ok::<(), HandlerError>(())
    };
    SyncClient::start(config, store, handler).unwrap()
}

/// What the application holds of each stream, in the order in which it was applied.
fn applied(lane: &Lane) -> BTreeMap<String, Vec<u64>> {
    let file = rusqlite::Connection::open(lane.path("application.sqlite")).unwrap();
    let mut query = file.prepare("SELECT stream, seq FROM applied ORDER BY rowid").unwrap();
    let rows = query
        .query_map((), |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))
        .unwrap();
    let mut applied = BTreeMap::<String, Vec<u64>>::new();
    for row in rows {
        let (stream, seq) = row.unwrap();
        applied.entry(stream).or_default().push(u64::try_from(seq).unwrap());
    }
    applied
}

async fn append(lane: &Lane, id: &StreamId, writer: &str, count: u64) {
    Writer::new(&lane.authority, id, writer, Payload::UpTo(100), 1)
        .append_all(count, 5)
        .await
        .unwrap();
    assert!(lane.published(SOON).await);
}

async fn is_live(client: &SyncClient, id: &StreamId, seq: u64) {
    let status = client.status();
    wait(SOON, "the stream is live", || {
        let status = status.borrow();
        let stream = status.streams.get(id);
        stream.is_some_and(|stream| stream.phase == StreamPhase::Live && stream.applied.seq.get() == seq)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_come_and_go_while_the_client_runs() {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let bridge = lane.bridge().unwrap();
    ready(&bridge).await;
    let [first, second, third] = [1, 2, 3].map(stream);
    let topic = Topic::of_stream(&third).unwrap();
    let patterns = [first.as_str(), second.as_str(), third.as_str()];
    lane.allow("user:7", &patterns).await.unwrap();
    for id in [&first, &second, &third] {
        append(&lane, id, "a", 20).await;
    }
    let client = start(&lane, &bridge, std::slice::from_ref(&first));
    is_live(&client, &first, 20).await;
    // The token that the client has does not name the others: each begins with a new one, and nothing else stops meanwhile.
    client.follow(&second).await.unwrap();
    client.follow_topic(topic.as_str()).await.unwrap();
    is_live(&client, &second, 20).await;
    is_live(&client, &third, 20).await;
    assert_eq!(client.status().borrow().counters.reconnects, 0);
    // A stream that is gone is not applied, however much comes.
    client.unfollow(&second).await.unwrap();
    let status = client.status();
    wait(SOON, "the status has the stream no more", || {
        !status.borrow().streams.contains_key(&second)
    })
    .await;
    for id in [&second, &third] {
        append(&lane, id, "b", 20).await;
    }
    is_live(&client, &third, 40).await;
    assert_eq!(applied(&lane)[second.as_str()], (1..=20).collect::<Vec<_>>());
    // It goes on where it was, in this process and in the next.
    client.follow(&second).await.unwrap();
    is_live(&client, &second, 40).await;
    client.unfollow_topic(topic.as_str()).await.unwrap();
    client.stop().await;
    append(&lane, &third, "c", 20).await;
    let client = start(&lane, &bridge, std::slice::from_ref(&second));
    client.follow(&third).await.unwrap();
    is_live(&client, &third, 60).await;
    is_live(&client, &second, 40).await;
    let wrong = client.follow_topic("").await;
    assert!(matches!(wrong, Err(FollowError::Topic { .. })), "{wrong:?}");
    client.stop().await;
    let expected: BTreeMap<String, Vec<u64>> = [(&first, 20), (&second, 40), (&third, 60)]
        .into_iter()
        .map(|(id, head)| (id.as_str().to_owned(), (1..=head).collect()))
        .collect();
    assert_eq!(applied(&lane), expected, "each event once and in order");
    lane.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hears_which_streams_it_may_read() {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    let bridge = lane.bridge().unwrap();
    ready(&bridge).await;
    let [first, second] = [1, 2].map(stream);
    lane.allow("user:7", &[first.as_str(), second.as_str()]).await.unwrap();
    append(&lane, &first, "a", 1).await;
    let client = start(&lane, &bridge, std::slice::from_ref(&first));
    let readable = client.readable();
    let hears = async |expected: &[&StreamId]| {
        wait(SOON, "the client hears what it may read", || {
            let seen = readable.borrow();
            let streams: Vec<_> = seen.rows.streams.iter().collect();
            seen.is_live() && seen.rows.is_complete && streams == expected
        })
        .await;
    };
    hears(&[&first]).await;
    // A token that names another stream, which has no event yet. It is told of with the first.
    client.follow(&second).await.unwrap();
    let status = client.status();
    wait(SOON, "a token names the other stream", || {
        let status = status.borrow();
        let mut granted = status.token.iter().flat_map(|token| &token.granted_streams);
        granted.any(|pattern| pattern.matches(&second))
    })
    .await;
    hears(&[&first]).await;
    append(&lane, &second, "a", 1).await;
    hears(&[&first, &second]).await;
    let topics = readable.borrow().rows.topics();
    assert_eq!(topics, [&first, &second].map(|id| Topic::of_stream(id).unwrap()));
    client.stop().await;
    assert!(!readable.borrow().is_live(), "a client that has stopped hears nothing");
}
