//! The section `[authority]` of the bridge's configuration.

use serde::{Deserialize, Serialize};
use spacetime_sync_proto::Secret;

/// `[authority]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorityConfig {
    /// `postgres://user:password@host:port/database`
    pub url: Secret,
    /// Connections that calls share; the lead and the wake-up take one more each.
    #[serde(default = "default_pool_size")]
    pub pool_size: usize,
}

fn default_pool_size() -> usize {
    6
}
