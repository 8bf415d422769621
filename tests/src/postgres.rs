//! A temporary Postgres for tests: a real cluster with real durability in a temporary folder, run from this machine's
//! binaries. If `DATABASE_URL` is set, tests use fresh databases on that server instead.
//!
//! Nothing outlives the test process, however it ends: a keeper, which is a shell that waits for the end of its input,
//! stops the server and removes the folder. Processes are ended by their ids.

mod restore;
mod standby;

pub use restore::Backup;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};
use spacetime_sync_authority::{Authority, AuthorityError};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};
use tokio::sync::OnceCell;

use crate::process::Environment;

const OLDEST: u32 = 15;
const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);

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

#[derive(Debug)]
struct Own {
    folder: tempfile::TempDir,
    bin: PathBuf,
    user: Option<User>,
    environment: Environment,
    port: u16,
    server: Mutex<Option<Child>>,
    /// Stops the server at the end of its input, which comes when this process ends.
    keeper: Mutex<Child>,
}

#[derive(Debug, Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

/// A fresh database.
#[derive(Debug)]
pub struct Database {
    name: String,
    url: String,
    /// Where to drop the database on drop. `None` if the whole cluster will be deleted.
    drop_at: Option<String>,
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

impl Drop for Database {
    fn drop(&mut self) {
        let Some(url) = self.drop_at.take() else { return };
        let statement = format!("drop database if exists {} with (force)", self.name);
        // Drops on a thread of its own, because a runtime cannot block on itself.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut connection = PgConnection::connect(&url).await.map_err(io::Error::other)?;
                connection.execute(&*statement).await.map_err(io::Error::other)
            })
        })
        .join();
        if !matches!(dropped, Ok(Ok(_))) {
            eprintln!("the test database {} was not dropped: {dropped:?}", self.name);
        }
    }
}

impl Own {
    /// Creates the data folder with `program` and starts the server.
    fn create(
        parent: &Path,
        environment: Environment,
        maker: &str,
        arguments: &[String],
    ) -> Result<Self, ClusterError> {
        let bin = binaries()?;
        let user = if getuid().is_root() { Some(other_user()?) } else { None };
        let folder = tempfile::Builder::new()
            .prefix("sync-postgres-")
            // World-readable, so that another user's processes can enter. initdb protects the data folder itself.
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(parent)
            .map_err(io_error("cannot make a temporary folder"))?;
        if let Some(user) = user {
            std::os::unix::fs::chown(folder.path(), Some(user.uid), Some(user.gid))
                .map_err(io_error("cannot give the temporary folder to another user"))?;
        }
        let maker = bin.join(maker);
        let made = command(&maker, folder.path(), user)
            .args(arguments)
            .arg("--pgdata")
            .arg(folder.path().join("data"))
            .output()
            .map_err(io_error("cannot make the data of a cluster"))?;
        if !made.status.success() {
            return Err(ClusterError::Program {
                program: maker,
                output: String::from_utf8_lossy(&made.stderr).into_owned(),
            });
        }
        let keeper = keeper(folder.path())?;
        // The port was free a moment ago. If somebody else takes it now, the server's log says so.
        let port = crate::port::free().map_err(io_error("cannot find a free port"))?.port();
        let own = Self {
            folder,
            bin,
            user,
            environment,
            port,
            server: Mutex::new(None),
            keeper: Mutex::new(keeper),
        };
        own.spawn()?;
        Ok(own)
    }

    fn spawn(&self) -> Result<(), ClusterError> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .map_err(io_error("cannot open the server's log"))?;
        let log_too = log.try_clone().map_err(io_error("cannot open the server's log"))?;
        let mut sockets = OsString::from("unix_socket_directories=");
        sockets.push(self.folder.path());
        let server = command(&self.bin.join("postgres"), self.folder.path(), self.user)
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .args(["-p", &self.port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1"])
            .arg("-c")
            .arg(sockets)
            .args([
                "-c",
                "fsync=on",
                "-c",
                "max_connections=200",
                "-c",
                "shared_buffers=128MB",
            ])
            .args(["-c", "max_wal_size=4GB", "-c", "log_line_prefix=%m [%p] %q%a %d "])
            .stdout(log)
            .stderr(log_too)
            // Ctrl-C is for the tests. The keeper stops the server.
            .process_group(0)
            .spawn()
            .map_err(io_error("cannot run postgres"))?;
        *self.server() = Some(server);
        Ok(())
    }

    fn server(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn runs(&self) -> bool {
        matches!(self.server().as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    fn log(&self) -> String {
        let log = fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4_000)..]).into_owned()
    }

    fn kill(&self) -> Result<(), ClusterError> {
        let Some(mut server) = self.server().take() else {
            return Ok(());
        };
        let postmaster = Pid::from_child(&server);
        // Stops the postmaster first, so that it forks no child that this misses. A process that is gone is not an
        // error.
        let _ = kill_process(postmaster, Signal::STOP);
        let children = children_of(postmaster);
        let _ = kill_process(postmaster, Signal::KILL);
        for child in &children {
            let _ = kill_process(*child, Signal::KILL);
        }
        server.wait().map_err(io_error("cannot wait for postgres"))?;
        let deadline = Instant::now() + STOP_LIMIT;
        while children.iter().any(|child| runs(*child)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("the test cluster was not stopped: {error}");
        }
        let keeper = self.keeper.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        // The end of its input makes the keeper stop the server and end.
        drop(keeper.stdin.take());
        let _ = keeper.wait();
    }
}

fn command(program: &Path, folder: &Path, user: Option<User>) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(folder)
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .env_remove("PGDATA")
        .env_remove("PGPORT");
    if let Some(user) = user {
        command.gid(user.gid).uid(user.uid);
    }
    command
}

fn keeper(folder: &Path) -> Result<Child, ClusterError> {
    // SIGQUIT is Postgres's immediate shutdown, which also ends the child processes.
    let script = r#"
        cat >/dev/null
        pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null
        tries=0
        while [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 100 ]; do
            tries=$((tries + 1))
            sleep 0.05
        done
        rm -rf "$1"
    "#;
    Command::new("sh")
        .args(["-c", script, "keeper"])
        .arg(folder)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(io_error("cannot run sh"))
}

/// Ids and parents of all processes, from /proc or, on systems without it, from ps.
fn processes() -> Vec<(Pid, i32)> {
    let parse = |pid: &str, parent: &str| Some((Pid::from_raw(pid.parse().ok()?)?, parent.parse().ok()?));
    let Ok(entries) = fs::read_dir("/proc") else {
        let listed = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output();
        let listed = listed.map(|output| output.stdout).unwrap_or_default();
        return String::from_utf8_lossy(&listed)
            .lines()
            .filter_map(|line| {
                let mut fields = line.split_whitespace();
                parse(fields.next()?, fields.next()?)
            })
            .collect();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // The line reads: pid (name) state parent …, and the name may hold anything. A zombie no longer counts as a
            // process.
            let mut after_name = stat.rsplit_once(')')?.1.split_whitespace();
            let state = after_name.next()?;
            let parent = after_name.next()?;
            if state == "Z" {
                return None;
            }
            parse(entry.file_name().to_str()?, parent)
        })
        .collect()
}

fn children_of(parent: Pid) -> Vec<Pid> {
    let parent = parent.as_raw_nonzero().get();
    let all = processes().into_iter();
    all.filter(|(_, of)| *of == parent).map(|(pid, _)| pid).collect()
}

fn runs(pid: Pid) -> bool {
    processes().iter().any(|(running, _)| *running == pid)
}

/// The folder of the newest usable binaries.
fn binaries() -> Result<PathBuf, ClusterError> {
    let mut folders = Vec::new();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        folders.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    folders
        .into_iter()
        .filter(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
        .filter_map(|folder| Some((major_version(&folder.join("postgres"))?, folder)))
        .filter(|(version, _)| *version >= OLDEST)
        .max_by_key(|(version, _)| *version)
        .map(|(_, folder)| folder)
        .ok_or(ClusterError::NoBinaries)
}

/// The major version: 15 for `postgres (PostgreSQL) 15.18 (…)`.
fn major_version(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let digits = |c: char| !c.is_ascii_digit();
    let version = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    version.split(digits).next()?.parse().ok()
}

fn other_user() -> Result<User, ClusterError> {
    let users = fs::read_to_string("/etc/passwd").map_err(io_error("cannot read /etc/passwd"))?;
    let find = |name: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next()? != name {
                return None;
            }
            Some(User {
                uid: fields.nth(1)?.parse().ok()?,
                gid: fields.next()?.parse().ok()?,
            })
        })
    };
    find("postgres").or_else(|| find("nobody")).ok_or(ClusterError::NoUser)
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
