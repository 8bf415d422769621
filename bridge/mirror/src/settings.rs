//! The section `[mirror]` of the configuration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spacetime_sync_proto::{Secret, StreamId};
use spacetime_sync_transport::plaintext;
use spacetime_sync_transport::secret_file::{self, SecretFileError};

use crate::key::{MirrorKey, NotAKey};
use crate::relay::Bounds;
use crate::tail::PASS;
use crate::verdict::Patience;

/// `[mirror]`: with it `spacetime-sync mirror` runs. The mirror reads `[authority]` besides, and no other section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorConfig {
    /// Where health and metrics are served. For the operator alone.
    #[serde(default = "default_admin_listen")]
    pub admin_listen: SocketAddr,
    /// File with the private key that signs what is published.
    pub key_file: Option<PathBuf>,
    /// The key itself. The mirror needs one of the two.
    pub key: Option<Secret>,
    /// Whether `ws://` may lead to a relay on another machine, and `http://` to SpacetimeDB and the bridge.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// How often the mirror looks for new events.
    #[serde(default = "default_poll_ms")]
    pub poll_ms: u64,
    /// The mirror reads no further while so many entries wait to be published.
    #[serde(default = "default_pending")]
    pub pending: usize,
    /// How many parked entries are kept. Beyond that the oldest are forgotten.
    #[serde(default = "default_parked")]
    pub parked: usize,
    /// How many published entries are remembered.
    #[serde(default = "default_sent")]
    pub sent: usize,
    /// For how long they are remembered.
    #[serde(default = "default_sent_seconds")]
    pub sent_seconds: u64,
    /// How often an entry is tried at a relay.
    #[serde(default = "default_attempts")]
    pub attempts: u32,
    /// About how long the mirror waits after the first failure. After each further one it waits twice as long.
    #[serde(default = "default_backoff_ms")]
    pub backoff_ms: u64,
    /// The longest wait.
    #[serde(default = "default_longest_backoff_ms")]
    pub longest_backoff_ms: u64,
    /// The most entries that go to a relay at once.
    #[serde(default = "default_relay_batch")]
    pub relay_batch: usize,
    /// How long a relay may take to accept a connection, to answer an entry, and to show what it has.
    #[serde(default = "default_relay_deadline_ms")]
    pub relay_deadline_ms: u64,
    /// The longest message of a relay.
    #[serde(default = "default_relay_message_bytes")]
    pub relay_message_bytes: usize,
    /// `http://…` of SpacetimeDB, or of a gate before it. With this and the next four keys the mirror has a session there.
    pub spacetimedb_uri: Option<String>,
    /// Name of the database that has the module.
    pub database: Option<String>,
    /// `issuer.url` of the bridge, which gives the mirror its tokens.
    pub bridge_url: Option<String>,
    /// File with the session credential of the mirror's user.
    pub session_file: Option<PathBuf>,
    /// A stream that this user may read, best one that nothing is appended to: every session follows one.
    pub stream: Option<StreamId>,
    /// How often providers are advertised, and relays asked for announcements.
    #[serde(default = "default_refresh_seconds")]
    pub refresh_seconds: u64,
}

/// The mirror's session at SpacetimeDB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionConfig {
    /// See [`MirrorConfig::spacetimedb_uri`].
    pub uri: String,
    /// See [`MirrorConfig::database`].
    pub database: String,
    /// See [`MirrorConfig::bridge_url`].
    pub bridge_url: String,
    /// See [`MirrorConfig::session_file`].
    pub session_file: PathBuf,
    /// See [`MirrorConfig::stream`].
    pub stream: StreamId,
    /// See [`MirrorConfig::allow_plaintext`].
    pub allow_plaintext: bool,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct BadSetting {
    /// The key.
    pub key: &'static str,
    /// What was expected and what was found.
    pub message: String,
}

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read, or others can read it.
    #[error("mirror.key_file")]
    File(#[from] SecretFileError),
    /// It holds no key.
    #[error("mirror.key_file or mirror.key")]
    Key(#[from] NotAKey),
    /// Neither setting names one.
    #[error("mirror.key_file: expected this or mirror.key, found neither")]
    Missing,
}

impl MirrorConfig {
    /// Checks every value.
    pub fn check(&self) -> Result<(), BadSetting> {
        let bad = |key, message: String| Err(BadSetting { key, message });
        match (&self.key, &self.key_file) {
            (Some(_), None) | (None, Some(_)) => {}
            (None, None) => {
                let message = "expected this or mirror.key, found neither".to_owned();
                return bad("mirror.key_file", message);
            }
            (Some(_), Some(_)) => {
                let message = "expected this or mirror.key_file, found both".to_owned();
                return bad("mirror.key", message);
            }
        }
        for (key, found, least, most) in [
            ("mirror.poll_ms", self.poll_ms, 10, 60_000),
            ("mirror.pending", self.pending as u64, 1, 1_000_000),
            ("mirror.parked", self.parked as u64, 1, 1_000_000),
            ("mirror.sent", self.sent as u64, 1, 10_000_000),
            ("mirror.sent_seconds", self.sent_seconds, 1, 366 * 86_400),
            ("mirror.attempts", self.attempts.into(), 1, 1_000),
            ("mirror.backoff_ms", self.backoff_ms, 1, 3_600_000),
            ("mirror.longest_backoff_ms", self.longest_backoff_ms, 1, 86_400_000),
            ("mirror.relay_batch", self.relay_batch as u64, 1, PASS as u64),
            ("mirror.refresh_seconds", self.refresh_seconds, 1, 3_600),
            ("mirror.relay_deadline_ms", self.relay_deadline_ms, 100, 60_000),
            (
                "mirror.relay_message_bytes",
                self.relay_message_bytes as u64,
                16 * 1024,
                16 * 1024 * 1024,
            ),
        ] {
            if found < least || found > most {
                return bad(key, format!("expected {least} to {most}, found {found}"));
            }
        }
        // Or what was advertised would be forgotten within its slot, and advertised again.
        if self.sent_seconds < self.refresh_seconds {
            let (found, least) = (self.sent_seconds, self.refresh_seconds);
            let message = format!("expected at least mirror.refresh_seconds, {least}, found {found}");
            return bad("mirror.sent_seconds", message);
        }
        let session = [
            ("mirror.spacetimedb_uri", self.spacetimedb_uri.is_some()),
            ("mirror.database", self.database.is_some()),
            ("mirror.bridge_url", self.bridge_url.is_some()),
            ("mirror.session_file", self.session_file.is_some()),
            ("mirror.stream", self.stream.is_some()),
        ];
        if session.iter().any(|(_, is_set)| *is_set)
            && let Some((missing, _)) = session.iter().find(|(_, is_set)| !is_set)
        {
            let message = "expected this, because another key of the mirror's session is set, found nothing".to_owned();
            return bad(missing, message);
        }
        for (key, url) in [
            ("mirror.spacetimedb_uri", self.spacetimedb_uri.as_deref()),
            ("mirror.bridge_url", self.bridge_url.as_deref()),
        ] {
            if let Some(Err(refused)) = url.map(|url| self.check_relay(url)) {
                return bad(key, refused.to_string());
            }
        }
        Ok(())
    }

    /// The key that signs.
    pub fn read_key(&self) -> Result<MirrorKey, KeyError> {
        let secret = match (&self.key, &self.key_file) {
            (Some(key), _) => key.clone(),
            (None, Some(file)) => secret_file::read(file)?,
            (None, None) => return Err(KeyError::Missing),
        };
        Ok(MirrorKey::read(&secret)?)
    }

    /// The mirror's session at SpacetimeDB, if it has one.
    pub fn session(&self) -> Option<SessionConfig> {
        Some(SessionConfig {
            uri: self.spacetimedb_uri.clone()?,
            database: self.database.clone()?,
            bridge_url: self.bridge_url.clone()?,
            session_file: self.session_file.clone()?,
            stream: self.stream.clone()?,
            allow_plaintext: self.allow_plaintext,
        })
    }

    /// Refuses a relay to which everything would go unencrypted over a network.
    pub fn check_relay(&self, url: &str) -> Result<(), plaintext::PlaintextRefused> {
        plaintext::check(url, self.allow_plaintext, "mirror.allow_plaintext = true")
    }

    /// What one relay is given.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            deadline: Duration::from_millis(self.relay_deadline_ms),
            message_bytes: self.relay_message_bytes,
        }
    }

    /// How often to try.
    pub fn patience(&self) -> Patience {
        Patience {
            attempts: self.attempts,
            first: Duration::from_millis(self.backoff_ms),
            longest: Duration::from_millis(self.longest_backoff_ms),
        }
    }

    /// See [`MirrorConfig::poll_ms`].
    pub fn poll(&self) -> Duration {
        Duration::from_millis(self.poll_ms)
    }
}

fn default_admin_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7074))
}

fn default_poll_ms() -> u64 {
    500
}

fn default_pending() -> usize {
    10_000
}

fn default_parked() -> usize {
    10_000
}

fn default_sent() -> usize {
    100_000
}

fn default_sent_seconds() -> u64 {
    86_400
}

fn default_attempts() -> u32 {
    12
}

fn default_backoff_ms() -> u64 {
    1_000
}

fn default_longest_backoff_ms() -> u64 {
    300_000
}

fn default_relay_batch() -> usize {
    64
}

fn default_relay_deadline_ms() -> u64 {
    10_000
}

fn default_refresh_seconds() -> u64 {
    60
}

fn default_relay_message_bytes() -> usize {
    262_144
}
