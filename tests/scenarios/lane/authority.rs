//! The authority's SQL functions and the bridge's use of them, on a real Postgres.

mod appends;
mod batches;
mod connections;
mod costs;
mod journal;
mod keys;
mod reading;
mod sessions;
mod wake;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng, SeedableRng};
use spacetime_sync_authority::{Advanced, Authority, AuthorityError, NewEvent};
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{ChainHash, Event, IdempotencyKey, Kind, Seq, StreamId, limit};
use spacetime_sync_tests::postgres::{Cluster, Database};
use spacetime_sync_tests::proxy::{Direction, Proxy};
use sqlx::postgres::PgDatabaseError;
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(20);
const ALL: usize = usize::MAX;

async fn setup() -> (Database, Authority) {
    let database = Cluster::shared().await.create_database().await.unwrap();
    let authority = Authority::connect(database.url(), 8).await.unwrap();
    (database, authority)
}

async fn client(database: &Database) -> PgConnection {
    PgConnection::connect(database.url()).await.unwrap()
}

fn stream(id: &str) -> StreamId {
    StreamId::new(id).unwrap()
}

fn seq(seq: u64) -> Seq {
    Seq::new(seq).unwrap()
}

fn event(key: &str, kind: &str, payload: &[u8]) -> NewEvent {
    NewEvent {
        idempotency_key: IdempotencyKey::new(key).unwrap(),
        kind: Kind::new(kind).unwrap(),
        payload: Bytes::copy_from_slice(payload),
    }
}

fn numbered(from: usize, to: usize) -> Vec<NewEvent> {
    (from..=to)
        .map(|n| event(&format!("key-{n}"), "test.event", format!("payload {n}").as_bytes()))
        .collect()
}

/// Every event of a stream, after checking that they form one chain from the beginning, as the contract computes it.
async fn verified_log(authority: &Authority, stream_id: &StreamId) -> Vec<Event> {
    let log = authority
        .read_events(stream_id, Seq::ZERO, 1_000_000, ALL)
        .await
        .unwrap();
    let mut chain = ChainHash::genesis(stream_id);
    let mut at = Seq::ZERO;
    for event in &log {
        at = at.next();
        assert_eq!(event.seq, at);
        assert!(event.payload_matches(), "payload of {at}");
        assert!(event.follows(&chain), "chain at {at}");
        chain = event.chain_hash;
    }
    assert_eq!(authority.chain_at(stream_id, at).await.unwrap(), Some(chain));
    assert_eq!(authority.chain_at(stream_id, at.next()).await.unwrap(), None);
    log
}

/// The SQLSTATE with which a statement fails. The error must have a message and a hint.
async fn refusal(connection: &mut PgConnection, statement: &str) -> String {
    let error = connection.execute(statement).await.expect_err(statement);
    let error = error.as_database_error().unwrap().downcast_ref::<PgDatabaseError>();
    if error.code().starts_with("SY") {
        assert!(error.message().len() > 20, "{}", error.message());
        assert!(error.hint().is_some(), "{}", error.message());
    }
    error.code().to_owned()
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, wait)
        .await
        .unwrap_or_else(|_| panic!("did not happen in time: {what}"));
}
