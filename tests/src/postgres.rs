//! A temporary Postgres for tests: a real cluster with real durability in a temporary folder, run from this machine's
//! binaries. If `DATABASE_URL` is set, tests use fresh databases on that server instead.
//!
//! Nothing outlives the test process, however it ends: a keeper, which is a shell that waits for the end of its input,
//! stops the server and removes the folder. Processes are ended by their ids.

mod machine;
mod restore;
mod roles;
mod server;
mod standby;

pub use restore::Backup;
pub use server::Postmaster;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use spacetime_sync_authority::{Authority, AuthorityError};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};
use tokio::sync::OnceCell;

use crate::process::Environment;
use server::Own;

const OLDEST: u32 = 15;
const START_LIMIT: Duration = Duration::from_secs(30);

/// Why no Postgres is available for tests.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// This machine has no usable binaries.
    #[error(
        "found no Postgres {OLDEST} or later by pg_config, in PATH or in /usr/lib/postgresql; install it \
         (Debian: apt-get install postgresql, macOS: brew install postgresql@17) or set DATABASE_URL"
    )]
    NoBinaries,
    /// The tests run as root, and no other user exists to run Postgres as.
    #[error(
        "Postgres refuses to run as root, and this machine has neither a user `postgres` nor `nobody`; run as another user"
    )]
    NoUser,
    /// A program failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Its path.
        program: PathBuf,
        /// What the program wrote.
        output: String,
    },
    /// The server did not start.
    #[error("postgres did not accept connections within {START_LIMIT:?}; its log:\n{log}")]
    NotUp {
        /// The end of its log.
        log: String,
    },
    /// The server of `DATABASE_URL` must not be killed.
    #[error("the server of DATABASE_URL cannot be killed or restarted; unset DATABASE_URL to test with a cluster")]
    NotOurs,
    /// A file or process operation failed.
    #[error("{what}")]
    Io {
        /// The operation.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A SQL statement failed.
    #[error("{what}")]
    Sql {
        /// The operation.
        what: &'static str,
        /// Why it failed.
        source: sqlx::Error,
    },
    /// The lane's migrations failed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> ClusterError {
    move |source| ClusterError::Io { what, source }
}

fn sql_error(what: &'static str) -> impl FnOnce(sqlx::Error) -> ClusterError {
    move |source| ClusterError::Sql { what, source }
}

/// A Postgres server for tests. One that this process started is stopped and deleted on drop.
#[derive(Debug)]
pub struct Cluster {
    own: Option<Own>,
    /// The url of the maintenance database.
    url: String,
    template: OnceCell<String>,
}

/// A fresh database.
#[derive(Debug)]
pub struct Database {
    name: String,
    url: String,
    /// Where to drop the database on drop. `None` if the whole cluster will be deleted.
    drop_at: Option<String>,
    /// Roles to drop with the database.
    roles: Mutex<Vec<String>>,
}

impl Cluster {
    /// Starts a cluster, or uses the server of `DATABASE_URL`.
    pub async fn start() -> Result<Self, ClusterError> {
        Self::start_in(&std::env::temp_dir()).await
    }

    /// Like [`start`](Self::start), with the data below `parent`.
    pub async fn start_in(parent: &Path) -> Result<Self, ClusterError> {
        Self::start_with(parent, &Environment::new()).await
    }

    /// Like [`start_in`](Self::start_in), with additional environment for the cluster.
    pub async fn start_with(parent: &Path, environment: &Environment) -> Result<Self, ClusterError> {
        if let Ok(url) = std::env::var("DATABASE_URL") {
            return Ok(Self::at(&url));
        }
        let (parent, environment) = (parent.to_owned(), environment.clone());
        let initdb = [
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "--username=postgres",
        ];
        Self::of(move || Own::create(&parent, environment, "initdb", &initdb.map(str::to_owned))).await
    }

    /// The server of a url: databases are made there, and dropped again.
    pub fn at(url: &str) -> Self {
        Self {
            own: None,
            url: url.to_owned(),
            template: OnceCell::new(),
        }
    }

    async fn of(create: impl FnOnce() -> Result<Own, ClusterError> + Send + 'static) -> Result<Self, ClusterError> {
        let own = tokio::task::spawn_blocking(create)
            .await
            .map_err(|error| ClusterError::Io {
                what: "the start of postgres was interrupted",
                source: io::Error::other(error),
            })??;
        let cluster = Self {
            url: format!("postgres://postgres@127.0.0.1:{}/postgres", own.port),
            own: Some(own),
            template: OnceCell::new(),
        };
        cluster.up().await?;
        Ok(cluster)
    }

    /// The cluster that all tests of this process share.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Cluster> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async {
                match Self::start().await {
                    Ok(cluster) => cluster,
                    Err(error) => panic!("no Postgres is available for tests: {error}"),
                }
            })
            .await
    }

    /// The url of the maintenance database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Host and port, e.g. for a proxy in front of it.
    pub fn addr(&self) -> Option<std::net::SocketAddr> {
        self.own.as_ref().map(|own| ([127, 0, 0, 1], own.port).into())
    }

    /// The `psql` that goes with the server.
    pub fn psql(&self) -> PathBuf {
        self.own
            .as_ref()
            .map_or_else(|| PathBuf::from("psql"), |own| own.bin.join("psql"))
    }

    /// The log of a cluster that this process started.
    pub fn log_file(&self) -> Option<PathBuf> {
        self.own.as_ref().map(|own| own.folder.path().join("log"))
    }

    /// The process that all others of the server come from. `None` if this process did not start the server.
    pub fn postmaster(&self) -> Option<Postmaster> {
        self.own.as_ref()?.postmaster()
    }

    /// Whether this process started the cluster, and thus may kill it.
    pub fn can_be_killed(&self) -> bool {
        self.own.is_some()
    }

    /// A power loss: kills the server and all its processes, and returns when all are gone.
    pub fn kill(&self) -> Result<(), ClusterError> {
        self.own.as_ref().ok_or(ClusterError::NotOurs)?.kill()
    }

    /// Starts the server again with the same data and port. Kills it first if it still runs.
    pub async fn restart(&self) -> Result<(), ClusterError> {
        let own = self.own.as_ref().ok_or(ClusterError::NotOurs)?;
        own.kill()?;
        own.spawn()?;
        self.up().await
    }

    /// A fresh database with the lane's migrations.
    pub async fn create_database(&self) -> Result<Database, ClusterError> {
        if self.own.is_none() {
            // No template on a shared server, because nobody would drop it.
            let database = self.create("template0").await?;
            Authority::migrate(&database.url).await?;
            return Ok(database);
        }
        let template = self
            .template
            .get_or_try_init(|| async {
                let database = self.create("template0").await?;
                Authority::migrate(&database.url).await?;
                Ok::<_, ClusterError>(database.name.clone())
            })
            .await?;
        self.create(template).await
    }

    /// A fresh, empty database.
    pub async fn create_empty_database(&self) -> Result<Database, ClusterError> {
        self.create("template0").await
    }

    async fn create(&self, template: &str) -> Result<Database, ClusterError> {
        // The server of `DATABASE_URL` may still hold databases of earlier runs, whose process ids can repeat.
        let name = format!("sync_test_{:016x}", rand::random::<u64>());
        let options: sqlx::postgres::PgConnectOptions = self.url.parse().map_err(sql_error("the url is malformed"))?;
        let mut connection = options.connect().await.map_err(sql_error("cannot connect"))?;
        connection
            .execute(&*format!(
                "create database {name} template {template} encoding 'UTF8' strategy wal_log"
            ))
            .await
            .map_err(sql_error("cannot create a database"))?;
        connection.close().await.map_err(sql_error("cannot disconnect"))?;
        Ok(Database {
            url: options.database(&name).to_url_lossy().to_string(),
            name,
            drop_at: self.own.is_none().then(|| self.url.clone()),
            roles: Mutex::default(),
        })
    }

    async fn up(&self) -> Result<(), ClusterError> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match PgConnection::connect(&self.url).await {
                Ok(connection) => return connection.close().await.map_err(sql_error("cannot disconnect")),
                Err(_) if Instant::now() < deadline && self.own.as_ref().is_none_or(Own::runs) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(_) => {
                    let log = self.own.as_ref().map(Own::log).unwrap_or_default();
                    return Err(ClusterError::NotUp { log });
                }
            }
        }
    }
}

impl Database {
    /// The url of the database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The name of the database.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The url of the database through another address, e.g. a proxy's.
    pub fn url_at(&self, addr: std::net::SocketAddr) -> Result<String, ClusterError> {
        let options: sqlx::postgres::PgConnectOptions = self.url.parse().map_err(sql_error("the url is malformed"))?;
        Ok(options
            .host(&addr.ip().to_string())
            .port(addr.port())
            .to_url_lossy()
            .to_string())
    }
}

impl Database {
    /// Drops a role when the database is dropped.
    fn forget_with_it(&self, role: &str) {
        let mut roles = self.roles.lock().unwrap_or_else(PoisonError::into_inner);
        roles.push(role.to_owned());
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(url) = self.drop_at.take() else { return };
        let mut statements = vec![format!("drop database if exists {} with (force)", self.name)];
        let roles = self.roles.lock().unwrap_or_else(PoisonError::into_inner);
        statements.extend(roles.iter().map(|role| format!("drop role if exists {role}")));
        drop(roles);
        // Drops on a thread of its own, because a runtime cannot block on itself.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut connection = PgConnection::connect(&url).await.map_err(io::Error::other)?;
                for statement in &statements {
                    connection.execute(&**statement).await.map_err(io::Error::other)?;
                }
                Ok::<_, io::Error>(())
            })
        })
        .join();
        if !matches!(dropped, Ok(Ok(()))) {
            eprintln!("the test database {} was not dropped: {dropped:?}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn commits_survive_a_kill() {
        let cluster = Cluster::start().await.unwrap();
        if !cluster.can_be_killed() {
            assert!(matches!(cluster.kill(), Err(ClusterError::NotOurs)));
            return;
        }
        let database = cluster.create_empty_database().await.unwrap();
        let mut connection = PgConnection::connect(database.url()).await.unwrap();
        connection.execute("create table kept as select 7 as n").await.unwrap();
        cluster.kill().unwrap();
        assert!(connection.execute("select 1").await.is_err());
        assert!(PgConnection::connect(database.url()).await.is_err());
        cluster.restart().await.unwrap();
        let mut connection = PgConnection::connect(database.url()).await.unwrap();
        let n: i32 = sqlx::query_scalar("select n from kept")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(n, 7);
        let folder = cluster.own.as_ref().unwrap().folder.path().to_owned();
        drop(cluster);
        assert!(!folder.exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_database_is_fresh_and_migrated() {
        let cluster = Cluster::shared().await;
        let (one, two) = (
            cluster.create_database().await.unwrap(),
            cluster.create_database().await.unwrap(),
        );
        assert_ne!(one.name(), two.name());
        for database in [one, two] {
            let authority = Authority::connect(database.url(), 1).await.unwrap();
            assert_eq!(authority.streams_after(None, 10).await.unwrap(), []);
        }
    }
}
