//! Projections: documents by key, which a projector or a table makes, and what their streams and clients hear of them.

mod attached;
mod canonical;
mod projector;
mod reprojection;
mod rows;
mod seam;
mod trespass;

use std::time::Duration;

use serde_json::Value;
use spacetime_sync_proto::StreamId;
use spacetime_sync_tests::postgres::{Cluster, Database};
use sqlx::postgres::PgDatabaseError;
use sqlx::{Connection, Executor, PgConnection};

const SOON: Duration = Duration::from_secs(30);

async fn database() -> Database {
    Cluster::shared().await.create_database().await.unwrap()
}

pub(super) async fn owner(database: &Database) -> PgConnection {
    PgConnection::connect(database.url()).await.unwrap()
}

/// A new role with these duties, and its connection.
pub(super) async fn with_duties(database: &Database, duties: &[&str]) -> (String, PgConnection) {
    let roles: Vec<String> = duties.iter().map(|duty| format!("spacetime_sync_{duty}")).collect();
    let roles: Vec<&str> = roles.iter().map(String::as_str).collect();
    let (name, url) = database.login(&roles).await.unwrap();
    (name, PgConnection::connect(&url).await.unwrap())
}

/// The SQLSTATE with which a statement fails. An error of the lane has a message and a hint.
async fn refusal(connection: &mut PgConnection, statement: &str) -> (String, String) {
    let error = connection.execute(statement).await.expect_err(statement);
    let error = error.as_database_error().unwrap().downcast_ref::<PgDatabaseError>();
    if error.code().starts_with("SY") {
        assert!(error.message().len() > 20, "{}", error.message());
        assert!(error.hint().is_some(), "{}", error.message());
    }
    (error.code().to_owned(), error.message().to_owned())
}

/// What a stream tells of documents: kind and payload, in order.
async fn told(connection: &mut PgConnection, stream_id: &str) -> Vec<(String, Value)> {
    let rows: Vec<(String, Vec<u8>)> =
        sqlx::query_as("select kind, payload from runtime.sync_stream_events where stream_id = $1 order by seq")
            .bind(stream_id)
            .fetch_all(connection)
            .await
            .unwrap();
    let parsed = |(kind, payload): (String, Vec<u8>)| (kind, serde_json::from_slice(&payload).unwrap());
    rows.into_iter().map(parsed).collect()
}

pub(super) async fn number(connection: &mut PgConnection, question: &str) -> i64 {
    sqlx::query_scalar(question).fetch_one(connection).await.unwrap()
}

fn stream(name: &str) -> StreamId {
    StreamId::new(name).unwrap()
}
