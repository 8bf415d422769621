//! A SpacetimeDB server for tests: a process that this run starts, or the server of `SYNC_STDB_URL`.

mod program;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;

use crate::port;
use crate::power::{Ledger, Lost};
use crate::process::{Environment, Process};
use crate::until;
use program::Program;

const UP_LIMIT: Duration = Duration::from_secs(60);
const DOWN_LIMIT: Duration = Duration::from_secs(30);

/// A SpacetimeDB server.
#[derive(Debug)]
pub struct Server {
    uri: String,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    program: Program,
    folder: PathBuf,
    environment: Environment,
    addr: SocketAddr,
    process: Process,
    /// The ledger of its syncs, and by how much each sync is delayed.
    power: Option<(Ledger, Duration)>,
}

impl Own {
    fn spawn_again(&mut self) -> anyhow::Result<()> {
        self.process = spawn(
            &self.program,
            &self.folder,
            &self.environment,
            self.addr,
            self.power.as_ref(),
        )?;
        Ok(())
    }
}

impl Server {
    /// Uses the server of `SYNC_STDB_URL`, or starts a host that keeps its data in `folder`.
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        Self::start_with(folder, &Environment::new()).await
    }

    /// Like [`start`](Self::start), with additional environment for the host.
    pub async fn start_with(folder: &Path, environment: &Environment) -> anyhow::Result<Self> {
        if let Ok(uri) = std::env::var("SYNC_STDB_URL") {
            return Ok(Self {
                uri: uri.trim_end_matches('/').to_owned(),
                own: None,
            });
        }
        let program = Program::chosen()?;
        Self::start_program(program, folder, environment).await
    }

    /// Starts the official server of this `spacetime` program, with its data in `folder`.
    pub async fn start_official(spacetime: &Path, folder: &Path) -> anyhow::Result<Self> {
        Self::start_program(Program::Official(spacetime.to_owned()), folder, &Environment::new()).await
    }

    async fn start_program(program: Program, folder: &Path, environment: &Environment) -> anyhow::Result<Self> {
        // A restart listens on the same port.
        let addr = port::free()?;
        let process = spawn(&program, folder, environment, addr, None)?;
        let server = Self {
            uri: format!("http://{addr}"),
            own: Some(Own {
                program,
                folder: folder.to_owned(),
                environment: environment.clone(),
                addr,
                process,
                power: None,
            }),
        };
        server.up().await?;
        Ok(server)
    }

    /// `http://host:port`
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The address, e.g. for a proxy in front of it.
    pub fn addr(&self) -> anyhow::Result<SocketAddr> {
        let authority = self.uri.trim_start_matches("http://").trim_start_matches("https://");
        std::net::ToSocketAddrs::to_socket_addrs(authority)?
            .next()
            .context("the server has no address")
    }

    /// What SpacetimeDB makes of a token on demand: another one with its claims, signed with SpacetimeDB's own key.
    pub async fn sign_anew(&self, token: &str) -> anyhow::Result<String> {
        let url = format!("{}/v1/identity/websocket-token", self.uri);
        let answer = reqwest::Client::new().post(url).bearer_auth(token).send().await?;
        let answer: serde_json::Value = answer.error_for_status()?.json().await?;
        let token = answer["token"].as_str().context("the answer holds no token")?;
        Ok(token.to_owned())
    }

    /// Whether this run started the server, and thus may kill it.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// The process, if this run started it.
    pub fn process(&self) -> Option<&Process> {
        self.own.as_ref().map(|own| &own.process)
    }

    /// SIGKILL.
    pub fn kill(&self) {
        if let Some(own) = &self.own {
            own.process.kill();
        }
    }

    /// Starts the server again with the same data and port, after a kill.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let own = self.own.as_mut().context("the server was not started by this run")?;
        own.process.kill();
        own.spawn_again()?;
        self.up().await
    }

    /// Restarts the host with a sync ledger, so that its power can be cut, and with slower syncs. Everything committed
    /// so far counts as safe.
    pub async fn slow_syncs(&mut self, delay: Duration) -> anyhow::Result<()> {
        let own = self.own.as_mut().context("the server was not started by this run")?;
        anyhow::ensure!(
            matches!(own.program, Program::Embedded(_)),
            "only the embedded host records its syncs: unset SYNC_SPACETIME"
        );
        own.process.signal(Signal::TERM);
        let ended = own.process.ended(DOWN_LIMIT).await;
        anyhow::ensure!(
            ended.is_some_and(|status| status.success()),
            "the host did not stop: {ended:?}"
        );
        let ledger = Ledger::begin(&own.folder.with_extension("synced"), &own.folder)?;
        own.power = Some((ledger, delay));
        self.restart().await
    }

    /// Kills the host and restarts it with only what it had synced. Needs [`slow_syncs`](Self::slow_syncs) first.
    pub async fn cut_power(&mut self) -> anyhow::Result<Lost> {
        let own = self.own.as_ref().context("the server was not started by this run")?;
        let (ledger, _) = own
            .power
            .as_ref()
            .context("the host keeps no sync ledger: call slow_syncs first")?;
        own.process.kill();
        let lost = ledger.cut(&own.folder)?;
        self.restart().await?;
        Ok(lost)
    }

    async fn up(&self) -> anyhow::Result<()> {
        let addr = self.addr()?;
        let up = until(UP_LIMIT, || !self.runs() || connects(addr)).await;
        anyhow::ensure!(up && self.runs(), "the host did not come up: {}", self.log());
        Ok(())
    }

    fn runs(&self) -> bool {
        self.own.as_ref().is_none_or(|own| own.process.is_running())
    }

    /// Restarts the server if it has ended, and returns whether it had. Does not wait until it listens.
    pub fn revive(&mut self) -> anyhow::Result<bool> {
        let own = self.own.as_mut().context("the server was not started by this run")?;
        let ended = !own.process.is_running();
        if ended {
            own.spawn_again()?;
        }
        Ok(ended)
    }

    /// The log of a server that this run started.
    pub fn log(&self) -> String {
        self.own.as_ref().map(|own| own.process.log()).unwrap_or_default()
    }
}

fn connects(addr: SocketAddr) -> bool {
    std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(200)).is_ok()
}

fn spawn(
    program: &Program,
    folder: &Path,
    environment: &Environment,
    addr: SocketAddr,
    power: Option<&(Ledger, Duration)>,
) -> anyhow::Result<Process> {
    let mut command = Command::new(program.path());
    command
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .args(program.arguments(folder, addr));
    if let Some((ledger, delay)) = power {
        command.arg("--sync-ledger").arg(ledger.file());
        command.args(["--sync-delay-ms", &delay.as_millis().to_string()]);
    }
    Ok(Process::start("host", &mut command, &folder.with_extension("log"))?)
}
