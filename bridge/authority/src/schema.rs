//! The authority's migrations: applying them, and knowing whether a database has them.
//!
//! sqlx keeps its ledger in a table `_sqlx_migrations` of the first schema of the search path. Ours stands in a schema
//! of its own, so that it never meets the ledger of an application that uses sqlx in the same database.

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Executor};

use super::error::AuthorityError;

static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations");
const LEDGER_SCHEMA: &str = "spacetime_sync";
const OLDEST_SERVER: i32 = 150_000;

fn expected() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Applies what is missing. Several at once are safe: the migrator holds an advisory lock.
pub(super) async fn migrate(server: &str, options: &PgConnectOptions) -> Result<(), AuthorityError> {
    let driver = |error| AuthorityError::from_driver(server, error);
    let mut connection = PgConnection::connect_with(options).await.map_err(driver)?;
    check_server(server, &mut connection).await?;
    let ledger = applied(&mut connection).await.map_err(driver)?;
    check_known(server, &ledger)?;
    if ledger.is_empty() {
        // Two that come first at once: one of them may lose the race inside CREATE SCHEMA IF NOT EXISTS.
        let created = connection
            .execute(&*format!("create schema if not exists {LEDGER_SCHEMA}"))
            .await;
        if let Err(error) = created {
            let lost_race = error
                .as_database_error()
                .is_some_and(|error| error.is_unique_violation());
            if !lost_race {
                return Err(driver(error));
            }
        }
    }
    connection
        .execute(&*format!(
            "set search_path = {LEDGER_SCHEMA}; set client_min_messages = warning"
        ))
        .await
        .map_err(driver)?;
    MIGRATOR
        .run_direct(&mut connection)
        .await
        .map_err(|source| match source {
            sqlx::migrate::MigrateError::Execute(error) => driver(error),
            source => AuthorityError::Migrate {
                server: server.to_owned(),
                source,
            },
        })?;
    connection.close().await.map_err(driver)
}

/// Whether the database is one that this build can work with.
pub(super) async fn check(server: &str, connection: &mut PgConnection) -> Result<(), AuthorityError> {
    check_server(server, connection).await?;
    let ledger = applied(connection)
        .await
        .map_err(|error| AuthorityError::from_driver(server, error))?;
    check_known(server, &ledger)?;
    let missing = MIGRATOR
        .iter()
        .any(|ours| !ledger.iter().any(|row| row.version == ours.version && row.success));
    if missing {
        return Err(AuthorityError::NotMigrated {
            server: server.to_owned(),
            found: ledger.iter().map(|row| row.version).max().unwrap_or(0),
            expected: expected(),
        });
    }
    Ok(())
}

struct Applied {
    version: i64,
    success: bool,
    checksum: Vec<u8>,
}

async fn applied(connection: &mut PgConnection) -> Result<Vec<Applied>, sqlx::Error> {
    let there: bool = sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(format!("{LEDGER_SCHEMA}._sqlx_migrations"))
        .fetch_one(&mut *connection)
        .await?;
    if !there {
        return Ok(Vec::new());
    }
    let rows: Vec<(i64, bool, Vec<u8>)> = sqlx::query_as(&format!(
        "select version, success, checksum from {LEDGER_SCHEMA}._sqlx_migrations order by version"
    ))
    .fetch_all(connection)
    .await?;
    let row = |(version, success, checksum)| Applied {
        version,
        success,
        checksum,
    };
    Ok(rows.into_iter().map(row).collect())
}

fn check_known(server: &str, ledger: &[Applied]) -> Result<(), AuthorityError> {
    for row in ledger {
        let Some(ours) = MIGRATOR.iter().find(|ours| ours.version == row.version) else {
            return Err(AuthorityError::NewerSchema {
                server: server.to_owned(),
                found: ledger.iter().map(|row| row.version).max().unwrap_or(row.version),
                expected: expected(),
            });
        };
        if *ours.checksum != *row.checksum {
            return Err(AuthorityError::ForeignMigration {
                server: server.to_owned(),
                version: row.version,
            });
        }
    }
    Ok(())
}

async fn check_server(server: &str, connection: &mut PgConnection) -> Result<(), AuthorityError> {
    let (number, version, encoding): (i32, String, String) = sqlx::query_as(
        "select current_setting('server_version_num')::int, current_setting('server_version'), \
         current_setting('server_encoding')",
    )
    .fetch_one(connection)
    .await
    .map_err(|error| AuthorityError::from_driver(server, error))?;
    let unsupported = |what, found, expected| AuthorityError::Unsupported {
        server: server.to_owned(),
        what,
        found,
        expected,
    };
    if number < OLDEST_SERVER {
        return Err(unsupported("version", version, "15 or later"));
    }
    if encoding != "UTF8" {
        return Err(unsupported("a database of encoding", encoding, "UTF8"));
    }
    Ok(())
}
