//! The commands of `spacetime-sync`, except `run`.

pub(crate) mod gate;
pub(crate) mod grants;
pub(crate) mod halted;
pub(crate) mod keys;
pub(crate) mod mirror;
pub(crate) mod outbox;
pub(crate) mod parity;
pub(crate) mod publish;
pub(crate) mod repair;
pub(crate) mod reproject;
pub(crate) mod session;

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use spacetime_sync_authority::{Act, Actor, Authority, Server};
use spacetime_sync_bridge::config::Config;
use spacetime_sync_issuer::Issuer;
use spacetime_sync_issuer::keys::KeyFolder;
use spacetime_sync_stdb::link::{Link, Target};
use spacetime_sync_stdb::tokens::TokenSource;
use spacetime_sync_transport::{TlsFiles, Transport};

/// How many connections to the authority a command needs. It asks one question after the other.
const CONNECTIONS: usize = 2;

#[derive(Args)]
pub(crate) struct ServerArgs {
    /// http://host:port of the SpacetimeDB server.
    #[arg(long)]
    pub(crate) uri: String,
    /// Name of the database.
    #[arg(long)]
    pub(crate) database: String,
    #[command(flatten)]
    pub(crate) transport: TransportArgs,
}

impl ServerArgs {
    /// How to reach the server, if anything may be sent there at all.
    pub(crate) fn transport(&self) -> anyhow::Result<Transport> {
        self.transport.to(&self.uri).context("--uri")
    }
}

#[derive(Args)]
pub(crate) struct TransportArgs {
    /// Let http:// lead to another machine. Everybody on the way can then read what is shown there, and use it.
    #[arg(long)]
    pub(crate) allow_plaintext: bool,
    /// File with certificates of the only authorities that count there, in PEM.
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// File with the certificate to show there, in PEM.
    #[arg(long, requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// File with its private key.
    #[arg(long, requires = "cert_file")]
    key_file: Option<PathBuf>,
}

impl TransportArgs {
    /// How to reach a url, if anything may be sent there at all.
    pub(crate) fn to(&self, url: &str) -> anyhow::Result<Transport> {
        let transport = Transport::default().allow_plaintext(self.allow_plaintext);
        transport.check(url, "--allow-plaintext")?;
        Ok(transport.with_files(TlsFiles {
            ca: self.ca_file.as_deref(),
            cert: self.cert_file.as_deref(),
            key: self.key_file.as_deref(),
        })?)
    }
}

#[derive(Args)]
pub(crate) struct AuditArgs {
    /// postgres://user:password@host:port/database of the authority, with the bridge's rights: its audit log then says who did
    /// this. Without it nothing is recorded.
    #[arg(long, env = "SPACETIME_SYNC__AUTHORITY__URL", hide_env_values = true)]
    authority_url: Option<String>,
    /// Let the connection to an authority on another machine do without sslmode=verify-full.
    #[arg(long, env = "SPACETIME_SYNC__AUTHORITY__ALLOW_PLAINTEXT")]
    authority_allow_plaintext: bool,
}

impl AuditArgs {
    /// Records what is about to be done. If that fails, it must not be done.
    pub(crate) async fn record(&self, act: Act<'_>) -> anyhow::Result<()> {
        let Some(url) = &self.authority_url else {
            return Ok(());
        };
        let server = Server::at(url).allow_plaintext(self.authority_allow_plaintext);
        let authority = Authority::connect(server, 1).await?;
        authority.record(act, &operator()).await?;
        authority.close().await;
        Ok(())
    }
}

/// Who runs this command, as the environment says, and on which machine.
pub(crate) fn operator() -> Actor {
    let said = |names: &[&str]| {
        let mut values = names.iter().filter_map(|name| std::env::var(name).ok());
        values.find(|value| !value.is_empty())
    };
    let name = said(&["SUDO_USER", "USER", "LOGNAME"]).unwrap_or_else(|| "unknown".to_owned());
    let machine = std::fs::read_to_string("/etc/hostname").map(|name| name.trim().to_owned());
    Actor::operator(&name, machine.ok().or_else(|| said(&["HOSTNAME"])))
}

pub(crate) fn load(path: Option<PathBuf>) -> anyhow::Result<Config> {
    Ok(Config::load(path.as_deref(), std::env::vars())?)
}

/// The SpacetimeDB in the configuration, and the credential for it: the bridge's token, or one that its issuer signs.
pub(crate) fn target(config: &Config, issuer: Option<&Arc<Issuer>>) -> anyhow::Result<Target> {
    let tokens = match (config.spacetimedb.token()?, issuer) {
        (Some(token), _) => TokenSource::Fixed(token),
        (None, Some(issuer)) => TokenSource::Signed(issuer.service().clone()),
        (None, None) => anyhow::bail!("expected a token of the bridge or an issuer that signs one, found neither"),
    };
    Ok(Target {
        uri: config.spacetimedb.uri.clone(),
        transport: config.spacetimedb.transport()?,
        database: config.spacetimedb.database.clone(),
        pin: config.spacetimedb.pin(),
        tokens,
        compatibility: issuer.map(|issuer| issuer.compatibility().clone()),
        deadline: Duration::from_millis(config.bridge.connect_deadline_ms),
    })
}

/// Connects to both sides of the lane, for a command that asks one question after the other and appends nothing.
pub(crate) async fn both_sides(config: &Config, issuer: Option<&Arc<Issuer>>) -> anyhow::Result<(Authority, Link)> {
    let authority = Authority::connect(&config.authority, CONNECTIONS).await?;
    // If the link ends, the next call of the command fails.
    let link = Link::connect(target(config, issuer)?, Arc::new(|_| {}))
        .await
        .context("cannot connect to SpacetimeDB")?;
    Ok((authority, link))
}

/// The keys that seal events.
pub(crate) fn sealing_keys(config: &Config, issuer: Option<&Arc<Issuer>>) -> anyhow::Result<Arc<KeyFolder>> {
    match issuer {
        Some(issuer) => Ok(issuer.seals().clone()),
        None => config.open_seals()?.context("no key seals events"),
    }
}

/// Writes a line to stderr. An error does not matter here.
pub(crate) fn tell(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Prints a line. A reader that has closed the pipe, as `head` does, is not an error.
pub(crate) fn say(line: impl Display) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}
