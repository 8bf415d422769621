//! `[retention]`: the authority's policy says how long to keep events, and this section says whether and how often the bridge
//! applies that policy.

use serde::{Deserialize, Serialize};

use super::Config;

/// `[retention]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Whether SpacetimeDB keeps only the window that a stream's class allows.
    pub windows: Windows,
    /// Whether the bridge purges the authority's log where a class does not keep all events.
    pub purge: bool,
    /// How often the bridge reads the policy and purges the log.
    pub every_ms: u64,
    /// How often the bridge counts the beat up, in the authority and in SpacetimeDB. By the beat it notices a restore of the
    /// authority even if no stream shows it.
    pub beat_ms: u64,
}

/// Whether the bridge applies windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Windows {
    /// If there is an `[issuer]`, because then clients can read older events from this bridge.
    Auto,
    /// Always.
    On,
    /// Never: SpacetimeDB keeps everything.
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
    /// Whether SpacetimeDB keeps only the window that a stream's class allows.
    pub fn applies_windows(&self) -> bool {
        match self.retention.windows {
            Windows::Auto => self.issuer.is_some(),
            Windows::On => true,
            Windows::Off => false,
        }
    }
}
