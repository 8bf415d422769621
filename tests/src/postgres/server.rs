//! A server that this process started: its folder, its processes, and the keeper that ends them.

use std::ffi::OsString;
use std::fs;
use std::ops::Add as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};

use super::machine::{User, binaries, children_of, other_user, runs};
use super::{ClusterError, io_error};
use crate::process::{Cpu, Environment};

const STOP_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Own {
    pub(super) folder: tempfile::TempDir,
    pub(super) bin: PathBuf,
    user: Option<User>,
    environment: Environment,
    pub(super) port: u16,
    server: Mutex<Option<Child>>,
    /// Stops the server at the end of its input, which comes when this process ends.
    keeper: Mutex<Child>,
}

/// The first process of a server, which starts all others and waits for their end.
#[derive(Debug, Clone, Copy)]
pub struct Postmaster(Pid);

impl Postmaster {
    /// CPU time that all processes of the server have used so far, those that have ended included. `None` if the server is
    /// gone.
    pub fn cpu(self) -> Option<Cpu> {
        // First those that run: one that ends in between is then counted twice for this reading, and not left out.
        let running = children_of(self.0).into_iter();
        let running = running.filter_map(|child| Cpu::of(&child.to_string()));
        let running = running.fold(Cpu::default(), Cpu::add);
        Some(running + Cpu::with_ended_children(&self.0.to_string())?)
    }
}

impl Own {
    /// Creates the data folder with `program` and starts the server.
    pub(super) fn create(
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

    pub(super) fn spawn(&self) -> Result<(), ClusterError> {
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

    pub(super) fn runs(&self) -> bool {
        matches!(self.server().as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    pub(super) fn postmaster(&self) -> Option<Postmaster> {
        self.server().as_ref().map(|server| Postmaster(Pid::from_child(server)))
    }

    pub(super) fn log(&self) -> String {
        let log = fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4_000)..]).into_owned()
    }

    pub(super) fn kill(&self) -> Result<(), ClusterError> {
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
