//! The command line.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use spacetime_sync_client::{
    ClientConfig, Credential, DatabasePin, HEARD_STREAMS, HttpTokens, IdentityHex, SqliteStore, StaleAnswer, StreamId,
    TlsFiles, TokenError, Transport,
};
use spacetime_sync_transport::secret_file;
use tracing_subscriber::EnvFilter;

use crate::state::Own;

/// Shows live who is here, who can do what, which assignment is where, which stream is how far behind, what is told in passing,
/// and what the connection does.
#[derive(Parser)]
#[command(version)]
pub(crate) struct Args {
    /// The address of SpacetimeDB.
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    uri: String,
    /// Let http:// lead to another machine. Everybody on the way can then read the token, and use it.
    #[arg(long)]
    allow_plaintext: bool,
    /// A file with certificates of the only authorities that count, in PEM.
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// A file with the certificate to show, in PEM.
    #[arg(long, requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// A file with its private key.
    #[arg(long, requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// The name of the database.
    #[arg(long)]
    database: String,
    /// The identity of that database, as `spacetime-sync publish` prints it. A bridge says it with the token.
    #[arg(long, requires = "owner_identity")]
    database_identity: Option<IdentityHex>,
    /// The identity of its owner.
    #[arg(long, requires = "database_identity")]
    owner_identity: Option<IdentityHex>,
    /// A file with the token. Such a session announces no node.
    #[arg(long, conflicts_with = "bridge", required_unless_present = "bridge")]
    token_file: Option<PathBuf>,
    /// A file with the keys whose seals count, as `spacetime-sync keys seals` prints them.
    #[arg(long, requires = "token_file", conflicts_with = "bridge")]
    seal_keys: Option<PathBuf>,
    /// A bridge that issues tokens for the session credential.
    #[arg(long, requires = "session_file")]
    bridge: Option<String>,
    /// A file with the session credential. It is read again for each token.
    #[arg(long, requires = "bridge")]
    session_file: Option<PathBuf>,
    /// The build id to send, YYYYMMDDTHHMMSSZ.
    #[arg(long)]
    client_build_id: Option<String>,
    /// The SQLite file with the checkpoints. The events themselves are not kept.
    #[arg(long)]
    db: PathBuf,
    /// A stream to follow. May be repeated.
    #[arg(long = "stream", required = true)]
    streams: Vec<StreamId>,
    /// Give up the connection when nothing is heard for this long although an answer is due.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    silence_ms: Option<u64>,
    /// Wait at most this long between attempts to connect.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    retry_ms: Option<u64>,
    /// The name of the node that the others see.
    #[arg(long, default_value = "terminal")]
    node: String,
    /// Its region.
    #[arg(long, default_value = "")]
    region: String,
    /// The name under which to publish a capability and to take assignments. Needs the scope sync.provider.
    #[arg(long)]
    provider: Option<String>,
    /// The capability that it publishes.
    #[arg(long, default_value = "anything")]
    capability: String,
    /// The document of the assignments that it opens: a JSON object.
    #[arg(long, default_value = "{}")]
    document: String,
    /// How long the assignments that it opens may take.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    deadline_s: u64,
    /// How long to repeat a call until it has an answer.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    within_s: u64,
    /// Where to log. `RUST_LOG` says what. Without it nothing is logged.
    #[arg(long)]
    log_file: Option<PathBuf>,
}

impl Args {
    /// Begins to log.
    pub(crate) fn log(&self) -> anyhow::Result<()> {
        let Some(path) = &self.log_file else { return Ok(()) };
        let mut file = File::options();
        let file = file.create(true).append(true).open(path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        // This library logs the headers it sends, and with them the token, when everything is logged.
        let quiet = "tungstenite=info".parse()?;
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(Mutex::new(file))
            .with_env_filter(EnvFilter::from_default_env().add_directive(quiet))
            .init();
        Ok(())
    }

    /// The streams whose servers are shown, and whose readers are heard: as many as a client may ask for.
    pub(crate) fn served(&self) -> &[StreamId] {
        &self.streams[..self.streams.len().min(HEARD_STREAMS)]
    }

    /// The client's configuration.
    pub(crate) fn config(&self) -> anyhow::Result<ClientConfig> {
        let mut config = ClientConfig::new(&self.uri, &self.database, self.streams.clone());
        config.transport = Transport::default()
            .allow_plaintext(self.allow_plaintext)
            .with_files(TlsFiles {
                ca: self.ca_file.as_deref(),
                cert: self.cert_file.as_deref(),
                key: self.key_file.as_deref(),
            })?;
        if let (Some(database_identity), Some(owner_identity)) = (&self.database_identity, &self.owner_identity) {
            config.pin = Some(DatabasePin {
                database_identity: database_identity.clone(),
                owner_identity: owner_identity.clone(),
            });
        }
        if let Some(path) = &self.token_file {
            config.credential = Credential::Fixed(secret_file::read(path)?.expose().trim().to_owned());
        }
        if let Some(path) = &self.seal_keys {
            let keys = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            config.seal_keys =
                serde_json::from_slice(&keys).with_context(|| format!("{} holds no keys", path.display()))?;
        }
        if let (Some(bridge), Some(path)) = (&self.bridge, self.session_file.clone()) {
            let tokens = HttpTokens::over(config.transport.clone(), bridge, move || {
                let read = secret_file::read(&path).map(|credential| credential.expose().to_owned());
                std::future::ready(
                    read.map_err(|error| TokenError::unavailable(format!("{:#}", anyhow::Error::new(error)))),
                )
            });
            config.credential = Credential::provider(tokens?);
        }
        if let Some(build) = &self.client_build_id {
            config.client_build_id.clone_from(build);
        }
        if let Some(silence) = self.silence_ms.map(Duration::from_millis) {
            config.limits.silence_timeout = silence;
            config.limits.heartbeat_after = silence.div_f64(2.0);
        }
        if let Some(retry) = self.retry_ms.map(Duration::from_millis) {
            config.backoff.spread = config.backoff.spread.min(retry);
            config.backoff.first = config.backoff.first.min(retry);
            config.backoff.most = retry;
        }
        (config.assigns, config.provides) = (true, self.provider.is_some());
        // It makes nothing of the events, so it can begin anywhere.
        config.on_stale = StaleAnswer::Restart;
        Ok(config)
    }

    /// Where the client keeps its checkpoints.
    pub(crate) fn store(&self) -> anyhow::Result<SqliteStore> {
        Ok(SqliteStore::open(&self.db)?)
    }

    /// The region of the node to announce. `None` if the session cannot announce one.
    pub(crate) fn region(&self) -> Option<&str> {
        self.bridge.as_ref().map(|_| self.region.as_str())
    }

    /// How long to repeat a call.
    pub(crate) fn within(&self) -> Duration {
        Duration::from_secs(self.within_s)
    }

    /// Who the program is.
    pub(crate) fn own(&self) -> Own {
        Own {
            database: self.database.clone(),
            node_id: self.node.clone(),
            provider_id: self.provider.clone(),
            capability: self.capability.clone(),
            document: self.document.clone(),
            deadline: Duration::from_secs(self.deadline_s),
            hears: self.served().to_vec(),
        }
    }
}
