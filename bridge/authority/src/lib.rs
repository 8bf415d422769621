//! The authority: the runtime's Postgres, where every event comes into being. All SQL of the bridge is here.
//!
//! The crate survives a restart of Postgres: a call that fails returns an error of class retry, and the next one connects
//! again. Every call has a time limit, so that a dead network never blocks the bridge.
//!
//! The cost of a statement does not depend on Postgres' statistics, because each statement has only one possible plan: it
//! asks for a single value as a range with an order, or as a join on a range, and the session's settings forbid scans and
//! sorts. With "=", a plan that Postgres made when it took a table for empty would keep reading all of it (migration 3).
//!
//! This crate never verifies hashes, because the lane does, and never writes to the log, except in `append`.

mod access;
mod append;
mod audit;
mod connections;
mod error;
mod history;
mod leadership;
mod log;
mod positions;
mod published;
mod retention;
mod schema;
pub mod settings;
mod standing;
mod wake;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use spacetime_sync_proto::StreamId;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::time::timeout;

pub use access::{Access, AccessQuestion, BoundSession};
pub use append::NewEvent;
pub use audit::{Act, Actor};
pub use error::AuthorityError;
pub use history::History;
pub use leadership::{Candidate, Leadership};
pub use published::Advanced;
pub use retention::Extent;
pub use standing::Standing;
pub use wake::WakeListener;

use connections::{CALL_LIMIT, Connections};
use error::CallError;
use leadership::LeadSession;

/// How long a statement may take on the server. A call may take a little longer, so that the server usually ends it first.
const STATEMENT_LIMIT_MS: &str = "25000";

/// True for rows with a valid stream name. The append functions accept no other name, but somebody may have written one into
/// the table by hand, and other streams must not suffer from it.
macro_rules! is_name {
    () => {
        "stream_id ~ '^[A-Za-z0-9._:/@+=~%-]+$'"
    };
}
use is_name;

/// How long applying the migrations may take.
const MIGRATE_LIMIT: Duration = Duration::from_secs(600);

/// The runtime's Postgres. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Authority {
    connections: Arc<Connections>,
    /// The session in which this process had the lead until the session stopped answering.
    lost_lead: Arc<Mutex<Option<LeadSession>>>,
}

impl Authority {
    /// Connects, and checks that the database has exactly the migrations of this build.
    pub async fn connect(url: &str, pool_size: usize) -> Result<Self, AuthorityError> {
        let authority = Self::unconnected(url, pool_size)?;
        let connections = &authority.connections;
        let check = async |connection: &mut PgConnection| {
            schema::check(connections.server(), connection)
                .await
                .map_err(CallError::Content)
        };
        connections.run("the check of the schema", check).await?;
        Ok(authority)
    }

    /// Connects with the first call, and does not check the migrations.
    pub fn unconnected(url: &str, pool_size: usize) -> Result<Self, AuthorityError> {
        let (server, options) = parse(url)?;
        Ok(Self {
            connections: Arc::new(Connections::new(server, options, pool_size)),
            lost_lead: Arc::default(),
        })
    }

    /// The same database with connections of its own, so that one kind of work never waits for connections of another.
    #[must_use]
    pub fn beside(&self, pool_size: usize) -> Self {
        let (server, options) = (self.connections.server().to_owned(), self.connections.options().clone());
        Self {
            connections: Arc::new(Connections::new(server, options, pool_size)),
            lost_lead: self.lost_lead.clone(),
        }
    }

    /// Drops the connections that no call uses: whatever ended one of them most likely ended all.
    pub fn forget_connections(&self) {
        self.connections.forget_idle();
    }

    /// Applies the migrations that the database lacks. Several processes may do so at once.
    pub async fn migrate(url: &str) -> Result<(), AuthorityError> {
        Self::migrate_for(url, None).await
    }

    /// Like [`migrate`](Self::migrate), and gives the group roles with this prefix their duties (migration 6).
    pub async fn migrate_with_roles(url: &str, prefix: &str) -> Result<(), AuthorityError> {
        Self::migrate_for(url, Some(prefix)).await
    }

    async fn migrate_for(url: &str, role_prefix: Option<&str>) -> Result<(), AuthorityError> {
        let (server, options) = parse(url)?;
        // The bound on statements is for calls of the lane. Creating an index on a large table takes longer.
        let mut options = options.options([("statement_timeout", "0")]);
        if let Some(prefix) = role_prefix {
            options = options.options([("spacetime_sync.role_prefix", prefix)]);
        }
        match timeout(MIGRATE_LIMIT, schema::migrate(&server, &options, role_prefix)).await {
            Ok(result) => result,
            Err(_) => Err(AuthorityError::TimedOut {
                server,
                what: "the migrations",
                limit: MIGRATE_LIMIT,
            }),
        }
    }

    /// A candidate that can ask for the lead repeatedly, on one connection.
    pub fn candidate(&self) -> Candidate {
        let (server, options) = (self.connections.server().to_owned(), self.connections.options().clone());
        Candidate::new(server, options, self.lost_lead.clone())
    }

    /// Takes the lead if no other bridge has it, on a connection of its own.
    pub async fn try_lead(&self) -> Result<Option<Leadership>, AuthorityError> {
        self.candidate().try_lead().await
    }

    /// Closes the connections that no call uses.
    pub async fn close(&self) {
        self.connections.close().await;
    }

    /// Bounds a call that makes a connection of its own.
    async fn limit<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, AuthorityError>>,
    ) -> Result<T, AuthorityError> {
        match timeout(CALL_LIMIT, call).await {
            Ok(result) => result,
            Err(_) => Err(self.connections.timed_out(what, CALL_LIMIT)),
        }
    }
}

fn parse(url: &str) -> Result<(String, PgConnectOptions), AuthorityError> {
    // The driver would accept any scheme.
    if !["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
    {
        return Err(AuthorityError::Url {
            source: sqlx::Error::Configuration("expected the scheme postgres:// or postgresql://".into()),
        });
    }
    let options: PgConnectOptions = url.parse().map_err(|source| AuthorityError::Url { source })?;
    let options = options.application_name("spacetime-sync").options([
        ("statement_timeout", STATEMENT_LIMIT_MS),
        // With these the server notices that a bridge has vanished, and releases its locks, above all the lead.
        ("tcp_keepalives_idle", "3"),
        ("tcp_keepalives_interval", "2"),
        ("tcp_keepalives_count", "2"),
        // Every statement of the bridge uses an index, in its order. Before the first ANALYZE of a table that has just
        // grown, the planner takes it for empty and would sort all of it for every page.
        ("enable_seqscan", "off"),
        ("enable_bitmapscan", "off"),
        ("enable_sort", "off"),
        // A statement that needs a sort now looks so expensive that Postgres would compile it, for 10 ms each time.
        ("jit", "off"),
    ]);
    let server = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    let server = format!("{server}/{}", options.get_database().unwrap_or(options.get_username()));
    Ok((server, options))
}

fn stream_id(text: &str) -> Result<StreamId, CallError> {
    StreamId::new(text).map_err(|_| {
        CallError::Content(AuthorityError::Corrupt {
            stream_id: text.to_owned(),
            seq: 0,
            what: "a stream_id",
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bridge runs every call in spawned tasks.
    #[test]
    fn calls_can_be_spawned() {
        fn check<T: Send>(_: impl FnOnce(&'static Authority) -> T) {}
        check(|authority| authority.dirty_streams(None, 1));
        check(|authority| authority.advance_published(&[]));
        check(|authority| authority.set_sleeping(true));
        check(|authority| authority.listen());
        check(|authority| authority.try_lead());
    }

    #[test]
    fn a_url_is_named_without_its_password() {
        let (server, _) = parse("postgres://me:secret@db.example:5433/runtime").unwrap();
        assert_eq!(server, "db.example:5433/runtime");
        let error = parse("mysql://me:secret@db.example/runtime").map(|_| ()).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("secret"));
        assert!(matches!(error, AuthorityError::Url { .. }));
    }
}
