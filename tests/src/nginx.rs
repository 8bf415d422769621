//! An nginx before a lane, with the configuration of `docs/nginx.conf`, as a process of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use crate::port;
use crate::process::Process;
use crate::until;

/// The name of the host that it serves.
pub const NAME: &str = "localhost";
const CONFIGURATION: &str = include_str!("../../docs/nginx.conf");
const UP_LIMIT: Duration = Duration::from_secs(30);
/// What a lane with a gate has in the list of what passes, and what one without has in its place.
const LINES: [usize; 2] = [4, 3];

/// What is a lane's own in the configuration. Everything else stays as it is in the file.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The bridge.
    pub bridge: SocketAddr,
    /// SpacetimeDB, or the gate before it.
    pub server: Behind,
    /// Name of the one database.
    pub database: String,
    /// Its identity.
    pub identity: String,
    /// The certificate for [`NAME`], in PEM.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What nginx leads to where a client says SpacetimeDB.
#[derive(Debug, Clone, Copy)]
pub enum Behind {
    /// A gate.
    Gate(SocketAddr),
    /// SpacetimeDB itself, with the lines of a lane without a gate.
    SpacetimeDb(SocketAddr),
}

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    /// The process.
    pub process: Process,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Nginx {
    /// Starts nginx, and waits until it listens.
    pub async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("sync-nginx-").tempdir()?;
        let address = port::free()?;
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("nginx.conf"), settings.configuration(folder.path(), address)?)?;
        let mut command = Command::new(program()?);
        command
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(path("nginx.conf"))
            // One process, which ends with the test. A worker would outlive a master that is killed.
            .args(["-g", "daemon off; master_process off;"]);
        let nginx = Self {
            process: Process::start("nginx", &mut command, &path("log"))?,
            address,
            folder,
        };
        let listens = || std::net::TcpStream::connect(address).is_ok();
        let up = until(UP_LIMIT, || !nginx.process.is_running() || listens()).await;
        anyhow::ensure!(
            up && nginx.process.is_running(),
            "nginx did not come up: {}{}",
            nginx.process.log(),
            nginx.error_log()
        );
        Ok(nginx)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://host:port` for clients, as bridge and as SpacetimeDB.
    pub fn url(&self) -> String {
        format!("https://{NAME}:{}", self.address.port())
    }

    /// The requests that are over.
    pub fn access_log(&self) -> String {
        self.read("access.log")
    }

    /// What went wrong.
    pub fn error_log(&self) -> String {
        self.read("error.log")
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }
}

impl Settings {
    /// The configuration with this lane's values in the place of those of the file.
    fn configuration(&self, folder: &Path, listen: SocketAddr) -> anyhow::Result<String> {
        let file = |name: &str| folder.join(name).display().to_string();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("    {what}_temp_path {};\n", file(what)))
            .concat();
        // In IPv4, because a machine may have no IPv6.
        let second = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), listen.port()));
        let server = |address: SocketAddr| format!("server {address};");
        let mut values = vec![
            // Another user could not enter the folder.
            ("user www-data;".to_owned(), "user root;".to_owned()),
            ("http {\n".to_owned(), format!("http {{\n{temporary}")),
            ("/run/nginx.pid".to_owned(), file("nginx.pid")),
            ("/var/log/nginx/".to_owned(), file("")),
            ("listen 443 ".to_owned(), format!("listen {listen} ")),
            ("listen [::]:443 ".to_owned(), format!("listen {second} ")),
            ("server_name lane.example;".to_owned(), format!("server_name {NAME};")),
            ("/etc/nginx/lane.pem".to_owned(), self.certificate.display().to_string()),
            ("/etc/nginx/lane.key".to_owned(), self.key.display().to_string()),
            (
                format!("(lane|c2{})", "0".repeat(62)),
                format!("({}|{})", self.database, self.identity),
            ),
            ("server 127.0.0.1:7070;".to_owned(), server(self.bridge)),
        ];
        let mut text = match self.server {
            Behind::Gate(gate) => {
                values.push(("server 127.0.0.1:7071;".to_owned(), server(gate)));
                CONFIGURATION.to_owned()
            }
            Behind::SpacetimeDb(spacetimedb) => {
                values.push(("server 127.0.0.1:3000;".to_owned(), server(spacetimedb)));
                without_gate(CONFIGURATION)?
            }
        };
        for (value, own) in values {
            anyhow::ensure!(text.contains(&value), "expected {value:?} in docs/nginx.conf");
            text = text.replace(&value, &own);
        }
        Ok(text)
    }
}

/// The configuration with the lines of a lane without a gate in the place of those of a lane with one.
fn without_gate(text: &str) -> anyhow::Result<String> {
    let is_gates = |line: &&str| line.ends_with("\" gate;");
    let instead = |line: &str| {
        line.trim_start()
            .strip_prefix('#')
            .is_some_and(|line| line.ends_with("\" spacetimedb;"))
    };
    let gates = text.lines().filter(is_gates).count();
    let others = text.lines().filter(|line| instead(line)).count();
    anyhow::ensure!(
        [gates, others] == LINES,
        "expected {LINES:?} lines with and without a gate in docs/nginx.conf, found {gates} and {others}"
    );
    let kept = text.lines().filter(|line| !is_gates(line));
    let changed = kept.map(|line| {
        if instead(line) {
            line.trim_start().trim_start_matches('#')
        } else {
            line
        }
    });
    Ok(changed.collect::<Vec<_>>().join("\n"))
}

fn program() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian's is in a folder that only root has in the PATH.
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders
        .map(|folder| folder.join("nginx"))
        .find(|program| program.is_file())
        .context("nginx is missing: install the package nginx-light, or start through scripts/test")
}
