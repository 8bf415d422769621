//! The request for a token, and its answer.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::{Scope, StreamPattern};
use crate::id::Label;
use crate::identity::DatabasePin;
use crate::refusal::RefusalCode;
use crate::seal::SealKey;

/// Where a client asks for a token.
pub const TOKEN_PATH: &str = "/api/sync/token";
/// Where an operator revokes a session.
pub const REVOKE_PATH: &str = "/internal/v1/sync/sessions/revoke";
/// Where a gate asks which sessions were revoked.
pub const REVOKED_PATH: &str = "/internal/v1/sync/sessions/revoked";
/// Routes of earlier versions. They answer 404, always with the same body.
pub const RETIRED_ROUTES: &[&str] = &["/api/spacetime/token", "/api/khala/token"];
/// How long a token may be valid.
pub const TTL_SECONDS: RangeInclusive<u64> = 60..=900;

/// The body of a token request. The bearer credential says which session asks, the headers say what the client is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenRequest {
    /// The scopes that the client wants.
    pub scopes: Vec<String>,
    /// The streams, or patterns of streams, that the client wants to see.
    pub streams: Vec<String>,
    /// The same, as topics.
    pub topics: Vec<String>,
    /// How long the token shall be valid; 300 s if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// The device, if the session credential does not name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
}

/// A token and what it grants. What the client asked for and does not find here was not granted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenResponse {
    /// The token itself. `Debug` never shows it.
    pub token: String,
    /// `Bearer`
    pub token_type: String,
    /// `spacetime_ws`
    pub transport: String,
    /// See [`PROTOCOL`](crate::contract::PROTOCOL).
    pub protocol_version: String,
    /// Seconds until the token expires.
    pub expires_in: u64,
    /// Seconds until the client should ask for a new one.
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
    /// What the session may do, as far as this release knows it.
    #[serde(deserialize_with = "crate::known::known")]
    pub scopes: Vec<Scope>,
    /// The granted part of the topics asked for.
    pub granted_topics: Vec<String>,
    /// The granted part of the streams asked for, including those of the topics.
    pub granted_streams: Vec<StreamPattern>,
    /// The id of the key that signed the token.
    pub kid: String,
    /// `jti`
    pub token_id: String,
    /// The session.
    pub session_id: Label,
    /// The device.
    pub device_id: Label,
    /// The keys whose seals the client accepts from now on, and no others.
    pub seal_keys: Vec<SealKey>,
    /// The one database to connect to with this token, whatever its name leads to. `None` if the bridge has no pin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<DatabasePin>,
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

/// The body of every refusal over HTTP except a 426, whose body is an [`Incompatible`](super::Incompatible).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct TokenRefusal {
    /// The reason.
    pub code: RefusalCode,
    /// The explanation for people.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// How long to wait before asking again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}
