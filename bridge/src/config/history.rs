//! `[history]`: what clients read of the authority's log by themselves. Nobody does without an `[issuer]`.

use serde::Deserialize;

use super::ConfigError;

/// See the module.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryConfig {
    /// Connections to the authority for it.
    pub pool_size: usize,
    /// Requests that are being answered at once; those beyond wait for a moment.
    pub requests: usize,
    /// Requests of one session, per minute.
    pub session_per_minute: u32,
    /// The same at once.
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
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (key, found, most) in [
            ("history.pool_size", self.pool_size as u64, 1_000),
            ("history.requests", self.requests as u64, 10_000),
            ("history.session_per_minute", self.session_per_minute.into(), 1_000_000),
            ("history.session_burst", self.session_burst.into(), 1_000_000),
        ] {
            if found < 1 || found > most {
                let message = format!("expected 1 to {most}, found {found}");
                return Err(ConfigError::Value { key, message });
            }
        }
        Ok(())
    }
}
