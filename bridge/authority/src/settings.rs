//! The section `[authority]` of the bridge's configuration.

use serde::{Deserialize, Serialize};
use spacetime_sync_proto::Secret;

use super::{AuthorityError, parse};

/// `[authority]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorityConfig {
    /// `postgres://user:password@host:port/database`
    pub url: Secret,
    /// Whether the connection to another machine may do without `sslmode=verify-full`.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// Connections that calls share; the lead and the wake-up take one more each.
    #[serde(default = "default_pool_size")]
    pub pool_size: usize,
}

impl AuthorityConfig {
    /// Refuses a url whose connections nothing would protect. A url that is malformed is refused when it is used.
    pub fn check_transport(&self) -> Result<(), String> {
        match parse(self.into()) {
            Err(unprotected @ AuthorityError::Unprotected { .. }) => Err(unprotected.to_string()),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Which Postgres, and how.
#[derive(Debug, Clone)]
pub struct Server {
    pub(crate) url: Secret,
    pub(crate) allow_plaintext: bool,
}

impl Server {
    /// The server of a url, to which nothing may go unprotected over a network.
    pub fn at(url: &str) -> Self {
        Self {
            url: Secret::from(url.to_owned()),
            allow_plaintext: false,
        }
    }

    /// Whether the connection to another machine may do without `sslmode=verify-full`.
    #[must_use]
    pub fn allow_plaintext(mut self, allow: bool) -> Self {
        self.allow_plaintext = allow;
        self
    }
}

impl From<&str> for Server {
    fn from(url: &str) -> Self {
        Self::at(url)
    }
}

impl From<&String> for Server {
    fn from(url: &String) -> Self {
        Self::at(url)
    }
}

impl From<&AuthorityConfig> for Server {
    fn from(config: &AuthorityConfig) -> Self {
        Self {
            url: config.url.clone(),
            allow_plaintext: config.allow_plaintext,
        }
    }
}

fn default_pool_size() -> usize {
    6
}
