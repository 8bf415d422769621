//! Asking for a token.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::{Scope, StreamPattern};
use crate::id::Label;
use crate::refusal::RefusalCode;

/// Where tokens are asked for.
pub const TOKEN_PATH: &str = "/api/sync/token";
/// Where sessions are revoked.
pub const REVOKE_PATH: &str = "/internal/v1/sync/sessions/revoke";
/// Routes of earlier lanes: they answer 404, always with the same body.
pub const RETIRED_ROUTES: &[&str] = &["/api/spacetime/token", "/api/khala/token"];
/// For how long a token may be good.
pub const TTL_SECONDS: RangeInclusive<u64> = 60..=900;

/// The body of a request for a token. Which session asks is said by its bearer credential, and what the client is by
/// its headers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenRequest {
    /// What it wants to do.
    pub scopes: Vec<String>,
    /// The streams, or patterns of streams, that it wants to see.
    pub streams: Vec<String>,
    /// The same, as topics.
    pub topics: Vec<String>,
    /// For how long; 300 s if it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// The device, if the session credential does not name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
}

/// A token, and what it says. What was asked for and is not here is not granted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenResponse {
    /// The token: never shown.
    pub token: String,
    /// `Bearer`
    pub token_type: String,
    /// `spacetime_ws`
    pub transport: String,
    /// See [`PROTOCOL`](crate::contract::PROTOCOL).
    pub protocol_version: String,
    /// Seconds until it ends.
    pub expires_in: u64,
    /// Seconds until a new one should be asked for.
    pub refresh_after_in: u64,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds.
    pub refresh_after: u64,
    /// Unix seconds.
    pub expires_at: u64,
    /// `iss`
    pub issuer: String,
    /// `aud`
    pub audience: String,
    /// `sub`
    pub subject: String,
    /// The organisation.
    pub org_id: Option<Label>,
    /// See [`CLAIMS_VERSION`](super::CLAIMS_VERSION).
    pub claims_version: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Of the topics asked for.
    pub granted_topics: Vec<String>,
    /// Of the streams asked for, those of the topics included.
    pub granted_streams: Vec<StreamPattern>,
    /// The key that signed it.
    pub kid: String,
    /// `jti`
    pub token_id: String,
    /// The session.
    pub session_id: Label,
    /// The device.
    pub device_id: Label,
}

impl std::fmt::Debug for TokenResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenResponse")
            .field("token", &"(redacted)")
            .field("token_id", &self.token_id)
            .field("subject", &self.subject)
            .field("scopes", &self.scopes)
            .field("granted_streams", &self.granted_streams)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// The body of every refusal of the bridge's HTTP side but a 426, which is an
/// [`Incompatible`](super::Incompatible).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct TokenRefusal {
    /// Why.
    pub code: RefusalCode,
    /// For people.
    pub message: String,
    /// Whether the same may be answered otherwise later.
    pub retryable: bool,
    /// When to ask again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}
