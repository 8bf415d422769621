//! `[http]`: the bridge's own doors.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spacetime_sync_doors::asker::Proxy;
use spacetime_sync_doors::sockets;
use spacetime_sync_issuer::settings::IssuerConfig;
use spacetime_sync_proto::Secret;
use spacetime_sync_transport::KEEP_IDLE;

use super::ConfigError;
use crate::http::Listener;
use crate::http::server::Bounds;

/// How long a client's connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
const _: () = assert!(
    KEEP_IDLE.as_secs() < IDLE.as_secs(),
    "our own clients give a connection up first"
);
/// How long a proxy's may. A proxy keeps connections, commonly for a minute, and a request on one that ends at that moment
/// is lost.
const PROXY_IDLE: Duration = Duration::from_secs(75);

/// `[http]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Where health, metrics and tokens are served.
    pub listen: SocketAddr,
    /// Whether every request comes through the operator's proxy, and in which header it names the client. Must be said if
    /// the issuer's url is https.
    pub behind_proxy: Option<Proxy>,
    /// Where the operator's routes are served: metrics, the reasons of health, and `/internal/…`. With it they are served
    /// nowhere else.
    pub admin_listen: Option<SocketAddr>,
    /// How many wrong credentials of admins one address may show in a minute.
    pub failures_per_minute: u32,
    /// How many of these at once.
    pub failures_burst: u32,
    /// The most connections. Further ones wait to be accepted.
    pub connections: usize,
    /// How many of these one address may have, unless they come through a proxy: a sixteenth at the most. Further ones are
    /// closed.
    pub address_connections: usize,
    /// The credential for `/internal/…`, and without `admin_listen` also for metrics and the reasons of health. Without one
    /// nobody may use `/internal/…`, and the rest is shown to this machine at most.
    pub admin_token: Option<Secret>,
    /// File that holds this credential.
    pub admin_token_file: Option<PathBuf>,
    /// The credential with which a gate may ask which sessions were revoked, and nothing else.
    pub gate_token: Option<Secret>,
    /// File that holds this credential.
    pub gate_token_file: Option<PathBuf>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            behind_proxy: None,
            admin_listen: None,
            failures_per_minute: 30,
            failures_burst: 30,
            connections: 4_096,
            address_connections: 256,
            admin_token: None,
            admin_token_file: None,
            gate_token: None,
            gate_token_file: None,
        }
    }
}

impl HttpConfig {
    /// Checks every value.
    pub(super) fn check(&self, issuer: Option<&IssuerConfig>) -> Result<(), ConfigError> {
        let value = |key, message| Err(ConfigError::Value { key, message });
        if self.admin_token.is_some() && self.admin_token_file.is_some() {
            let message = "expected this or http.admin_token_file, found both";
            return value("http.admin_token", message.to_owned());
        }
        if self.gate_token.is_some() && self.gate_token_file.is_some() {
            let message = "expected this or http.gate_token_file, found both";
            return value("http.gate_token", message.to_owned());
        }
        if self.behind_proxy.is_none() && issuer.is_some_and(|issuer| issuer.url.starts_with("https:")) {
            return value("http.behind_proxy", Proxy::undecided("http.behind_proxy"));
        }
        for (key, found, least) in [
            ("http.connections", self.connections as u64, sockets::ADDRESSES as u64),
            ("http.address_connections", self.address_connections as u64, 1),
            ("http.failures_per_minute", self.failures_per_minute.into(), 1),
            ("http.failures_burst", self.failures_burst.into(), 1),
        ] {
            if !(least..=1_000_000).contains(&found) {
                return value(key, format!("expected {least} to 1000000, found {found}"));
            }
        }
        sockets::check_share(self.address_connections, self.connections, "http.connections")
            .or_else(|message| value("http.address_connections", message))
    }

    /// See [`HttpConfig::behind_proxy`].
    pub fn proxy(&self) -> Proxy {
        self.behind_proxy.unwrap_or_default()
    }

    /// How much a listener bears.
    pub fn bounds(&self, listener: Listener) -> Bounds {
        let proxied = self.proxy() != Proxy::None && listener != Listener::Operator;
        Bounds {
            connections: self.connections,
            address_connections: (!proxied).then_some(self.address_connections),
            idle: if proxied { PROXY_IDLE } else { IDLE },
        }
    }

    /// What listens where.
    pub fn listeners(&self) -> Vec<(SocketAddr, Listener)> {
        match self.admin_listen {
            Some(admin) => vec![(self.listen, Listener::Clients), (admin, Listener::Operator)],
            // Without a credential there is no way to tell the operator from others but that they are on this machine. A
            // proxy on it speaks for others. The guard looks for one of which the configuration says nothing.
            None => {
                let none = self.admin_token.is_none() && self.admin_token_file.is_none();
                let open = none && self.listen.ip().is_loopback() && self.proxy() == Proxy::None;
                vec![(self.listen, Listener::Only { open })]
            }
        }
    }
}
