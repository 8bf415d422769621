//! What can go wrong between the bridge and the authority, and what to do about it.

use std::time::Duration;

use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Seq, StreamId};
use spacetime_sync_transport::secret_file::SecretFileError;

/// An error on the authority's side.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The server cannot be reached, is starting or stopping, or lacks resources.
    #[error("postgres at {server} is not available; the call may be repeated")]
    Unavailable {
        /// Host, port and database, without the password.
        server: String,
        /// What the driver says.
        source: sqlx::Error,
    },
    /// A call took too long. Its connection was dropped.
    #[error("postgres at {server}: {what} took longer than {limit:?}; the call may be repeated")]
    TimedOut {
        /// Host, port and database, without the password.
        server: String,
        /// The call.
        what: &'static str,
        /// How long it may take.
        limit: Duration,
    },
    /// The database lacks migrations of the lane.
    #[error(
        "the database at {server} has migration {found} of the lane, expected {expected}; run: spacetime-sync migrate"
    )]
    NotMigrated {
        /// Host, port and database, without the password.
        server: String,
        /// The newest version applied; 0 for none.
        found: i64,
        /// The newest version this build knows.
        expected: i64,
    },
    /// The database has migrations that this build does not know.
    #[error(
        "the database at {server} has migration {found} of the lane, this build knows up to {expected}; \
         upgrade the bridge"
    )]
    NewerSchema {
        /// Host, port and database, without the password.
        server: String,
        /// The newest version applied.
        found: i64,
        /// The newest version this build knows.
        expected: i64,
    },
    /// The database has a migration that differs from this build's migration of the same version.
    #[error(
        "migration {version} in the database at {server} differs from this build's; \
         run the bridge that the database was migrated with, or restore the migration"
    )]
    ForeignMigration {
        /// Host, port and database, without the password.
        server: String,
        /// Its version.
        version: i64,
    },
    /// The migrations could not be applied.
    #[error("cannot apply the migrations of the lane to the database at {server}")]
    Migrate {
        /// Host, port and database, without the password.
        server: String,
        /// What the migrator says.
        source: sqlx::migrate::MigrateError,
    },
    /// The lane cannot work with this server or this database.
    #[error("postgres at {server} has {what} {found}, expected {expected}")]
    Unsupported {
        /// Host, port and database, without the password.
        server: String,
        /// Which property.
        what: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// The url is not a valid url of a Postgres database.
    #[error("the url of postgres is malformed, expected postgres://user:password@host:port/database")]
    Url {
        /// What the driver says. It never contains the password.
        source: sqlx::Error,
    },
    /// The connection would go over a network, and nothing would protect it.
    #[error(
        "expected sslmode=verify-full, a Unix socket or an address of this machine, found sslmode={sslmode} for postgres at \
         {server}: everybody on the way could read the log and the password, and write events; add sslmode=verify-full to \
         the url, and sslrootcert=FILE if the certificate is of a CA of your own, or, if nobody else is on that way, set \
         authority.allow_plaintext = true, or the tool's --allow-plaintext or --authority-allow-plaintext"
    )]
    Unprotected {
        /// Host, port and database, without the password.
        server: String,
        /// What the url says, or the driver's default.
        sslmode: &'static str,
    },
    /// The key of the bridge's certificate cannot be read, or others can read it.
    #[error("sslkey")]
    KeyFile(#[from] SecretFileError),
    /// The server has no such database.
    #[error("postgres at {server} has no such database; create it, or correct the end of the url")]
    NoDatabase {
        /// Host, port and database, without the password.
        server: String,
        /// What the driver says.
        source: sqlx::Error,
    },
    /// The server refuses the login, or a statement that the bridge must run.
    #[error(
        "postgres at {server} denies access; check the role, its password and its rights, which docs/security.md lists"
    )]
    Denied {
        /// Host, port and database, without the password.
        server: String,
        /// What the driver says.
        source: sqlx::Error,
    },
    /// The append functions refused an append, with an SQLSTATE of the class SY.
    #[error("{code}: {message}; {hint}")]
    Refused {
        /// `SY001` to `SY007`, as migration 1 lists them; of the journal, `SY009` and `SY010`; of projections, `SY011` to `SY017`.
        code: String,
        /// What was expected and what was found.
        message: String,
        /// What to do.
        hint: String,
    },
    /// A table that a legacy lane should have left is not there, or is another one.
    #[error(
        "the database at {server} has {found} by the name {table:?}, expected one with the columns topic, seq and payload_hash; \
         name it as Postgres does, schema.table"
    )]
    LegacyTable {
        /// Host, port and database, without the password.
        server: String,
        /// The table.
        table: String,
        /// What is there.
        found: String,
    },
    /// A row breaks the contract. That happens only if somebody writes into the tables by hand.
    #[error("stream {stream_id} holds {what} at seq {seq} that the contract does not allow; restore it from a backup")]
    Corrupt {
        /// The stream.
        stream_id: String,
        /// The position.
        seq: i64,
        /// Which field.
        what: &'static str,
    },
    /// The stream is unknown to the authority, or shorter than the caller believes.
    #[error(
        "stream {stream_id} has no seq {seq} in the authority; \
         was Postgres restored from a backup older than SpacetimeDB?"
    )]
    NoSuchSeq {
        /// The stream.
        stream_id: StreamId,
        /// The position.
        seq: Seq,
    },
    /// A statement failed in a way that only a defect or a foreign change explains.
    #[error("postgres at {server} failed a statement of the bridge")]
    Failed {
        /// Host, port and database, without the password.
        server: String,
        /// What the driver says.
        source: sqlx::Error,
    },
}

/// The SQLSTATE with which a page of the journal is refused that is of an earlier turn.
const ANOTHER_TURN: &str = "SY010";

impl AuthorityError {
    /// What to do about it.
    pub fn class(&self) -> RefusalClass {
        match self {
            Self::Unavailable { .. } | Self::TimedOut { .. } => RefusalClass::Retry,
            // The caller begins another turn.
            Self::Refused { code, .. } if code == ANOTHER_TURN => RefusalClass::Retry,
            Self::Refused { .. } | Self::Corrupt { .. } | Self::NoSuchSeq { .. } => RefusalClass::Reject,
            Self::NotMigrated { .. }
            | Self::NewerSchema { .. }
            | Self::ForeignMigration { .. }
            | Self::Migrate { .. }
            | Self::Unsupported { .. }
            | Self::Url { .. }
            | Self::Unprotected { .. }
            | Self::KeyFile(_)
            | Self::NoDatabase { .. }
            | Self::Denied { .. }
            | Self::LegacyTable { .. }
            | Self::Failed { .. } => RefusalClass::Fatal,
        }
    }

    /// The SQLSTATE of a refused append.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    pub(super) fn from_driver(server: &str, error: sqlx::Error) -> Self {
        let server = server.to_owned();
        let Some(database_error) = error
            .as_database_error()
            .and_then(|error| error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>())
        else {
            return match error {
                sqlx::Error::Io(_)
                | sqlx::Error::PoolTimedOut
                // The connection was cut in the middle of a message.
                | sqlx::Error::Protocol(_) => Self::Unavailable { server, source: error },
                _ => Self::Failed { server, source: error },
            };
        };
        let code = database_error.code();
        match code.get(..2).unwrap_or_default() {
            "SY" => Self::Refused {
                code: code.to_owned(),
                message: database_error.message().to_owned(),
                hint: hint(code, database_error).to_owned(),
            },
            // 08 connection, 25 read-only (a standby, or after a failover), 40 rollback (deadlock, serialization),
            // 53 resources, 55 lock, 57 cancel and shutdown, 58 system.
            "08" | "25" | "40" | "53" | "55" | "57" | "58" => Self::Unavailable { server, source: error },
            "3D" => Self::NoDatabase { server, source: error },
            "28" => Self::Denied { server, source: error },
            _ if code == "42501" => Self::Denied { server, source: error },
            _ => Self::Failed { server, source: error },
        }
    }
}

/// What to do about a refused append. SY005 means that a payload is too large or empty, but the function's hint only fits
/// the first case.
fn hint<'a>(code: &str, error: &'a sqlx::postgres::PgDatabaseError) -> &'a str {
    let is_empty = ["payload has 0 bytes", "payload has no bytes"]
        .iter()
        .any(|beginning| error.message().starts_with(beginning));
    if code == "SY005" && is_empty {
        return "Give the event a payload of at least one byte.";
    }
    error.hint().unwrap_or_default()
}

/// Whether the connection can be used after this error: only if the server has answered, whatever the answer.
pub(super) fn connection_is_good(error: &sqlx::Error) -> bool {
    match error {
        // 57P: the server is shutting down or ends this connection.
        sqlx::Error::Database(error) => !error.code().unwrap_or_default().starts_with("57P"),
        sqlx::Error::RowNotFound
        | sqlx::Error::TypeNotFound { .. }
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Encode(_)
        | sqlx::Error::Decode(_) => true,
        // The driver may have more kinds than it names.
        _ => false,
    }
}

/// An error inside a call, before the server's name is added to it.
pub(super) enum CallError {
    Driver(sqlx::Error),
    Content(AuthorityError),
}

impl From<sqlx::Error> for CallError {
    fn from(error: sqlx::Error) -> Self {
        Self::Driver(error)
    }
}
