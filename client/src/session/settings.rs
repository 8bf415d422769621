//! The settings of a session.

use std::fmt;

use spacetime_sync_proto::limit;

use crate::config::{Backoff, ClientConfig, Limits};
use crate::credential::Credential;

/// The part of a [`ClientConfig`] that a session needs.
#[derive(Clone)]
pub struct Settings {
    /// Every bound in time and memory.
    pub limits: Limits,
    /// How long to wait between attempts to connect.
    pub backoff: Backoff,
    /// Whether a provider can issue another token when one is not accepted.
    pub renewable: bool,
    /// The token of a client that has a fixed one. Never shown.
    pub fixed_token: Option<String>,
    /// The most bytes of frames in one page. A page may always hold one frame, however large.
    pub page_bytes: usize,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("limits", &self.limits)
            .field("backoff", &self.backoff)
            .field("renewable", &self.renewable)
            .field("page_bytes", &self.page_bytes)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Takes the settings from the configuration.
    pub fn of(config: &ClientConfig) -> Self {
        Self {
            limits: config.limits.clone(),
            backoff: config.backoff.clone(),
            renewable: config.credential.is_renewable(),
            fixed_token: match &config.credential {
                Credential::Fixed(token) => Some(token.clone()),
                Credential::Anonymous | Credential::Provider(_) => None,
            },
            page_bytes: limit::PAGE_BYTES,
        }
    }
}
