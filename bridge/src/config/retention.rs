//! `[retention]`: how long events are kept is the authority's policy; here is whether and how often it is carried out.

use serde::{Deserialize, Serialize};

use super::Config;

/// `[retention]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Whether SpacetimeDB holds no more of a stream than its class says.
    pub windows: Windows,
    /// Whether the authority's own log is purged, where its class does not keep all.
    pub purge: bool,
    /// How often the policy is read and the log is purged.
    pub every_ms: u64,
    /// How often the authority's progress is written down, in the authority and in SpacetimeDB. A restore to a time that is
    /// further back is found out even where no stream gives it away.
    pub beat_ms: u64,
}

/// Whether windows are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Windows {
    /// Where there is an `[issuer]`: clients can be sent to this bridge for what SpacetimeDB does not hold.
    Auto,
    /// In any case.
    On,
    /// SpacetimeDB holds everything.
    Off,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            windows: Windows::Auto,
            purge: true,
            every_ms: 60_000,
            beat_ms: 10_000,
        }
    }
}

impl Config {
    /// Whether SpacetimeDB holds no more of a stream than its class says.
    pub fn applies_windows(&self) -> bool {
        match self.retention.windows {
            Windows::Auto => self.issuer.is_some(),
            Windows::On => true,
            Windows::Off => false,
        }
    }
}
