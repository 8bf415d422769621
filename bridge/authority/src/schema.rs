//! The authority's migrations: applies them, and checks whether a database has them.
//!
//! sqlx keeps its list of applied migrations in a table `_sqlx_migrations` of the first schema of the search path. The lane's
//! list has a schema of its own, so that an application that uses sqlx in the same database keeps a separate list.
//!
//! Whoever applies migrations notes on that table which releases the database works with from then on. So a bridge of the release
//! before goes on with a database that the next release has migrated.

use std::sync::LazyLock;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use spacetime_sync_proto::contract::Contract;
use sqlx::error::BoxDynError;
use sqlx::migrate::{Migration, MigrationSource, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Executor};

use super::error::AuthorityError;

macro_rules! embedded {
    ($name:literal) => {
        ($name, include_str!(concat!("../../../migrations/", $name)))
    };
}

/// The files of `migrations/`. They are listed here because sqlx's macro that reads a folder would compile all of sqlx a
/// second time, for the build.
const FILES: [(&str, &str); 20] = [
    embedded!("0001_streams_and_events.sql"),
    embedded!("0002_access.sql"),
    embedded!("0003_appends_without_statistics.sql"),
    embedded!("0004_retention.sql"),
    embedded!("0005_roles.sql"),
    embedded!("0006_audit.sql"),
    embedded!("0007_revoked_subjects.sql"),
    embedded!("0008_scopes.sql"),
    embedded!("0009_hashes_of_a_batch.sql"),
    embedded!("0010_cheaper_appends.sql"),
    embedded!("0011_scope_of_providers.sql"),
    embedded!("0012_scope_of_mirrors.sql"),
    embedded!("0013_journal.sql"),
    embedded!("0014_mirror.sql"),
    embedded!("0015_give_up_relay.sql"),
    embedded!("0016_projections.sql"),
    embedded!("0017_attached_tables.sql"),
    embedded!("0018_attach_and_reproject.sql"),
    embedded!("0019_comments.sql"),
    embedded!("0020_kept_keys.sql"),
];

static MIGRATIONS: LazyLock<Vec<Migration>> = LazyLock::new(|| FILES.map(|(name, sql)| migration(name, sql)).into());

const LEDGER_SCHEMA: &str = "spacetime_sync";
const OLDEST_SERVER: i32 = 150_000;

/// Which releases a database works with, as its list of migrations says it in its comment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct WorksWith {
    /// The newest migration when this was noted. With another one, it says nothing.
    migration: i64,
    /// See [`Contract`].
    protocol: String,
    /// See [`Contract`].
    oldest: u32,
    /// See [`Contract`].
    newest: u32,
}

impl WorksWith {
    /// What this release notes when it has applied its migrations.
    fn ours() -> Self {
        let Contract {
            protocol,
            oldest,
            newest,
        } = Contract::ours();
        Self {
            migration: expected(),
            protocol,
            oldest,
            newest,
        }
    }

    /// Whether a release works with the database whose newest migration is this one.
    fn includes(&self, release: &Contract, migration: i64) -> bool {
        let theirs = Contract {
            protocol: self.protocol.clone(),
            oldest: self.oldest,
            newest: self.newest,
        };
        migration <= self.migration && release.agree(&theirs).is_ok()
    }
}

/// Hands [`MIGRATIONS`] to sqlx.
#[derive(Debug)]
struct Embedded;

impl MigrationSource<'static> for Embedded {
    fn resolve(self) -> BoxFuture<'static, Result<Vec<Migration>, BoxDynError>> {
        Box::pin(std::future::ready(Ok(MIGRATIONS.clone())))
    }
}

/// A migration from the name of its file, `VERSION_WORDS.sql`, and the text in it.
fn migration(name: &'static str, sql: &'static str) -> Migration {
    let (version, words) = name
        .trim_end_matches(".sql")
        .split_once('_')
        .unwrap_or_else(|| panic!("{name} is not named VERSION_WORDS.sql"));
    let version = version
        .parse()
        .unwrap_or_else(|error| panic!("{name} does not begin with a version: {error}"));
    Migration::new(
        version,
        words.replace('_', " ").into(),
        MigrationType::Simple,
        sql.into(),
        false,
    )
}

fn expected() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Applies the migrations that are missing. Several processes may do so at once: the migrator holds an advisory lock.
/// `role_prefix` names the group roles to make and to give their duties, whether or not a migration is missing.
pub(super) async fn migrate(
    server: &str,
    options: &PgConnectOptions,
    role_prefix: Option<&str>,
) -> Result<(), AuthorityError> {
    let driver = |error| AuthorityError::from_driver(server, error);
    let mut connection = PgConnection::connect_with(options).await.map_err(driver)?;
    check_server(server, &mut connection).await?;
    let ledger = applied(&mut connection).await.map_err(driver)?;
    check_known(server, &ledger, &mut connection).await?;
    // The migrator would need the owner's rights even to find out that there is nothing to do.
    if !is_current(&ledger) {
        apply(server, &mut connection, ledger.is_empty()).await?;
    } else if noted(&mut connection).await.map_err(driver)?.is_none() {
        note(&mut connection).await.map_err(driver)?;
    }
    if let Some(prefix) = role_prefix {
        sqlx::query("select runtime.sync_make_roles($1)")
            .bind(prefix)
            .execute(&mut connection)
            .await
            .map_err(driver)?;
    }
    connection.close().await.map_err(driver)
}

async fn apply(server: &str, connection: &mut PgConnection, is_first: bool) -> Result<(), AuthorityError> {
    let driver = |error| AuthorityError::from_driver(server, error);
    if is_first {
        // When two processes come first at once, one may lose the race inside CREATE SCHEMA IF NOT EXISTS.
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
    let failed = |source| match source {
        sqlx::migrate::MigrateError::Execute(error) => driver(error),
        source => AuthorityError::Migrate {
            server: server.to_owned(),
            source,
        },
    };
    let migrator = Migrator::new(Embedded).await.map_err(failed)?;
    if !is_first {
        // A bridge of the release before may start between two migrations.
        note(connection).await.map_err(driver)?;
    }
    migrator.run_direct(&mut *connection).await.map_err(failed)?;
    note(connection).await.map_err(driver)
}

/// What the release has noted whose migrations are the newest.
async fn noted(connection: &mut PgConnection) -> Result<Option<WorksWith>, sqlx::Error> {
    let noted: Option<String> = sqlx::query_scalar("select obj_description(to_regclass($1), 'pg_class')")
        .bind(format!("{LEDGER_SCHEMA}._sqlx_migrations"))
        .fetch_one(connection)
        .await?;
    Ok(noted.and_then(|noted| serde_json::from_str(&noted).ok()))
}

/// Notes which releases work with the database once it has this build's migrations, unless a later release has noted that already.
async fn note(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    if noted(connection)
        .await?
        .is_some_and(|noted| noted.migration > expected())
    {
        return Ok(());
    }
    // Postgres takes no parameters here. The text is this build's own, and holds no quote.
    let ours = serde_json::to_string(&WorksWith::ours()).expect("a map of texts and numbers");
    let statement = format!("comment on table {LEDGER_SCHEMA}._sqlx_migrations is '{ours}'");
    connection.execute(&*statement).await.map(drop)
}

/// Checks that this build can work with the database.
pub(super) async fn check(server: &str, connection: &mut PgConnection) -> Result<(), AuthorityError> {
    check_server(server, connection).await?;
    let ledger = applied(connection)
        .await
        .map_err(|error| AuthorityError::from_driver(server, error))?;
    check_known(server, &ledger, connection).await?;
    if !is_current(&ledger) {
        return Err(AuthorityError::NotMigrated {
            server: server.to_owned(),
            found: ledger.iter().map(|row| row.version).max().unwrap_or(0),
            expected: expected(),
        });
    }
    Ok(())
}

fn is_current(ledger: &[Applied]) -> bool {
    let is_applied = |ours: &Migration| ledger.iter().any(|row| row.version == ours.version && row.success);
    MIGRATIONS.iter().all(is_applied)
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

/// Checks that the migrations are ours, or that a release has applied the others that this one works with.
async fn check_known(server: &str, ledger: &[Applied], connection: &mut PgConnection) -> Result<(), AuthorityError> {
    let newest = ledger.iter().map(|row| row.version).max().unwrap_or(0);
    for row in ledger {
        let Some(ours) = MIGRATIONS.iter().find(|ours| ours.version == row.version) else {
            continue;
        };
        if *ours.checksum != *row.checksum {
            return Err(AuthorityError::ForeignMigration {
                server: server.to_owned(),
                version: row.version,
            });
        }
    }
    let is_ours = |row: &Applied| MIGRATIONS.iter().any(|ours| ours.version == row.version);
    if ledger.iter().all(is_ours) {
        return Ok(());
    }
    let noted = noted(connection)
        .await
        .map_err(|error| AuthorityError::from_driver(server, error))?;
    if noted.is_some_and(|noted| noted.includes(&Contract::ours(), newest)) {
        return Ok(());
    }
    Err(AuthorityError::NewerSchema {
        server: server.to_owned(),
        found: newest,
        expected: expected(),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_embedded() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations");
        let files = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        let mut names: Vec<String> = files
            .map(|file| file.unwrap_or_else(|error| panic!("{folder}: {error}")))
            .map(|file| file.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, FILES.map(|(name, _)| name));
    }

    #[test]
    fn a_release_works_with_a_database_of_the_next_one_while_that_says_so() {
        let release = |oldest, newest| Contract {
            oldest,
            newest,
            ..Contract::ours()
        };
        let noted = WorksWith {
            migration: 20,
            protocol: Contract::ours().protocol,
            oldest: 11,
            newest: 12,
        };
        assert!(noted.includes(&release(11, 11), 20), "the release before");
        assert!(noted.includes(&release(12, 13), 20), "the release after");
        assert!(!noted.includes(&release(10, 10), 20), "an older one");
        assert!(
            !noted.includes(&release(11, 11), 21),
            "somebody else has migrated it since"
        );
        assert!(WorksWith::ours().includes(&Contract::ours(), expected()));
        let text = serde_json::to_string(&WorksWith::ours()).unwrap();
        assert!(!text.contains('\''));
        assert_eq!(serde_json::from_str::<WorksWith>(&text).unwrap(), WorksWith::ours());
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A bridge refuses a database that has recorded other values, so these must never change.
    #[test]
    fn migrations_match_what_databases_have_recorded() {
        let recorded: Vec<(i64, &str, String)> = MIGRATIONS
            .iter()
            .map(|migration| {
                (
                    migration.version,
                    &*migration.description,
                    hex(&migration.checksum[..8]),
                )
            })
            .collect();
        let expected = [
            (1, "streams and events", "d9bff8010ef57156"),
            (2, "access", "8ca13397e264bbaa"),
            (3, "appends without statistics", "a3d5583fadbd2dac"),
            (4, "retention", "219d4bc57326bba4"),
            (5, "roles", "b1cf1fdec47d3857"),
            (6, "audit", "73f49badff45b61f"),
            (7, "revoked subjects", "52d530e684ea9c2c"),
            (8, "scopes", "de53e0ca9dbdc404"),
            (9, "hashes of a batch", "d8bad949ac04518b"),
            (10, "cheaper appends", "96c91b9d123b4853"),
            (11, "scope of providers", "139677f611e16522"),
            (12, "scope of mirrors", "a1162b33241dc217"),
            (13, "journal", "b17c14380dfec106"),
            (14, "mirror", "a04a2d3ea900da5e"),
            (15, "give up relay", "2a3b68775f4e5c43"),
            (16, "projections", "dd3d4339f89cabee"),
            (17, "attached tables", "ed25612c9b7fd09a"),
            (18, "attach and reproject", "65f26e6a8ec83ce1"),
            (19, "comments", "1adf016dd5e95b70"),
            (20, "kept keys", "5f0a9271d95911cb"),
        ];
        assert_eq!(
            recorded,
            expected.map(|(version, words, checksum)| (version, words, checksum.to_owned()))
        );
    }
}
