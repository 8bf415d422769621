//! Who may do what in the authority, enforced by Postgres: roles that own nothing, each with the rights of its duty.

mod audit;
mod lane;
mod lead;
mod migration;
mod rights;
mod upgrade;

use std::time::Duration;

use bytes::Bytes;
use spacetime_sync_authority::{Authority, NewEvent};
use spacetime_sync_proto::{IdempotencyKey, Kind, StreamId};
use spacetime_sync_tests::postgres::{Cluster, Database};
use sqlx::{Connection, Executor, PgConnection};

const SOON: Duration = Duration::from_secs(30);
/// SQLSTATE: a right is missing.
const DENIED: &str = "42501";

async fn database() -> Database {
    Cluster::shared().await.create_database().await.unwrap()
}

/// A connection as a new role with these duties.
async fn with_duties(database: &Database, duties: &[&str]) -> PgConnection {
    let roles: Vec<String> = duties.iter().map(|duty| format!("spacetime_sync_{duty}")).collect();
    let roles: Vec<&str> = roles.iter().map(String::as_str).collect();
    let (_, url) = database.login(&roles).await.unwrap();
    PgConnection::connect(&url).await.unwrap()
}

async fn owner(database: &Database) -> PgConnection {
    PgConnection::connect(database.url()).await.unwrap()
}

/// The SQLSTATE with which a statement fails.
async fn refusal(connection: &mut PgConnection, statement: &str) -> String {
    let error = connection.execute(statement).await.expect_err(statement);
    let error = error
        .as_database_error()
        .unwrap_or_else(|| panic!("{statement}: {error}"));
    error.code().unwrap_or_default().into_owned()
}

/// Asserts that each statement fails because a right is missing.
async fn all_denied(connection: &mut PgConnection, statements: &[&str]) {
    for statement in statements {
        let code = refusal(connection, statement).await;
        assert_eq!(code, DENIED, "{statement}");
    }
}

fn stream(name: &str) -> StreamId {
    StreamId::new(name).unwrap()
}

fn event(key: &str) -> NewEvent {
    NewEvent {
        idempotency_key: IdempotencyKey::new(key).unwrap(),
        kind: Kind::new("k").unwrap(),
        payload: Bytes::from_static(b"payload"),
    }
}

/// Appends events to the stream `s`, as the owner.
async fn append(database: &Database, keys: &[&str]) -> Authority {
    let authority = Authority::connect(database.url(), 2).await.unwrap();
    for key in keys {
        authority.append(&stream("s"), &event(key)).await.unwrap();
    }
    authority
}
