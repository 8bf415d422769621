//! The sections `[issuer]`, `[sessions]` and `[history]` of the bridge's configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use spacetime_sync_proto::Secret;
use spacetime_sync_proto::access::{AUDIENCE, check_issuer_url};
use spacetime_sync_transport::{TlsError, TlsFiles, Transport, plaintext};

/// Most files of public keys in `[sessions]`.
const PUBLIC_KEYS: usize = 16;

/// `[issuer]`: with it the bridge issues sync tokens, and signs its own token, too.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// `iss` of every token: the url below which SpacetimeDB finds this bridge's `/.well-known/openid-configuration`.
    pub url: String,
    /// Whether `url` may be `http://` on another machine: there clients show their credentials, and SpacetimeDB asks for the
    /// keys that it trusts.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// `aud` of every token.
    #[serde(default = "default_audience")]
    pub audience: String,
    /// Folder of the signing keys, see `spacetime-sync keys`.
    pub keys_dir: Option<PathBuf>,
    /// The only signing key, in PEM, for operators who keep secrets in the environment. The issuer needs one of the
    /// two.
    pub key: Option<Secret>,
    /// How long a token of the bridge itself is valid. The bridge shows a new one after half of that.
    #[serde(default = "default_service_ttl_seconds")]
    pub service_ttl_seconds: u64,
    /// How often the issuer reads the folder again.
    #[serde(default = "default_keys_reload_ms")]
    pub keys_reload_ms: u64,
    /// How long the issuer remembers what the authority answered about a session; with 0 it asks every time.
    #[serde(default = "default_policy_cache_ms")]
    pub policy_cache_ms: u64,
    /// Most connections to the authority for tokens.
    #[serde(default = "default_pool_size")]
    pub pool_size: usize,
    /// How many tokens one session may ask for in a minute.
    #[serde(default = "default_session_per_minute")]
    pub session_per_minute: u32,
    /// How many of these at once.
    #[serde(default = "default_session_burst")]
    pub session_burst: u32,
    /// How many credentials of one address, or of one session, are checked in a second, and how often one that is refused.
    #[serde(default = "default_checks_per_second")]
    pub checks_per_second: u32,
    /// How many of these at once.
    #[serde(default = "default_checks_burst")]
    pub checks_burst: u32,
    /// How many credentials of one address may fail in a minute, and how often one that is signed. A good one is heard all the
    /// same.
    #[serde(default = "default_failures_per_minute")]
    pub failures_per_minute: u32,
    /// How many of these at once.
    #[serde(default = "default_failures_burst")]
    pub failures_burst: u32,
}

/// `[sessions]`: whose session credentials the issuer accepts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionsConfig {
    /// `iss` of a session credential.
    pub issuer: String,
    /// `aud` of a session credential.
    pub audience: String,
    /// Files with public keys in PEM: P-256 for ES256, RSA for RS256. One path, or a list of them.
    #[serde(default, deserialize_with = "one_or_many")]
    pub public_keys: Vec<PathBuf>,
    /// Url of the key set of the sessions' issuer.
    pub jwks_url: Option<String>,
    /// Whether `jwks_url` may be `http://` on another machine.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// Certificates of the only authorities that count there, in PEM.
    pub ca_file: Option<PathBuf>,
    /// The certificate that the bridge shows there, in PEM.
    pub cert_file: Option<PathBuf>,
    /// Its private key.
    pub key_file: Option<PathBuf>,
    /// How many days the authority remembers a session after its first token or its revocation; without a value, it
    /// never forgets. A forgotten session counts as a new one, so no session credential may be valid for longer. The
    /// authority never forgets sooner than `runtime.sync_session_retention` says, which only its owner may change.
    pub remember_days: Option<u16>,
}

fn default_audience() -> String {
    AUDIENCE.to_owned()
}

fn default_service_ttl_seconds() -> u64 {
    900
}

fn default_keys_reload_ms() -> u64 {
    5_000
}

fn default_policy_cache_ms() -> u64 {
    2_000
}

fn default_pool_size() -> usize {
    4
}

fn default_session_per_minute() -> u32 {
    30
}

fn default_session_burst() -> u32 {
    30
}

fn default_checks_per_second() -> u32 {
    2_000
}

fn default_checks_burst() -> u32 {
    4_000
}

fn default_failures_per_minute() -> u32 {
    60
}

fn default_failures_burst() -> u32 {
    60
}

impl SessionsConfig {
    /// How the bridge reaches the key set.
    pub fn transport(&self) -> Result<Transport, TlsError> {
        let files = TlsFiles {
            ca: self.ca_file.as_deref(),
            cert: self.cert_file.as_deref(),
            key: self.key_file.as_deref(),
        };
        Transport::default()
            .allow_plaintext(self.allow_plaintext)
            .with_files(files)
    }
}

impl IssuerConfig {
    /// See [`IssuerConfig::keys_reload_ms`].
    pub fn keys_reload(&self) -> Duration {
        Duration::from_millis(self.keys_reload_ms)
    }

    /// See [`IssuerConfig::policy_cache_ms`].
    pub fn policy_cache(&self) -> Duration {
        Duration::from_millis(self.policy_cache_ms)
    }
}

/// `[history]`: how clients read the authority's log over HTTP. Without an `[issuer]` nobody can.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryConfig {
    /// Most connections to the authority for history.
    pub pool_size: usize,
    /// Most requests that are answered at the same time: half of them of one user, a quarter of one session. Further ones wait
    /// a moment.
    pub requests: usize,
    /// How many requests one session may send in a minute.
    pub session_per_minute: u32,
    /// How many of these at once.
    pub session_burst: u32,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self {
            pool_size: 2,
            requests: 8,
            session_per_minute: 600,
            session_burst: 200,
        }
    }
}

impl HistoryConfig {
    /// Checks the bounds.
    pub fn check(&self) -> Result<(), BadSetting> {
        for (key, found, most) in [
            ("history.pool_size", self.pool_size as u64, 1_000),
            ("history.requests", self.requests as u64, 10_000),
            ("history.session_per_minute", self.session_per_minute.into(), 1_000_000),
            ("history.session_burst", self.session_burst.into(), 1_000_000),
        ] {
            if found < 1 || found > most {
                let message = format!("expected 1 to {most}, found {found}");
                return Err(BadSetting { key, message });
            }
        }
        Ok(())
    }
}

/// A value that is out of its range, or one that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadSetting {
    /// The key.
    pub key: &'static str,
    /// What was expected and what was found.
    pub message: String,
}

/// Checks `[issuer]` and `[sessions]`, each alone and both together.
pub fn check(issuer: Option<&IssuerConfig>, sessions: Option<&SessionsConfig>) -> Result<(), BadSetting> {
    let value = |key, message: &str| {
        let message = message.to_owned();
        Err(BadSetting { key, message })
    };
    match (issuer, sessions) {
        (None, None) => Ok(()),
        (Some(_), None) => value(
            "sessions.issuer",
            "expected a section [sessions] beside [issuer], found none: it says whose sessions get tokens",
        ),
        (None, Some(_)) => value(
            "issuer.url",
            "expected a section [issuer] beside [sessions], found none",
        ),
        (Some(issuer), Some(sessions)) => {
            check_issuer(issuer)?;
            check_sessions(issuer, sessions)
        }
    }
}

fn check_issuer(issuer: &IssuerConfig) -> Result<(), BadSetting> {
    let value = |key, message: String| Err(BadSetting { key, message });
    if let Err(message) = check_issuer_url(&issuer.url) {
        return value("issuer.url", message);
    }
    if let Err(refused) = plaintext::check(&issuer.url, issuer.allow_plaintext, "issuer.allow_plaintext = true") {
        return value("issuer.url", refused.to_string());
    }
    if issuer.audience.is_empty() {
        return value("issuer.audience", "expected a name, found nothing".to_owned());
    }
    match (&issuer.keys_dir, &issuer.key) {
        (None, None) => {
            return value(
                "issuer.keys_dir",
                "expected this or issuer.key, found neither; make a first key with: spacetime-sync keys add --dir DIR"
                    .to_owned(),
            );
        }
        (Some(_), Some(_)) => {
            return value("issuer.key", "expected this or issuer.keys_dir, found both".to_owned());
        }
        (Some(_), None) | (None, Some(_)) => {}
    }
    for (key, found, least, most) in [
        ("issuer.service_ttl_seconds", issuer.service_ttl_seconds, 2, 900),
        ("issuer.keys_reload_ms", issuer.keys_reload_ms, 100, 60_000),
        ("issuer.policy_cache_ms", issuer.policy_cache_ms, 0, 60_000),
        ("issuer.pool_size", issuer.pool_size as u64, 1, 1_000),
        (
            "issuer.session_per_minute",
            issuer.session_per_minute.into(),
            1,
            1_000_000,
        ),
        ("issuer.session_burst", issuer.session_burst.into(), 1, 1_000_000),
        (
            "issuer.checks_per_second",
            issuer.checks_per_second.into(),
            1,
            1_000_000,
        ),
        ("issuer.checks_burst", issuer.checks_burst.into(), 1, 1_000_000),
        (
            "issuer.failures_per_minute",
            issuer.failures_per_minute.into(),
            1,
            1_000_000,
        ),
        ("issuer.failures_burst", issuer.failures_burst.into(), 1, 1_000_000),
    ] {
        if found < least || found > most {
            return value(key, format!("expected {least} to {most}, found {found}"));
        }
    }
    Ok(())
}

fn check_sessions(issuer: &IssuerConfig, sessions: &SessionsConfig) -> Result<(), BadSetting> {
    let value = |key, message: String| Err(BadSetting { key, message });
    if sessions.issuer.is_empty() {
        return value("sessions.issuer", "expected a name, found nothing".to_owned());
    }
    if sessions.audience.is_empty() {
        return value("sessions.audience", "expected a name, found nothing".to_owned());
    }
    if sessions.issuer == issuer.url || sessions.audience == issuer.audience {
        return value(
            "sessions.issuer",
            "expected another issuer and another audience than those of [issuer]: a sync token must not pass for a \
             session credential"
                .to_owned(),
        );
    }
    if sessions.public_keys.is_empty() && sessions.jwks_url.is_none() {
        return value(
            "sessions.public_keys",
            "expected this or sessions.jwks_url, found neither".to_owned(),
        );
    }
    if sessions.public_keys.len() > PUBLIC_KEYS {
        return value(
            "sessions.public_keys",
            format!("expected at most {PUBLIC_KEYS}, found {}", sessions.public_keys.len()),
        );
    }
    if sessions.remember_days == Some(0) {
        return value("sessions.remember_days", "expected at least 1, found 0".to_owned());
    }
    let Some(url) = &sessions.jwks_url else { return Ok(()) };
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return value(
            "sessions.jwks_url",
            format!("expected http://… or https://…, found {url:?}"),
        );
    }
    plaintext::check(url, sessions.allow_plaintext, "sessions.allow_plaintext = true").map_err(|refused| BadSetting {
        key: "sessions.jwks_url",
        message: refused.to_string(),
    })
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a path or a list of paths")]
    enum Paths {
        One(PathBuf),
        Many(Vec<PathBuf>),
    }
    Ok(match Paths::deserialize(deserializer)? {
        Paths::One(path) => vec![path],
        Paths::Many(paths) => paths,
    })
}
