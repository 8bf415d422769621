//! A gate before SpacetimeDB, as a process of its own.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use reqwest::StatusCode;

use crate::lane::Lane;
use crate::port;
use crate::process::{Process, built};

/// The credential with which a gate asks the bridge.
pub const GATE: &str = "gate-credential-of-the-tests";
const UP_LIMIT: Duration = Duration::from_secs(30);

/// A running gate.
#[derive(Debug)]
pub struct Gate {
    /// The process.
    pub process: Process,
    clients: std::net::SocketAddr,
    admin: String,
}

/// How a gate is configured.
#[derive(Debug, Clone, Default)]
pub struct GateOptions {
    /// Listens here instead of at a free port.
    pub listen: Option<std::net::SocketAddr>,
    /// `iss` of the tokens, and the url of the bridge, unless `set` names another one.
    pub issuer: String,
    /// Additional configuration keys.
    pub set: Vec<(&'static str, String)>,
}

impl Gate {
    /// Starts a gate before a lane's SpacetimeDB. It does not wait until the gate lets anybody in.
    pub fn start(lane: &Lane, options: &GateOptions, log: &Path) -> anyhow::Result<Self> {
        let (clients, admin) = match options.listen {
            Some(address) => (address, port::free()?),
            None => (port::free()?, port::free()?),
        };
        let mut keys = vec![
            ("listen", clients.to_string()),
            ("admin_listen", admin.to_string()),
            ("spacetimedb_uri", lane.server.uri().to_owned()),
            ("database", lane.name.clone()),
            ("issuer", options.issuer.clone()),
            ("bridge_token", GATE.to_owned()),
        ];
        keys.extend(options.set.iter().cloned());
        let name = |key: &str| format!("SPACETIME_SYNC__GATE__{}", key.to_uppercase());
        let mut command = Command::new(built("spacetime-sync"));
        command.arg("gate").env("RUST_LOG", "info").env("NO_COLOR", "1");
        command.envs(keys.into_iter().map(|(key, value)| (name(key), value)));
        Ok(Self {
            process: Process::start("gate", &mut command, log)?,
            clients,
            admin: format!("http://{admin}"),
        })
    }

    /// Where clients connect.
    pub fn address(&self) -> std::net::SocketAddr {
        self.clients
    }

    /// `http://host:port` for clients.
    pub fn uri(&self) -> String {
        format!("http://{}", self.clients)
    }

    /// Whether the gate lets anybody in.
    pub async fn is_ready(&self) -> bool {
        let answer = reqwest::get(format!("{}/readyz", self.admin)).await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    }

    /// Waits until the gate does or does not let anybody in.
    pub async fn until_ready(&self, ready: bool) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + UP_LIMIT;
        while self.is_ready().await != ready {
            anyhow::ensure!(self.process.is_running(), "the gate ended: {}", self.process.log());
            anyhow::ensure!(
                tokio::time::Instant::now() < deadline,
                "the gate is not {}ready in time: {}",
                if ready { "" } else { "un" },
                self.process.log()
            );
            tokio::time::sleep(crate::STEP).await;
        }
        Ok(())
    }

    /// A metric, e.g. `breaches_total`.
    pub async fn metric(&self, name: &str) -> anyhow::Result<u64> {
        let text = reqwest::get(format!("{}/metrics", self.admin)).await?.text().await?;
        let line = format!("spacetime_sync_gate_{name} ");
        let value = text.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok());
        value.ok_or_else(|| anyhow::anyhow!("no metric {name} in {text}"))
    }
}
