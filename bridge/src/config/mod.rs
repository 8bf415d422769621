//! The configuration: one tree from a TOML file and the environment, checked as a whole before anything starts.
//!
//! The environment can set every key and overrides the file: `SPACETIME_SYNC__AUTHORITY__URL` is `authority.url`. An unknown
//! key is an error in both places. Secrets are never printed. Each crate below the bridge defines its own section.

mod http;
mod retention;
mod sources;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spacetime_sync_proto::access::Compatibility;
use spacetime_sync_proto::{Secret, limit};

use spacetime_sync_authority::settings::AuthorityConfig;
use spacetime_sync_gate::settings::GateConfig;
use spacetime_sync_issuer::keys::{KeyError, KeyFolder, SigningKey, now};
use spacetime_sync_issuer::settings::{self, BadSetting, HistoryConfig, IssuerConfig, SessionsConfig};
use spacetime_sync_issuer::{Issuer, IssuerError};
use spacetime_sync_lane::Limits;
use spacetime_sync_mirror::settings::MirrorConfig;
use spacetime_sync_stdb::settings::SpacetimeConfig;
use spacetime_sync_stdb::tokens::{TokenFileError, read_token};
use spacetime_sync_transport::plaintext;

pub use http::HttpConfig;
pub use retention::{RetentionConfig, Windows};

use sources::{Sources, line_at};

/// Prefix of the variables that set keys.
pub const ENV_PREFIX: &str = "SPACETIME_SYNC__";
/// Prefix of variables that were most likely meant to set a key.
const NEARLY_ENV_PREFIX: &str = "SPACETIME_SYNC_";
/// An example configuration: every key with its default and its meaning.
pub const EXAMPLE: &str = include_str!("example.toml");

/// The shortest credential of an admin or a gate, in bytes, so that nobody can guess it.
const CREDENTIAL_BYTES: usize = 16;

/// The whole configuration of `spacetime-sync run`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The runtime's Postgres.
    pub authority: AuthorityConfig,
    /// The SpacetimeDB that the bridge publishes to.
    pub spacetimedb: SpacetimeConfig,
    /// The bridge's own HTTP side.
    #[serde(default)]
    pub http: HttpConfig,
    /// How the bridge behaves.
    #[serde(default)]
    pub bridge: BridgeConfig,
    /// Limits on what is under way.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// How long events are kept.
    #[serde(default)]
    pub retention: RetentionConfig,
    /// How the bridge issues tokens. Without this section it issues none.
    pub issuer: Option<IssuerConfig>,
    /// Whose session credentials the issuer accepts.
    pub sessions: Option<SessionsConfig>,
    /// How clients read the authority's log over HTTP.
    #[serde(default)]
    pub history: HistoryConfig,
    /// What events are sealed with.
    #[serde(default)]
    pub seals: SealsConfig,
    /// Which clients the bridge and the module serve.
    #[serde(default)]
    pub compatibility: Compatibility,
    /// The gate before SpacetimeDB, a process of its own: `spacetime-sync gate`.
    pub gate: Option<GateConfig>,
    /// The mirror, a process of its own: `spacetime-sync mirror`.
    pub mirror: Option<MirrorConfig>,
}

/// What `spacetime-sync gate` reads of the configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfTheGate {
    gate: GateConfig,
}

/// What `spacetime-sync mirror` reads of the configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfTheMirror {
    authority: AuthorityConfig,
    mirror: MirrorConfig,
}

/// The sections of the bridge alone.
const BRIDGE_SECTIONS: [&str; 10] = [
    "spacetimedb",
    "http",
    "bridge",
    "limits",
    "retention",
    "issuer",
    "sessions",
    "history",
    "compatibility",
    "seals",
];

/// `[seals]`: with nothing in it, the issuer's keys seal.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SealsConfig {
    /// Folder of the sealing keys, see `spacetime-sync keys`.
    pub keys_dir: Option<PathBuf>,
    /// The only sealing key, in PEM.
    pub key: Option<Secret>,
}

/// `[bridge]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BridgeConfig {
    /// Whether the bridge takes the lead first, so that a second bridge on the same database stands by. Two bridges without a
    /// lead are safe, but do everything twice.
    pub lead: bool,
    /// Health turns red when work makes no progress for this long, or the authority or SpacetimeDB is away for this long.
    pub stall_after_ms: u64,
    /// How long after all streams were compared with SpacetimeDB to compare them again.
    pub compare_every_ms: u64,
    /// How long a stop may wait for what is in flight.
    pub drain_ms: u64,
    /// The bridge gives up a link on which a call waits this long for its answer.
    pub ack_deadline_ms: u64,
    /// How long an attempt to connect to SpacetimeDB may take.
    pub connect_deadline_ms: u64,
    /// The longest wait between two looks for dirty streams.
    pub idle_poll_ms: u64,
}

/// `[limits]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// The most events in one page of the authority's log.
    pub page_events: usize,
    /// The most bytes of payload in one page.
    pub page_bytes: usize,
    /// The most bytes in one frame.
    pub frame_bytes: usize,
    /// The most pages that are read at once.
    pub reads: usize,
    /// The most calls in flight at once.
    pub calls: usize,
    /// The most bytes that are read and not yet acknowledged.
    pub bytes: usize,
    /// The most dirty streams that one look returns.
    pub dirty_streams: usize,
    /// The most idle streams that the bridge remembers.
    pub idle_streams: usize,
    /// How often in a row a stream may fail before it halts.
    pub attempts: u32,
}

impl Default for BridgeConfig {
    fn default() -> Self {
        Self {
            lead: true,
            stall_after_ms: 10_000,
            compare_every_ms: 300_000,
            drain_ms: 10_000,
            ack_deadline_ms: 6_000,
            connect_deadline_ms: 5_000,
            idle_poll_ms: 250,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            page_events: 1_000,
            page_bytes: 1024 * 1024,
            frame_bytes: 256 * 1024,
            reads: 4,
            calls: 64,
            bytes: 8 * 1024 * 1024,
            dirty_streams: 1_000,
            idle_streams: 100_000,
            attempts: 8,
        }
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A token file cannot be used.
    #[error(transparent)]
    Token(#[from] TokenFileError),
    /// The file is not TOML, or the name of a variable does not contain a key.
    #[error("{origin}: {message}")]
    Malformed {
        /// The file and the line, or the variable.
        origin: String,
        /// What was expected.
        message: String,
    },
    /// A key is unknown or missing, or cannot have this value.
    #[error("{place}: {key}: {message}")]
    Key {
        /// The file and the line, or the variable.
        place: String,
        /// The key.
        key: String,
        /// What was expected and what was found.
        message: String,
    },
    /// A value is out of its range, or a required one is missing.
    #[error("{key}: {message}")]
    Value {
        /// The key.
        key: &'static str,
        /// What was expected and what was found.
        message: String,
    },
}

impl From<spacetime_sync_gate::settings::BadSetting> for ConfigError {
    fn from(bad: spacetime_sync_gate::settings::BadSetting) -> Self {
        Self::Value {
            key: bad.key,
            message: bad.message,
        }
    }
}

impl From<spacetime_sync_mirror::settings::BadSetting> for ConfigError {
    fn from(bad: spacetime_sync_mirror::settings::BadSetting) -> Self {
        Self::Value {
            key: bad.key,
            message: bad.message,
        }
    }
}

impl From<BadSetting> for ConfigError {
    fn from(BadSetting { key, message }: BadSetting) -> Self {
        Self::Value { key, message }
    }
}

impl Config {
    /// Reads the file, if there is one, then the environment, and checks everything.
    pub fn load(path: Option<&Path>, environment: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let (tree, sources) = read(path, environment)?;
        let config: Self = sources.parse(tree)?;
        config.check().map_err(|error| sources.locate(error))?;
        Ok(config)
    }

    /// Reads the section `[gate]` alone. The other sections may be there, and their values do not matter.
    pub fn load_gate(
        path: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<GateConfig, ConfigError> {
        let (mut tree, sources) = read(path, environment)?;
        for section in BRIDGE_SECTIONS.into_iter().chain(["authority", "mirror"]) {
            tree.remove(section);
        }
        let OfTheGate { gate } = sources.parse(tree)?;
        let checked = gate.check().map_err(ConfigError::from);
        checked.map_err(|error| sources.locate(error))?;
        Ok(gate)
    }

    /// Reads the sections `[authority]` and `[mirror]` alone. The other sections may be there, and their values do not matter.
    pub fn load_mirror(
        path: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<(AuthorityConfig, MirrorConfig), ConfigError> {
        let (mut tree, sources) = read(path, environment)?;
        for section in BRIDGE_SECTIONS.into_iter().chain(["gate"]) {
            tree.remove(section);
        }
        let OfTheMirror { authority, mirror } = sources.parse(tree)?;
        let checked = match authority.check_transport() {
            Ok(()) => mirror.check().map_err(ConfigError::from),
            Err(message) => Err(ConfigError::Value {
                key: "authority.url",
                message,
            }),
        };
        checked.map_err(|error| sources.locate(error))?;
        Ok((authority, mirror))
    }

    /// All keys with their values, in TOML, without secrets.
    pub fn to_toml(&self) -> String {
        // This cannot fail: TOML only refuses maps whose keys are not strings, and the configuration has none.
        toml::to_string(self).unwrap_or_else(|error| format!("# {error}\n"))
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |key, message: String| Err(ConfigError::Value { key, message });
        let uri = &self.spacetimedb.uri;
        if !uri.starts_with("http://") && !uri.starts_with("https://") {
            return value(
                "spacetimedb.uri",
                format!("expected http://… or https://…, found {uri:?}"),
            );
        }
        if self.spacetimedb.database.is_empty() {
            return value(
                "spacetimedb.database",
                "expected the name of a database, found nothing".to_owned(),
            );
        }
        if let Err(refused) = self.spacetimedb.check_transport() {
            return value("spacetimedb.uri", refused.to_string());
        }
        if let Err(message) = self.authority.check_transport() {
            return value("authority.url", message);
        }
        // A server on this machine without tokens is one for trials.
        let must = self.issuer.is_some() || !plaintext::leads_here(uri);
        if let Err((key, message)) = self.spacetimedb.check_pin(must) {
            return value(key, message);
        }
        match (&self.spacetimedb.token, &self.spacetimedb.token_file) {
            (None, None) if self.issuer.is_none() => {
                return value(
                    "spacetimedb.token_file",
                    "expected this or spacetimedb.token or a section [issuer], found none of them".to_owned(),
                );
            }
            (Some(_), Some(_)) => {
                return value(
                    "spacetimedb.token",
                    "expected this or spacetimedb.token_file, found both".to_owned(),
                );
            }
            (Some(_), None) | (None, Some(_)) | (None, None) => {}
        }
        match (&self.seals.key, &self.seals.keys_dir) {
            (None, None) if self.issuer.is_none() => {
                return value(
                    "seals.keys_dir",
                    "expected this or seals.key or a section [issuer], found none of them: clients apply only what is \
                     sealed"
                        .to_owned(),
                );
            }
            (Some(_), Some(_)) => {
                return value("seals.key", "expected this or seals.keys_dir, found both".to_owned());
            }
            (Some(_), None) | (None, Some(_)) | (None, None) => {}
        }
        let served = &self.compatibility;
        if let Err(message) = served.check_bounds().and_then(|()| served.check_spoken()) {
            return value("compatibility", message);
        }
        if let Some(gate) = &self.gate {
            gate.check()?;
        }
        if let Some(mirror) = &self.mirror {
            mirror.check()?;
        }
        settings::check(self.issuer.as_ref(), self.sessions.as_ref())?;
        self.http.check(self.issuer.as_ref())?;
        self.history.check()?;
        let limits = &self.limits;
        for (key, found, least, most) in [
            ("limits.page_events", limits.page_events as u64, 1, 10_000),
            ("limits.page_bytes", limits.page_bytes as u64, 1, 16 * 1024 * 1024),
            (
                "limits.frame_bytes",
                limits.frame_bytes as u64,
                1,
                (limit::FRAME_BYTES - limit::PAYLOAD_BYTES) as u64,
            ),
            ("limits.reads", limits.reads as u64, 1, 1_000),
            ("limits.calls", limits.calls as u64, 1, 1_000),
            ("limits.bytes", limits.bytes as u64, 1, 1024 * 1024 * 1024),
            ("limits.dirty_streams", limits.dirty_streams as u64, 1, 100_000),
            ("limits.idle_streams", limits.idle_streams as u64, 1, 10_000_000),
            ("limits.attempts", limits.attempts.into(), 1, 1_000),
            ("authority.pool_size", self.authority.pool_size as u64, 2, 1_000),
            ("bridge.stall_after_ms", self.bridge.stall_after_ms, 100, 3_600_000),
            ("bridge.compare_every_ms", self.bridge.compare_every_ms, 100, 86_400_000),
            ("bridge.drain_ms", self.bridge.drain_ms, 1, 3_600_000),
            ("bridge.ack_deadline_ms", self.bridge.ack_deadline_ms, 100, 3_600_000),
            (
                "bridge.connect_deadline_ms",
                self.bridge.connect_deadline_ms,
                100,
                3_600_000,
            ),
            ("bridge.idle_poll_ms", self.bridge.idle_poll_ms, 1, 60_000),
            ("retention.every_ms", self.retention.every_ms, 10, 86_400_000),
            ("retention.beat_ms", self.retention.beat_ms, 10, 3_600_000),
        ] {
            if found < least || found > most {
                return value(key, format!("expected {least} to {most}, found {found}"));
            }
        }
        Ok(())
    }

    /// The admin credential of the HTTP side. `None` means that nobody is an admin.
    pub fn admin_token(&self) -> Result<Option<Secret>, ConfigError> {
        credential(
            "http.admin_token",
            self.http.admin_token.as_ref(),
            self.http.admin_token_file.as_deref(),
        )
    }

    /// The credential of the gates. `None` means that a gate needs the admin's.
    pub fn gate_token(&self) -> Result<Option<Secret>, ConfigError> {
        credential(
            "http.gate_token",
            self.http.gate_token.as_ref(),
            self.http.gate_token_file.as_deref(),
        )
    }

    /// Opens the issuer, if the configuration has one.
    pub fn open_issuer(&self) -> Result<Option<Arc<Issuer>>, IssuerError> {
        match (&self.issuer, &self.sessions) {
            (Some(issuer), Some(sessions)) => {
                let seals = self.open_seals()?;
                let opened = Issuer::open(issuer, sessions, &self.compatibility, seals)?;
                Ok(Some(Arc::new(opened.pinned(self.spacetimedb.pin()))))
            }
            _ => Ok(None),
        }
    }

    /// The keys that seal, if they are not the issuer's.
    pub fn open_seals(&self) -> Result<Option<Arc<KeyFolder>>, KeyError> {
        let keys = match (&self.seals.key, &self.seals.keys_dir) {
            (Some(pem), _) => KeyFolder::single(SigningKey::from_pem(pem, 0, "seals.key")?),
            (None, Some(folder)) => KeyFolder::open(folder, now())?,
            (None, None) => return Ok(None),
        };
        Ok(Some(Arc::new(keys)))
    }

    /// The settings of the lane.
    pub fn lane(&self) -> spacetime_sync_lane::Settings {
        let (limits, bridge, retention) = (&self.limits, &self.bridge, &self.retention);
        let ms = Duration::from_millis;
        spacetime_sync_lane::Settings {
            limits: Limits {
                reads: limits.reads.min(self.authority.pool_size - 1),
                calls: limits.calls,
                bytes: limits.bytes,
                idle_streams: limits.idle_streams,
                attempts: limits.attempts,
            },
            lead: bridge.lead,
            stall_after: bridge.stall_after(),
            drain: ms(bridge.drain_ms),
            connect_deadline: ms(bridge.connect_deadline_ms),
            ack_deadline: ms(bridge.ack_deadline_ms),
            idle_poll: ms(bridge.idle_poll_ms),
            dirty_streams: limits.dirty_streams,
            compared_streams: limit::HEADS,
            compare_every: ms(bridge.compare_every_ms),
            applies_windows: self.applies_windows(),
            policy_every: ms(retention.every_ms),
            beat_every: ms(retention.beat_ms),
        }
    }
}

impl BridgeConfig {
    /// See [`BridgeConfig::stall_after_ms`].
    pub fn stall_after(&self) -> Duration {
        Duration::from_millis(self.stall_after_ms)
    }
}

/// The credential that a gate shows to the bridge.
pub fn gate_credential(gate: &GateConfig) -> Result<Secret, ConfigError> {
    let (token, file) = (gate.bridge_token.as_ref(), gate.bridge_token_file.as_deref());
    let missing = || ConfigError::Value {
        key: "gate.bridge_token_file",
        message: "expected this or gate.bridge_token, found neither".to_owned(),
    };
    credential("gate.bridge_token", token, file)?.ok_or_else(missing)
}

/// A credential, from the configuration or from its file.
fn credential(key: &'static str, token: Option<&Secret>, file: Option<&Path>) -> Result<Option<Secret>, ConfigError> {
    let token = match (token, file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => read_token(path)?,
        (None, None) => return Ok(None),
    };
    let length = token.expose().len();
    if length < CREDENTIAL_BYTES {
        let message = format!("expected at least {CREDENTIAL_BYTES} characters, found {length}");
        return Err(ConfigError::Value { key, message });
    }
    Ok(Some(token))
}

/// Reads the file, if there is one, then the environment.
fn read(
    path: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<(toml::Table, Sources<'_>), ConfigError> {
    let mut sources = Sources::default();
    let mut tree = toml::Table::new();
    if let Some(path) = path {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        // The error shows the position and the message, but not the line itself, which may hold a secret.
        tree = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_at(&text, span.start));
            ConfigError::Malformed {
                origin: format!("{}:{line}", path.display()),
                message: format!("expected TOML: {}", error.message()),
            }
        })?;
        sources.file = Some((path, text));
    }
    for (variable, value) in environment {
        if let Some(key) = variable.strip_prefix(ENV_PREFIX) {
            let key = overlay(&mut tree, &variable, key, value)?;
            sources.variables.insert(key, variable);
        } else if let Some(rest) = variable.strip_prefix(NEARLY_ENV_PREFIX) {
            tracing::warn!(
                "{variable} sets nothing: names of keys have two underscores, as in {ENV_PREFIX}{}",
                rest.replacen('_', "__", 1)
            );
        }
    }
    Ok((tree, sources))
}

/// Sets the key `a.b` for `A__B`, and returns it. A value that looks like a number or a boolean becomes one; every other value
/// stays a string.
fn overlay(tree: &mut toml::Table, variable: &str, path: &str, value: String) -> Result<String, ConfigError> {
    let malformed = |message: &str| ConfigError::Malformed {
        origin: variable.to_owned(),
        message: message.to_owned(),
    };
    let path = path.to_ascii_lowercase();
    let Some((section, name)) = path.split_once("__") else {
        return Err(malformed("expected SECTION__KEY after the prefix"));
    };
    let key = format!("{section}.{name}");
    let section = tree
        .entry(section)
        .or_insert_with(|| toml::Value::Table(toml::Table::new()));
    let section = section
        .as_table_mut()
        .ok_or_else(|| malformed("expected a section before the two underscores"))?;
    let parsed = match (value.parse::<i64>(), value.parse::<bool>()) {
        // Only a number that prints the same again, so that a secret of digits does not lose its zeros.
        (Ok(number), _) if number.to_string() == value => toml::Value::Integer(number),
        (_, Ok(truth)) => toml::Value::Boolean(truth),
        _ => toml::Value::String(value),
    };
    section.insert(name.to_owned(), parsed);
    Ok(key)
}

#[cfg(test)]
mod tests;
