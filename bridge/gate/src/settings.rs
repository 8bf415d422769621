//! The section `[gate]` of the configuration.

mod defaults;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spacetime_sync_doors::asker::Proxy;
use spacetime_sync_doors::quota::Rate;
use spacetime_sync_doors::sockets;
use spacetime_sync_proto::access::check_issuer_url;
use spacetime_sync_proto::{Secret, limit};
use spacetime_sync_transport::{TlsError, TlsFiles, Transport, plaintext};

use self::defaults::*;
use crate::addresses::AddressQuotas;
use crate::backlog::Bounds;
use crate::decide::Limits;
use crate::registry::{Quotas, UNIT_BYTES};

/// `[gate]`: with it `spacetime-sync gate` runs. The gate reads no other section, and needs no key and no Postgres.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateConfig {
    /// Where clients connect.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Where health and metrics are served. For the operator alone.
    #[serde(default = "default_admin_listen")]
    pub admin_listen: SocketAddr,
    /// `http://…` of the SpacetimeDB behind the gate.
    pub spacetimedb_uri: String,
    /// Whether `http://` may lead to another machine: to SpacetimeDB, to the keys and to the bridge.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// Certificates of the only authorities that count there, in PEM.
    pub ca_file: Option<PathBuf>,
    /// The certificate that the gate shows there, in PEM.
    pub cert_file: Option<PathBuf>,
    /// Its private key.
    pub key_file: Option<PathBuf>,
    /// The one database that the gate leads to.
    pub database: String,
    /// `iss` of the tokens: the `issuer.url` of the bridge.
    pub issuer: String,
    /// `aud` of the tokens.
    #[serde(default = "default_audience")]
    pub audience: String,
    /// Url of the issuer's keys. Without it, the issuer's own `/.well-known/jwks.json`.
    pub keys_url: Option<String>,
    /// Url at which the gate reaches the bridge. Without it, the issuer's.
    pub bridge_url: Option<String>,
    /// File with the credential for the list of revoked sessions: the bridge's `http.gate_token`.
    pub bridge_token_file: Option<PathBuf>,
    /// The credential itself. The gate needs one of the two.
    pub bridge_token: Option<Secret>,
    /// Whether every request comes through the operator's proxy, and in which header it names the client. Must be said if
    /// the issuer's url is https.
    pub behind_proxy: Option<Proxy>,
    /// How often the gate asks which sessions were revoked.
    #[serde(default = "default_revocations_every_ms")]
    pub revocations_every_ms: u64,
    /// The gate opens no connection while what it knows of revocations is older.
    #[serde(default = "default_revocations_max_age_ms")]
    pub revocations_max_age_ms: u64,
    /// How long SpacetimeDB may take to answer.
    #[serde(default = "default_connect_deadline_ms")]
    pub connect_deadline_ms: u64,
    /// The most connections.
    #[serde(default = "default_connections")]
    pub connections: usize,
    /// The most connections of one address.
    #[serde(default = "default_address_connections")]
    pub address_connections: usize,
    /// The most sockets on which no connection has begun. Further ones wait to be accepted.
    #[serde(default = "default_sockets")]
    pub sockets: usize,
    /// How many of these one address may have. Further ones are closed.
    #[serde(default = "default_address_sockets")]
    pub address_sockets: usize,
    /// How many requests without a good token one address may make in a second.
    #[serde(default = "default_address_per_second")]
    pub address_per_second: u32,
    /// How many of these at once.
    #[serde(default = "default_address_burst")]
    pub address_burst: u32,
    /// How many bad tokens one address may show in a second. Tokens that were good before are heard even then.
    #[serde(default = "default_address_failures_per_second")]
    pub address_failures_per_second: u32,
    /// How many of these at once.
    #[serde(default = "default_address_failures_burst")]
    pub address_failures_burst: u32,
    /// The most connections of one session; a further one ends the oldest.
    #[serde(default = "default_session_connections")]
    pub session_connections: usize,
    /// How often one session may connect in a second.
    #[serde(default = "default_connects_per_second")]
    pub connects_per_second: u32,
    /// How many times at once.
    #[serde(default = "default_connects_burst")]
    pub connects_burst: u32,
    /// How many calls one session may make in a second. What comes faster waits.
    #[serde(default = "default_calls_per_second")]
    pub calls_per_second: u32,
    /// How many of these at once.
    #[serde(default = "default_calls_burst")]
    pub calls_burst: u32,
    /// How many pages one session may read in a second. What comes faster waits.
    #[serde(default = "default_reads_per_second")]
    pub reads_per_second: u32,
    /// How many of these at once.
    #[serde(default = "default_reads_burst")]
    pub reads_burst: u32,
    /// How many subscriptions one session may begin in a second. What comes faster waits.
    #[serde(default = "default_subscribes_per_second")]
    pub subscribes_per_second: u32,
    /// How many of these at once.
    #[serde(default = "default_subscribes_burst")]
    pub subscribes_burst: u32,
    /// The most subscriptions of one connection.
    #[serde(default = "default_subscriptions")]
    pub subscriptions: usize,
    /// How many of these may be of one stream. A client needs two.
    #[serde(default = "default_stream_subscriptions")]
    pub stream_subscriptions: usize,
    /// The most subscriptions of one session to one stream, over all its connections; a further one ends the oldest
    /// other connection that has one.
    #[serde(default = "default_session_stream_subscriptions")]
    pub session_stream_subscriptions: usize,
    /// The longest message of a client.
    #[serde(default = "default_message_bytes")]
    pub message_bytes: usize,
    /// The most that a subscription of a stream may bring at once. A client of the lane means to subscribe to a quarter of
    /// it (`Limits::subscribed_bytes`), and guesses by the last page how large events are.
    #[serde(default = "default_subscription_bytes")]
    pub subscription_bytes: usize,
    /// How much the gate holds for a client that reads slowly.
    #[serde(default = "default_buffer_bytes")]
    pub buffer_bytes: usize,
    /// How much it holds for all clients together. Above that, it takes something for a client only when the client has
    /// taken everything else.
    #[serde(default = "default_buffers_bytes")]
    pub buffers_bytes: usize,
    /// A client that reads nothing for so long is closed, and so is one for which the gate holds too much for so long.
    #[serde(default = "default_slow_after_ms")]
    pub slow_after_ms: u64,
}

/// With fewer, the sixteenth that an address may have would be none.
const SOCKETS_AT_LEAST: u64 = sockets::ADDRESSES as u64;
/// File descriptors for everything but clients: what listens, the operator's requests, the questions to the bridge.
const OTHER_DESCRIPTORS: u64 = 128;

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct BadSetting {
    /// The key.
    pub key: &'static str,
    /// What was expected and what was found.
    pub message: String,
}

impl GateConfig {
    /// Checks every value.
    pub fn check(&self) -> Result<(), BadSetting> {
        let bad = |key, message: String| Err(BadSetting { key, message });
        for (key, url) in [
            ("gate.spacetimedb_uri", Some(&self.spacetimedb_uri)),
            ("gate.issuer", Some(&self.issuer)),
            ("gate.bridge_url", self.bridge_url.as_ref()),
            ("gate.keys_url", self.keys_url.as_ref()),
        ] {
            if let Some(Err(message)) = url.map(|url| check_issuer_url(url)) {
                return bad(key, message);
            }
        }
        for (key, url) in [
            ("gate.spacetimedb_uri", self.spacetimedb_uri.as_str()),
            ("gate.bridge_url", self.bridge_url()),
            ("gate.keys_url", &self.keys_url()),
        ] {
            if let Err(refused) = plaintext::check(url, self.allow_plaintext, "gate.allow_plaintext = true") {
                return bad(key, refused.to_string());
            }
        }
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if self.database.is_empty() || !self.database.bytes().all(name) {
            let message = format!("expected the name of a database, found {:?}", self.database);
            return bad("gate.database", message);
        }
        if self.behind_proxy.is_none() && self.issuer.starts_with("https:") {
            return bad("gate.behind_proxy", Proxy::undecided("gate.behind_proxy"));
        }
        match (&self.bridge_token, &self.bridge_token_file) {
            (Some(_), None) | (None, Some(_)) => {}
            (None, None) => {
                let message = "expected this or gate.bridge_token, found neither".to_owned();
                return bad("gate.bridge_token_file", message);
            }
            (Some(_), Some(_)) => {
                let message = "expected this or gate.bridge_token_file, found both".to_owned();
                return bad("gate.bridge_token", message);
            }
        }
        for (key, found, least, most) in [
            ("gate.revocations_every_ms", self.revocations_every_ms, 10, 60_000),
            (
                "gate.revocations_max_age_ms",
                self.revocations_max_age_ms,
                1_000,
                900_000,
            ),
            ("gate.connect_deadline_ms", self.connect_deadline_ms, 100, 60_000),
            ("gate.connections", self.connections as u64, 1, 1_000_000),
            (
                "gate.address_connections",
                self.address_connections as u64,
                1,
                1_000_000,
            ),
            ("gate.sockets", self.sockets as u64, SOCKETS_AT_LEAST, 1_000_000),
            ("gate.address_sockets", self.address_sockets as u64, 1, 1_000_000),
            ("gate.address_per_second", self.address_per_second.into(), 1, 1_000_000),
            ("gate.address_burst", self.address_burst.into(), 1, 1_000_000),
            (
                "gate.address_failures_per_second",
                self.address_failures_per_second.into(),
                1,
                1_000_000,
            ),
            (
                "gate.address_failures_burst",
                self.address_failures_burst.into(),
                1,
                1_000_000,
            ),
            ("gate.session_connections", self.session_connections as u64, 2, 1_000),
            ("gate.connects_per_second", self.connects_per_second.into(), 1, 1_000),
            ("gate.connects_burst", self.connects_burst.into(), 1, 1_000),
            ("gate.calls_per_second", self.calls_per_second.into(), 1, 1_000_000),
            ("gate.calls_burst", self.calls_burst.into(), 1, 1_000_000),
            ("gate.reads_per_second", self.reads_per_second.into(), 1, 1_000_000),
            ("gate.reads_burst", self.reads_burst.into(), 1, 1_000_000),
            (
                "gate.subscribes_per_second",
                self.subscribes_per_second.into(),
                1,
                1_000_000,
            ),
            ("gate.subscribes_burst", self.subscribes_burst.into(), 1, 1_000_000),
            ("gate.subscriptions", self.subscriptions as u64, 4, 100_000),
            ("gate.stream_subscriptions", self.stream_subscriptions as u64, 2, 1_000),
            (
                "gate.session_stream_subscriptions",
                self.session_stream_subscriptions as u64,
                2,
                1_000,
            ),
            (
                "gate.message_bytes",
                self.message_bytes as u64,
                16 * 1024,
                16 * 1024 * 1024,
            ),
            (
                "gate.subscription_bytes",
                self.subscription_bytes as u64,
                2 * limit::FRAME_BYTES as u64,
                1 << 30,
            ),
            (
                "gate.buffer_bytes",
                self.buffer_bytes as u64,
                64 * 1024,
                1024 * 1024 * 1024,
            ),
            ("gate.buffers_bytes", self.buffers_bytes as u64, 1024 * 1024, 1 << 40),
            ("gate.slow_after_ms", self.slow_after_ms, 100, 600_000),
        ] {
            if found < least || found > most {
                return bad(key, format!("expected {least} to {most}, found {found}"));
            }
        }
        let least = 2 * self.revocations_every_ms + 1_000;
        let found = self.revocations_max_age_ms;
        if found < least {
            // Otherwise one answer that comes late closes the gate.
            let message = format!("expected {least} or more, as gate.revocations_every_ms is set, found {found}");
            return bad("gate.revocations_max_age_ms", message);
        }
        if let Err(message) = sockets::check_share(self.address_sockets, self.sockets, "gate.sockets") {
            return bad("gate.address_sockets", message);
        }
        let (least, found) = (self.stream_subscriptions, self.session_stream_subscriptions);
        if found < least {
            let message = format!("expected {least} or more, which one connection may have, found {found}");
            return bad("gate.session_stream_subscriptions", message);
        }
        Ok(())
    }

    /// How many file descriptors the gate may need.
    pub fn descriptors(&self) -> u64 {
        2 * self.connections as u64 + self.sockets as u64 + OTHER_DESCRIPTORS
    }

    /// Takes no more connections than so many file descriptors are enough for. Returns whether that changes anything.
    pub fn fit(&mut self, descriptors: u64) -> Result<bool, BadSetting> {
        if self.descriptors() <= descriptors {
            return Ok(false);
        }
        let left = descriptors.saturating_sub(OTHER_DESCRIPTORS);
        let sockets = (self.sockets as u64).min(left / 4);
        let connections = (self.connections as u64).min((left - sockets) / 2);
        if sockets < SOCKETS_AT_LEAST || connections == 0 {
            let message = format!(
                "expected at least {} file descriptors, found {descriptors}: raise the hard limit (ulimit -Hn)",
                OTHER_DESCRIPTORS + 4 * SOCKETS_AT_LEAST
            );
            return Err(BadSetting {
                key: "gate.connections",
                message,
            });
        }
        // They are no larger than what was there before.
        self.sockets = usize::try_from(sockets).unwrap_or(self.sockets);
        self.connections = usize::try_from(connections).unwrap_or(self.connections);
        self.address_sockets = self.address_sockets.min(self.sockets / sockets::ADDRESSES);
        Ok(true)
    }

    /// How the gate reaches SpacetimeDB, the keys and the bridge.
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

    /// See [`GateConfig::behind_proxy`].
    pub fn proxy(&self) -> Proxy {
        self.behind_proxy.unwrap_or_default()
    }

    /// The url of the issuer's keys.
    pub fn keys_url(&self) -> String {
        let own = || format!("{}/.well-known/jwks.json", self.issuer);
        self.keys_url.clone().unwrap_or_else(own)
    }

    /// The url of the bridge.
    pub fn bridge_url(&self) -> &str {
        self.bridge_url.as_deref().unwrap_or(&self.issuer)
    }

    /// See [`GateConfig::connect_deadline_ms`].
    pub fn connect_deadline(&self) -> Duration {
        Duration::from_millis(self.connect_deadline_ms)
    }

    /// See [`GateConfig::revocations_every_ms`].
    pub fn revocations_every(&self) -> Duration {
        Duration::from_millis(self.revocations_every_ms)
    }

    /// What everybody may do at the most.
    pub fn quotas(&self) -> Quotas {
        let rate = Rate::per_second;
        Quotas {
            connections: self.connections,
            address: AddressQuotas {
                sockets: self.address_sockets,
                connections: self.address_connections,
                requests: rate(self.address_per_second, self.address_burst),
                failures: rate(self.address_failures_per_second, self.address_failures_burst),
            },
            session_connections: self.session_connections,
            session_stream_subscriptions: self.session_stream_subscriptions,
            connects: rate(self.connects_per_second, self.connects_burst),
            calls: rate(self.calls_per_second, self.calls_burst),
            reads: rate(self.reads_per_second, self.reads_burst),
            subscribes: rate(self.subscribes_per_second, self.subscribes_burst),
            subscribes_apart: rate(self.subscribes_per_second.saturating_mul(4), 4),
            subscribed: rate(self.units_of_a_subscription(), self.units_of_a_subscription()),
            revocations_max_age: Duration::from_millis(self.revocations_max_age_ms),
        }
    }

    fn units_of_a_subscription(&self) -> u32 {
        u32::try_from(self.subscription_bytes as u64 / UNIT_BYTES).unwrap_or(u32::MAX / 2)
    }

    /// How much one connection may hold.
    pub fn limits(&self) -> Limits {
        Limits {
            subscriptions: self.subscriptions,
            stream_subscriptions: self.stream_subscriptions,
        }
    }

    /// How slow a client may be.
    pub fn backlog(&self) -> Bounds {
        Bounds {
            bytes: self.buffer_bytes,
            slow_after: Duration::from_millis(self.slow_after_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config(changes: &[(&str, Value)]) -> GateConfig {
        let mut section = json!({
            "spacetimedb_uri": "http://127.0.0.1:3000", "database": "lane", "issuer": "https://lane.example",
            "bridge_token": "a-credential-of-the-gate", "behind_proxy": false,
        });
        for (key, value) in changes {
            section[*key] = value.clone();
        }
        serde_json::from_value(section).unwrap()
    }

    fn refused(changes: &[(&str, Value)]) -> Option<&'static str> {
        config(changes).check().err().map(|bad| bad.key)
    }

    #[test]
    fn two_answers_of_the_bridge_may_fail_before_the_gate_is_blind() {
        assert_eq!(refused(&[]), None);
        let every = |every: u64, age: u64| {
            refused(&[
                ("revocations_every_ms", json!(every)),
                ("revocations_max_age_ms", json!(age)),
            ])
        };
        assert_eq!(every(250, 1_500), None);
        assert_eq!(every(251, 1_500), Some("gate.revocations_max_age_ms"));
    }

    #[test]
    fn nothing_goes_to_another_machine_in_plaintext_unless_that_is_allowed() {
        for key in ["spacetimedb_uri", "bridge_url", "keys_url"] {
            let elsewhere = (key, json!("http://10.0.0.1:3000"));
            assert_eq!(refused(std::slice::from_ref(&elsewhere)), Some(&*format!("gate.{key}")));
            assert_eq!(refused(&[elsewhere, ("allow_plaintext", json!(true))]), None);
            assert_eq!(refused(&[(key, json!("https://10.0.0.1:3000"))]), None);
        }
        // Without urls of their own, bridge and keys are at the issuer's.
        assert_eq!(
            refused(&[("issuer", json!("http://lane.example"))]),
            Some("gate.bridge_url")
        );
    }

    #[test]
    fn with_an_issuer_behind_tls_the_proxy_is_a_choice_that_must_be_made() {
        let said = |issuer: &str, said: Value| refused(&[("issuer", json!(issuer)), ("behind_proxy", said)]);
        assert_eq!(said("https://lane.example", json!(null)), Some("gate.behind_proxy"));
        assert_eq!(said("http://127.0.0.1:7070", json!(null)), None);
        for choice in [json!(false), json!(true), json!("x-forwarded-for"), json!("forwarded")] {
            assert_eq!(said("https://lane.example", choice), None);
        }
    }

    #[test]
    fn one_address_has_few_of_the_sockets_and_one_connection_few_of_a_sessions_copies() {
        assert_eq!(refused(&[("sockets", json!(1_024))]), None);
        assert_eq!(refused(&[("sockets", json!(1_023))]), Some("gate.address_sockets"));
        let key = Some("gate.session_stream_subscriptions");
        assert_eq!(refused(&[("stream_subscriptions", json!(9))]), key);
    }

    #[test]
    fn the_gate_takes_no_more_than_it_has_descriptors_for() {
        let enough = config(&[]).descriptors();
        assert_eq!(enough, 2 * 10_000 + 8_192 + OTHER_DESCRIPTORS);
        let mut gate = config(&[]);
        assert_eq!((gate.fit(enough), gate.connections), (Ok(false), 10_000));
        for descriptors in [200, 1_024, 4_096, enough - 1] {
            let mut gate = config(&[]);
            assert_eq!(gate.fit(descriptors), Ok(true));
            assert!(gate.descriptors() <= descriptors && gate.check().is_ok(), "{gate:?}");
        }
        assert_eq!(config(&[]).fit(191).unwrap_err().key, "gate.connections");
    }
}
