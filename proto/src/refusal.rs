//! Refusals: the closed set of reasons for which a party of the lane says no, and their form on the wire.
//!
//! A reducer's error is one text. Ours is always the JSON of a [`Refusal`], so nobody ever matches prose.

use serde::{Deserialize, Serialize};

/// Why something was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The caller is not who may do this.
    Unauthorized,
    /// The caller holds no grant for the stream, which may or may not exist.
    ForbiddenStream,
    /// The owner has not yet said which identity the bridge has.
    NotConfigured,
    /// An argument is not what the contract allows.
    InvalidArgument,
    /// A frame is malformed, too large, empty, or holds something that is not allowed in it.
    InvalidFrame,
    /// The frame begins past the head: something before it is missing.
    SeqGap,
    /// The frame does not follow the log that is held.
    ChainMismatch,
    /// Another event is held at the same position.
    EventConflict,
    /// The position is older than what is held.
    BelowWindow,
    /// The checkpoint is older than the one acknowledged before.
    CheckpointBehind,
    /// The checkpoint is past the stream's head.
    CheckpointAhead,
    /// The authority is behind the history that was carried before: it was restored.
    EpochBehind,
    /// The secret that stream keys are derived with is set already, to another value.
    KeySecretFixed,
    /// No bearer credential.
    MissingAuthorization,
    /// A credential that is no bearer's.
    InvalidAuthorizationScheme,
    /// A credential that is none: not signed by who is trusted, or not of the form that is expected here.
    InvalidToken,
    /// It has ended.
    TokenExpired,
    /// It is not good yet.
    TokenNotYetValid,
    /// It has no id.
    MissingJti,
    /// It does not say when it was signed.
    MissingIat,
    /// It was signed too long ago, or for too long.
    TokenTooOld,
    /// Its session was revoked.
    TokenRevoked,
    /// The session is bound to another device.
    SessionBound,
    /// The session lacks a scope that this asks for.
    MissingScope,
    /// A scope that does not exist, or that nobody is given here.
    InvalidScope,
    /// The subject may see none of what it asked for.
    Forbidden,
    /// The kind of client may not do this.
    SurfacePolicyDenied,
    /// A request that is none.
    InvalidRequest,
    /// More streams than one token may name, or one session may see.
    TooManyGrants,
    /// Asked too often.
    RateLimited,
    /// The issuer cannot answer at the moment.
    SyncTokenUnavailable,
    /// There is nothing here, and will not be.
    NotFound,
    /// The client's build id is none.
    InvalidClientBuild,
    /// The client speaks another protocol.
    UnsupportedProtocolVersion,
    /// The client was built with a schema that is not served.
    UnsupportedSchemaVersion,
    /// The client is too old.
    UpgradeRequired,
    /// The client is too new.
    UnsupportedClientBuild,
}

/// What to do about a refusal: everything that retries asks this and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalClass {
    /// The same may succeed later or after learning the heads anew.
    Retry,
    /// The same will be refused again; other work goes on.
    Reject,
    /// Nothing will succeed until a person changes something.
    Fatal,
}

impl RefusalCode {
    /// What to do about it.
    pub fn class(self) -> RefusalClass {
        match self {
            Self::SeqGap
            | Self::BelowWindow
            // Another token may do.
            | Self::TokenExpired
            | Self::TokenNotYetValid
            | Self::TokenTooOld
            | Self::RateLimited
            | Self::SyncTokenUnavailable => RefusalClass::Retry,
            Self::ForbiddenStream
            | Self::InvalidArgument
            | Self::InvalidFrame
            | Self::ChainMismatch
            | Self::EventConflict
            | Self::CheckpointBehind
            | Self::CheckpointAhead
            | Self::MissingScope => RefusalClass::Reject,
            Self::Unauthorized
            | Self::NotConfigured
            | Self::KeySecretFixed
            | Self::EpochBehind
            | Self::MissingAuthorization
            | Self::InvalidAuthorizationScheme
            | Self::InvalidToken
            | Self::MissingJti
            | Self::MissingIat
            | Self::TokenRevoked
            | Self::SessionBound
            | Self::InvalidScope
            | Self::Forbidden
            | Self::SurfacePolicyDenied
            | Self::InvalidRequest
            | Self::TooManyGrants
            | Self::NotFound
            | Self::InvalidClientBuild
            | Self::UnsupportedProtocolVersion
            | Self::UnsupportedSchemaVersion
            | Self::UpgradeRequired
            | Self::UnsupportedClientBuild => RefusalClass::Fatal,
        }
    }
}

/// A refusal with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The machine's part.
    pub code: RefusalCode,
    /// The person's part: what was expected, what was found, what to do.
    pub message: String,
    /// The stream's head, where that helps the caller to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_seq: Option<u64>,
}

impl Refusal {
    /// A refusal without a head.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            head_seq: None,
        }
    }

    /// The same with the stream's head.
    #[must_use]
    pub fn at_head(mut self, head_seq: u64) -> Self {
        self.head_seq = Some(head_seq);
        self
    }

    /// The text that crosses the wire.
    pub fn to_wire(&self) -> String {
        // Infallible: a map of a string, an enum name and a number.
        serde_json::to_string(self).expect("a refusal is always JSON")
    }

    /// Reads a text that crossed the wire; none if it is not a refusal of ours.
    pub fn from_wire(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_crosses_the_wire_as_json() {
        let refusal = Refusal::new(RefusalCode::SeqGap, "expected 5, found 9").at_head(4);
        let text = r#"{"code":"seq_gap","message":"expected 5, found 9","head_seq":4}"#;
        assert_eq!(refusal.to_wire(), text);
        assert_eq!(Refusal::from_wire(text), Some(refusal));
        assert_eq!(Refusal::from_wire("panicked at ..."), None);
        assert_eq!(Refusal::from_wire(r#"{"code":"made_up","message":""}"#), None);
    }
}
