//! The server of a peer: a process with its data in a temporary folder, on a free port of this machine.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use spacetime_sync_tests::process::Process;
use spacetime_sync_tests::{port, until};

use super::contender::installed;

const UP_LIMIT: Duration = Duration::from_secs(30);

/// Which server, with which settings.
#[derive(Debug, Clone, Copy)]
pub(super) enum Program {
    Nats {
        /// Whether every message is synced before it is acknowledged.
        always: bool,
    },
    Redis,
    DurableStreams,
}

/// A running server. It is killed and its data removed on drop.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) at: SocketAddr,
    process: Process,
    folder: tempfile::TempDir,
}

impl Program {
    /// As `scripts/peers` and the program that publishes and consumes call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nats { .. } => "jetstream",
            Self::Redis => "redis",
            Self::DurableStreams => "durable-streams",
        }
    }

    fn command(self, folder: &std::path::Path, at: SocketAddr) -> anyhow::Result<Command> {
        let (data, port) = (folder.join("data"), at.port().to_string());
        std::fs::create_dir(&data)?;
        match self {
            Self::Nats { always } => {
                let settings = folder.join("nats.conf");
                let interval = if always { "always" } else { "2m" };
                std::fs::write(
                    &settings,
                    format!(
                        "listen: \"{at}\"\njetstream {{ store_dir: \"{}\", sync_interval: {interval} }}\n",
                        data.display()
                    ),
                )?;
                let mut command = Command::new(installed("NATS")?);
                command.arg("--config").arg(settings);
                Ok(command)
            }
            Self::Redis => {
                let mut command = Command::new(installed("REDIS")?);
                command.args(["--bind", "127.0.0.1", "--port", &port, "--save", ""]);
                command.args(["--appendonly", "yes", "--appendfsync", "always", "--dir"]);
                command.arg(data);
                Ok(command)
            }
            Self::DurableStreams => {
                let mut command = Command::new(installed("DURABLE_STREAMS")?);
                command.args(["--host", "127.0.0.1", "--port", &port, "--data-dir"]);
                command.arg(data);
                Ok(command)
            }
        }
    }
}

impl Server {
    /// Starts a server, and waits until it listens.
    pub(super) async fn start(program: Program) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("sync-peer-").tempdir()?;
        let at = port::free()?;
        let mut command = program.command(folder.path(), at)?;
        let process = Process::start(program.name(), &mut command, &folder.path().join("log"))?;
        let listens = || TcpStream::connect_timeout(&at, Duration::from_millis(200)).is_ok();
        let up = until(UP_LIMIT, || !process.is_running() || listens()).await;
        anyhow::ensure!(
            up && process.is_running(),
            "{} did not come up: {}",
            program.name(),
            process.log()
        );
        Ok(Self { at, process, folder })
    }

    /// A folder for what belongs to this server's clients.
    pub(super) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// The end of what it has printed.
    pub(super) fn log(&self) -> String {
        let log = self.process.log();
        let end = log.char_indices().rev().nth(2_000).map_or(0, |(at, _)| at);
        log[end..].to_owned()
    }
}
