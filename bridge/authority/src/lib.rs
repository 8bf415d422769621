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
mod documents;
mod error;
mod history;
mod journal;
mod leadership;
mod legacy;
mod log;
mod mirror;
mod outbox;
mod positions;
mod projections;
mod published;
mod relay;
mod retention;
mod schema;
pub mod settings;
mod standing;
mod wake;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spacetime_sync_proto::StreamId;
use spacetime_sync_transport::plaintext::is_loopback;
use spacetime_sync_transport::secret_file;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use tokio::time::timeout;

pub use access::{Access, AccessQuestion, BoundSession};
pub use append::NewEvent;
pub use audit::{Act, Actor};
pub use documents::{DocumentRow, DocumentsRead};
pub use error::AuthorityError;
pub use history::History;
pub use leadership::{Candidate, Lead, Leadership};
pub use legacy::{LegacyRow, LegacyTable};
pub use mirror::{Behind, MirrorPolicy, MirrorSource, MirroredEvent, TrustedKey};
pub use outbox::{
    Attempt, Delivery, Depth, Entry, Forgotten, Kept, OutboxRow, OutboxState, Outcome, Reflected, Unreflected,
};
pub use positions::Looked;
pub use projections::{Reprojection, ReprojectionPhase};
pub use published::Advanced;
pub use relay::{hide_relay, one_relay, shown_relay};
pub use retention::Extent;
pub use settings::Server;
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
    pub async fn connect(server: impl Into<Server>, pool_size: usize) -> Result<Self, AuthorityError> {
        let authority = Self::unconnected(server, pool_size)?;
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
    pub fn unconnected(server: impl Into<Server>, pool_size: usize) -> Result<Self, AuthorityError> {
        let (server, options) = parse(server.into())?;
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
    pub async fn migrate(server: impl Into<Server>) -> Result<(), AuthorityError> {
        Self::migrate_for(server.into(), None).await
    }

    /// Like [`migrate`](Self::migrate), and gives the group roles with this prefix their duties (migration 6).
    pub async fn migrate_with_roles(server: impl Into<Server>, prefix: &str) -> Result<(), AuthorityError> {
        Self::migrate_for(server.into(), Some(prefix)).await
    }

    async fn migrate_for(server: Server, role_prefix: Option<&str>) -> Result<(), AuthorityError> {
        let (server, options) = parse(server)?;
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

    /// A candidate that can ask for the bridges' lead repeatedly, on one connection.
    pub fn candidate(&self) -> Candidate {
        self.candidate_for(Lead::Bridge)
    }

    /// A candidate for this lead.
    pub fn candidate_for(&self, lead: Lead) -> Candidate {
        let (server, options) = (self.connections.server().to_owned(), self.connections.options().clone());
        Candidate::new(lead, server, options, self.lost_lead.clone())
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

fn parse(server: Server) -> Result<(String, PgConnectOptions), AuthorityError> {
    let url = server.url.expose();
    // The driver would accept any scheme.
    if !["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
    {
        return Err(AuthorityError::Url {
            source: sqlx::Error::Configuration("expected the scheme postgres:// or postgresql://".into()),
        });
    }
    secret_file::check_named_in(url, &["sslkey", "ssl-key"])?;
    // The driver takes a key from there, too.
    if let Some(file) = std::env::var_os("PGSSLKEY") {
        secret_file::read(Path::new(&file))?;
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
    let name = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    let name = format!("{name}/{}", options.get_database().unwrap_or(options.get_username()));
    if !server.allow_plaintext && !is_protected(&options) {
        return Err(AuthorityError::Unprotected {
            server: name,
            sslmode: sslmode(options.get_ssl_mode()),
        });
    }
    Ok((name, options))
}

/// Whether nobody between here and the server can read or change what is said. Every other sslmode lets whoever stands there
/// do so: `prefer` falls back to plaintext, `require` accepts any certificate, and `verify-ca` any name.
fn is_protected(options: &PgConnectOptions) -> bool {
    // The driver takes a host that begins with a slash for the folder of a socket.
    let by_socket = options.get_socket().is_some() || options.get_host().starts_with('/');
    by_socket || is_loopback(options.get_host()) || matches!(options.get_ssl_mode(), PgSslMode::VerifyFull)
}

fn sslmode(mode: PgSslMode) -> &'static str {
    match mode {
        PgSslMode::Disable => "disable",
        PgSslMode::Allow => "allow",
        PgSslMode::Prefer => "prefer",
        PgSslMode::Require => "require",
        PgSslMode::VerifyCa => "verify-ca",
        PgSslMode::VerifyFull => "verify-full",
    }
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
        check(|authority| authority.look(None, 1, &[]));
        check(|authority| authority.advance_published(&[]));
        check(|authority| authority.set_sleeping(true));
        check(|authority| authority.listen());
        check(|authority| authority.try_lead());
        check(|authority| authority.outbox_relays());
        check(|authority| authority.outbox_settle("r", &[]));
        check(|authority| authority.journal(&MirrorSource::Enqueued, Kept::Park("p"), None, &[]));
    }

    #[test]
    fn a_url_is_named_without_its_password() {
        let (server, _) = parse(Server::at(
            "postgres://me:secret@db.example:5433/runtime?sslmode=verify-full",
        ))
        .unwrap();
        assert_eq!(server, "db.example:5433/runtime");
        for wrong in [
            "mysql://me:secret@db.example/runtime",
            "postgres://me:secret@db.example/runtime",
        ] {
            let error = parse(Server::at(wrong)).map(|_| ()).unwrap_err();
            assert!(!format!("{error:?} {error}").contains("secret"), "{error}");
        }
        let error = parse(Server::at("mysql://h/d")).map(|_| ()).unwrap_err();
        assert!(matches!(error, AuthorityError::Url { .. }));
    }

    #[test]
    fn a_connection_over_a_network_needs_a_certificate_with_the_right_name() {
        for (url, good) in [
            ("postgres://db.example/d?sslmode=verify-full", true),
            ("postgres://db.example/d?ssl-mode=verify-full&sslrootcert=ca.pem", true),
            ("postgres://db.example/d", false),
            ("postgres://db.example/d?sslmode=disable", false),
            ("postgres://db.example/d?sslmode=allow", false),
            ("postgres://db.example/d?sslmode=prefer", false),
            ("postgres://db.example/d?sslmode=require", false),
            ("postgres://db.example/d?sslmode=require&sslrootcert=ca.pem", false),
            ("postgres://db.example/d?sslmode=verify-ca&sslrootcert=ca.pem", false),
            ("postgres://10.0.0.1/d", false),
            ("postgres://postgres:5432/d", false),
            // The last one counts.
            ("postgres://localhost/d?host=db.example", false),
            ("postgres://localhost/d?hostaddr=10.0.0.1", false),
            ("postgres://db.example/d?sslmode=verify-full&sslmode=prefer", false),
            ("postgres://localhost@db.example/d", false),
            ("postgres://localhost/d", true),
            ("postgres://127.0.0.1:5433/d?sslmode=disable", true),
            ("postgres://[::1]/d", true),
            ("postgres:///d?host=/run/postgresql", true),
            ("postgres://%2Frun%2Fpostgresql/d", true),
        ] {
            let server = Server::at(url);
            let found = parse(server.clone()).map(|_| ());
            assert_eq!(found.is_ok(), good, "{url}: {found:?}");
            if let Err(error) = found {
                let said = error.to_string();
                assert!(
                    said.contains("verify-full") && said.contains("allow_plaintext"),
                    "{said}"
                );
            }
            assert!(parse(server.allow_plaintext(true)).is_ok(), "{url}");
        }
    }
}
