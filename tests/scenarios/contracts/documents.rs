//! Documents in an application: a table that becomes a live stream of them, and clients that come anew, come back after too long, or
//! are stopped while they fetch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use serde::Deserialize;
use spacetime_sync_client::{
    Changed, ClientConfig, Closures, Content, Credential, Document, Documents, FollowError, Handler, HttpTokens,
    NoEvents, SqliteStore, StreamId, StreamPhase, SyncClient, TokenError,
};
use spacetime_sync_tests::issuing::BUILD;
use spacetime_sync_tests::lane::{Bridge, BridgeOptions, Lane, wait, wait_for};
use spacetime_sync_tests::postgres::Cluster;
use sqlx::{Connection as _, PgConnection};

use crate::lane::faults::{SOON, ready};

const ORDERS: &str = "create table public.orders (
        id bigint primary key, status text not null, note text not null default '');
    select runtime.sync_attach('public.orders', stream => 'shop.orders')";

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Order {
    id: i64,
    status: String,
}

fn orders() -> StreamId {
    StreamId::new("shop.orders").unwrap()
}

/// A lane with a table of orders, and a bridge that looks after windows and the log all the time.
async fn lane() -> (Lane, Bridge) {
    let lane = Lane::start_with_tokens(Cluster::shared().await).await.unwrap();
    lane.sql(ORDERS).await.unwrap();
    lane.allow("user:7", &["shop.orders"]).await.unwrap();
    let bridge = lane
        .bridge_with(&BridgeOptions {
            set: vec![
                ("retention.windows", "on".to_owned()),
                ("retention.every_ms", "100".to_owned()),
            ],
            ..BridgeOptions::default()
        })
        .unwrap();
    ready(&bridge).await;
    (lane, bridge)
}

/// An application of user 7 that follows the orders as documents.
fn start(lane: &Lane, bridge: &Bridge) -> SyncClient {
    start_with(lane, bridge, NoEvents)
}

fn start_with(lane: &Lane, bridge: &Bridge, handler: impl Handler<SqliteStore>) -> SyncClient {
    let mut config = config(lane, bridge);
    config.documents = vec![orders()];
    SyncClient::start(config, SqliteStore::open(lane.path("orders.sqlite")).unwrap(), handler).unwrap()
}

/// Streams that have begun anew, and as of which seq.
type Begun = Arc<Mutex<Vec<(StreamId, u64)>>>;

/// The same, and what its handler was told of new beginnings.
fn start_telling(lane: &Lane, bridge: &Bridge) -> (SyncClient, Begun) {
    let begun = Begun::default();
    let told = Arc::clone(&begun);
    let handler =
        Closures::new().documents_begun(move |stream, at| told.lock().unwrap().push((stream.clone(), at.seq.get())));
    (start_with(lane, bridge, handler), begun)
}

fn config(lane: &Lane, bridge: &Bridge) -> ClientConfig {
    let credential = lane.keys().unwrap().session("7", "desktop");
    let tokens = HttpTokens::new(bridge.url(), move || {
        let credential = credential.clone();
        async move { Ok::<_, TokenError>(credential) }
    });
    let mut config = ClientConfig::new(lane.server.uri(), &lane.name, Vec::new());
    config.credential = Credential::provider(tokens.unwrap());
    config.client_build_id = BUILD.to_owned();
    config
}

/// What the application reads: the status of each order.
fn seen(documents: &Documents<Order>) -> BTreeMap<i64, String> {
    let decoded = |document: Document<Order>| match document.content {
        Content::Decoded(order) => (order.id, order.status),
        Content::Fetching | Content::NotDecoded(_) => (-1, document.key),
    };
    documents.all().unwrap().into_iter().map(decoded).collect()
}

/// What the table holds.
async fn held(lane: &Lane) -> BTreeMap<i64, String> {
    let rows: Vec<(i64, String)> = sqlx::query_as("select id, status from public.orders")
        .fetch_all(&mut PgConnection::connect(lane.database.url()).await.unwrap())
        .await
        .unwrap();
    rows.into_iter().collect()
}

/// Waits until the application sees what the table holds.
async fn agrees(lane: &Lane, documents: &Documents<Order>) {
    let expected = held(lane).await;
    wait(SOON, "the application sees what the table holds", || {
        seen(documents) == expected
    })
    .await;
}

async fn is_live(client: &SyncClient) {
    let status = client.status();
    wait(SOON, "the stream is live", || {
        let status = status.borrow();
        let stream = status.streams.get(&orders());
        stream.is_some_and(|stream| stream.phase == StreamPhase::Live)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_a_live_stream_of_documents_in_an_application() {
    let (lane, bridge) = lane().await;
    lane.sql("insert into public.orders select n, 'open' from generate_series(1, 40) n")
        .await
        .unwrap();
    let client = start(&lane, &bridge);
    let mut documents = client.documents::<Order>(&orders()).unwrap();
    agrees(&lane, &documents).await;
    is_live(&client).await;
    assert_eq!(documents.count().unwrap(), 40);
    // Whatever was told of the beginning is heard.
    while tokio::time::timeout(std::time::Duration::from_millis(1), documents.changed())
        .await
        .is_ok()
    {}

    lane.sql("update public.orders set status = 'paid' where id = 7; delete from public.orders where id = 8")
        .await
        .unwrap();
    let mut changed = BTreeSet::new();
    while changed.len() < 2 {
        match documents.changed().await.unwrap() {
            Changed::Documents(keys) => changed.extend(keys),
            Changed::Everything => panic!("two documents have changed"),
        }
    }
    let keys: Vec<_> = changed.iter().map(|key| key.rsplit(':').next().unwrap()).collect();
    assert_eq!(keys, ["7", "8"], "{changed:?}");
    agrees(&lane, &documents).await;
    let paid = documents
        .all()
        .unwrap()
        .into_iter()
        .find(|document| document.key.ends_with(":7"))
        .unwrap();
    let by_key = documents.get(&paid.key).unwrap().unwrap();
    assert_eq!(by_key, paid);
    assert_eq!(by_key.content.decoded().unwrap().status, "paid");
    assert_eq!(
        by_key.version,
        by_key.seq.get(),
        "a table has no other version than the event's seq"
    );

    // The store shows the same without a client, to SQL too, with the fields that the application does not know.
    client.stop().await;
    assert_eq!(documents.changed().await, None);
    assert_eq!(seen(&documents), held(&lane).await);
    let file = rusqlite::Connection::open(lane.path("orders.sqlite")).unwrap();
    let note: String = file
        .query_row(
            "select content ->> 'note' from spacetime_sync_documents where stream_id = 'shop.orders' and doc_key = ?1",
            [&paid.key],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(note, "");
    lane.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_anew_or_back_after_too_long_gets_the_newest_versions_and_then_what_came_after() {
    let (lane, bridge) = lane().await;
    lane.sql("insert into public.orders select n, 'open' from generate_series(1, 50) n")
        .await
        .unwrap();
    for round in 0..20 {
        let more =
            format!("update public.orders set status = 'round {round}'; delete from public.orders where id = {round}");
        lane.sql(&more).await.unwrap();
    }
    assert!(lane.published(SOON).await);
    let mut authority = PgConnection::connect(lane.database.url()).await.unwrap();
    let head: i64 = sqlx::query_scalar("select head_seq from runtime.sync_streams where stream_id = 'shop.orders'")
        .fetch_one(&mut authority)
        .await
        .unwrap();
    let (client, begun) = start_telling(&lane, &bridge);
    let documents = client.documents::<Order>(&orders()).unwrap();
    agrees(&lane, &documents).await;
    is_live(&client).await;
    let counters = client.stop().await.counters;
    assert_eq!(*begun.lock().unwrap(), [(orders(), head.cast_unsigned())]);
    assert_eq!(counters.rebootstraps, 1);
    assert_eq!(
        counters.events_applied, 0,
        "a thousand events are not replayed for 31 documents"
    );

    // The authority purges whatever the client lacks.
    lane.sql(
        "insert into runtime.sync_retention (class, stream_prefix, window_events, window_age, log_events, log_age)
         values ('shop', 'shop.', 20, '1 day', 40, '1 day')",
    )
    .await
    .unwrap();
    for round in 20..30 {
        let more =
            format!("update public.orders set status = 'round {round}'; delete from public.orders where id = {round}");
        lane.sql(&more).await.unwrap();
    }
    wait_for(SOON, "the log is purged past the client", async || {
        let oldest = "select oldest_seq from runtime.sync_streams where stream_id = 'shop.orders'";
        let oldest: i64 = sqlx::query_scalar(oldest).fetch_one(&mut authority).await.unwrap();
        oldest > 1_000
    })
    .await;
    let (client, begun) = start_telling(&lane, &bridge);
    let documents = client.documents::<Order>(&orders()).unwrap();
    agrees(&lane, &documents).await;
    is_live(&client).await;
    assert_eq!(
        begun.lock().unwrap().len(),
        1,
        "the handler was told of one new beginning"
    );
    assert_eq!(seen(&documents).len(), 21, "what was deleted meanwhile is gone");
    assert_eq!(client.status().borrow().counters.rebootstraps, 1);
    lane.sql("insert into public.orders values (100, 'late')")
        .await
        .unwrap();
    agrees(&lane, &documents).await;
    client.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_go_on_while_a_client_begins_and_is_stopped_again_and_again() {
    let (lane, bridge) = lane().await;
    lane.sql("insert into public.orders select n, 'open' from generate_series(1, 5000) n")
        .await
        .unwrap();
    assert!(lane.published(SOON).await);
    let writes = async {
        for round in 0..40 {
            let more = format!(
                "update public.orders set status = 'round {round}' where id % 97 = {round};
                 delete from public.orders where id % 131 = {round};
                 insert into public.orders values (10000 + {round}, 'new')"
            );
            lane.sql(&more).await.unwrap();
        }
    };
    let stops = async {
        for _ in 0..6 {
            // What a handler does when it is told changes nothing.
            let handler = Closures::new().documents_begun(|_, _| panic!("told of documents"));
            let client = start_with(&lane, &bridge, handler);
            let status = client.status();
            // It has begun to fetch, or is further.
            wait(SOON, "the client fetches", || {
                status.borrow().counters.document_pages > 0
            })
            .await;
            client.stop().await;
        }
    };
    tokio::join!(writes, stops);
    let client = start(&lane, &bridge);
    let documents = client.documents::<Order>(&orders()).unwrap();
    agrees(&lane, &documents).await;
    is_live(&client).await;
    client.stop().await;
    lane.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_too_large_for_its_event_is_fetched_and_what_cannot_be_decoded_stops_nothing() {
    let (lane, bridge) = lane().await;
    lane.sql(
        "insert into public.orders values (1, 'large', repeat('x', 100000)), (2, 'small', '');
         create table public.notes (id bigint primary key, body text);
         select runtime.sync_attach('public.notes', stream => 'shop.orders')",
    )
    .await
    .unwrap();
    let client = start(&lane, &bridge);
    let documents = client.documents::<Order>(&orders()).unwrap();
    agrees(&lane, &documents).await;
    wait(SOON, "the content is counted", || {
        client.status().borrow().counters.contents == 1
    })
    .await;
    // A newer version while it is live, and one that is not an order.
    lane.sql(
        "update public.orders set status = 'larger' where id = 1; insert into public.notes values (3, 'no order')",
    )
    .await
    .unwrap();
    wait(SOON, "both are there", || {
        let all = documents.all().unwrap();
        let larger = all.iter().any(|document| {
            let order = document.content.decoded();
            order.is_some_and(|order| order.status == "larger")
        });
        let other = all.iter().any(|document| match &document.content {
            Content::NotDecoded(not_decoded) => not_decoded.bytes == br#"{"body":"no order","id":3}"#,
            Content::Decoded(_) | Content::Fetching => false,
        });
        larger && other && all.len() == 3
    })
    .await;
    assert_eq!(client.status().borrow().counters.documents_refused, 0);
    client.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_followed_as_documents_or_as_events_and_begins_anew_as_the_other() {
    let (lane, bridge) = lane().await;
    lane.sql("insert into public.orders select n, 'open' from generate_series(1, 5) n")
        .await
        .unwrap();
    let other = StreamId::new("shop.others").unwrap();
    let mut config = config(&lane, &bridge);
    config.streams = vec![other.clone()];
    let mut store = SqliteStore::open(lane.path("orders.sqlite")).unwrap();
    store
        .connection()
        .execute_batch("create table applied (seq integer)")
        .unwrap();
    let client = SyncClient::start(
        config,
        store,
        |transaction: &mut rusqlite::Transaction<'_>, _: &StreamId, events: &[spacetime_sync_client::Event]| {
            for event in events {
                transaction.execute("insert into applied values (?1)", [event.seq.to_sql()])?;
            }
            Ok::<(), spacetime_sync_client::HandlerError>(())
        },
    )
    .unwrap();
    let documents = client.documents::<Order>(&orders()).unwrap();
    client.follow_documents(&orders()).await.unwrap();
    agrees(&lane, &documents).await;
    let refused = client.follow(&orders()).await;
    assert_eq!(refused, Err(FollowError::OtherKind));
    client.unfollow(&orders()).await.unwrap();
    // What was under way for it as documents ends first.
    while client.follow(&orders()).await == Err(FollowError::Busy) {
        tokio::task::yield_now().await;
    }
    let file = rusqlite::Connection::open(lane.path("orders.sqlite")).unwrap();
    wait(SOON, "the handler has every event", || {
        let seqs: String = file
            .query_row("select coalesce(group_concat(seq, ','), '') from applied", [], |row| {
                row.get(0)
            })
            .unwrap();
        seqs == "1,2,3,4,5"
    })
    .await;
    assert_eq!(documents.count().unwrap(), 0, "nothing is shown that does not go on");
    client.unfollow(&orders()).await.unwrap();
    lane.sql("delete from public.orders where id = 1").await.unwrap();
    while client.follow_documents(&orders()).await == Err(FollowError::Busy) {
        tokio::task::yield_now().await;
    }
    agrees(&lane, &documents).await;
    client.stop().await;
}
