//! Refusals: the closed set of reasons why a party of the lane says no, and their form on the wire.
//!
//! A reducer's error is one text. Ours is always the JSON of a [`Refusal`], so callers match codes and never prose.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident,)*) => {
        /// Why something was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum RefusalCode {
            $($(#[$doc])* $code,)*
        }

        impl RefusalCode {
            /// All of them. `proto/refusals.proto` and the vectors have the same list.
            pub const ALL: &[Self] = &[$(Self::$code),*];
        }
    };
}

codes! {
    /// The caller's identity may not do this.
    Unauthorized,
    /// The caller holds no grant for the stream, which may or may not exist.
    ForbiddenStream,
    /// The owner has not yet said which identity the bridge has.
    NotConfigured,
    /// SpacetimeDB leads to another database than the one that the bridge's configuration names.
    WrongDatabase,
    /// An argument is not what the contract allows.
    InvalidArgument,
    /// A frame is malformed, too large or empty, or it holds something that is not allowed.
    InvalidFrame,
    /// The frame begins past the head: something before it is missing.
    SeqGap,
    /// The frame does not follow the log that SpacetimeDB holds.
    ChainMismatch,
    /// The log holds another event at the same seq.
    EventConflict,
    /// The seq is older than the window.
    BelowWindow,
    /// The checkpoint is older than the one acknowledged before.
    CheckpointBehind,
    /// The checkpoint is past the stream's head.
    CheckpointAhead,
    /// The capability stands under another version or with other content, or its provider's name is another user's.
    CapabilityConflict,
    /// The assignment is in another state, or at another version, than the change expects; or its name is taken.
    AssignmentConflict,
    /// The caller takes no part in the assignment, which may or may not exist.
    ForbiddenAssignment,
    /// The outbox holds another event under the same name, or it was sent as another one, or there is none.
    OutboxConflict,
    /// The outbox has no room for another event until some were sent.
    OutboxFull,
    /// SpacetimeDB has lost what this call is about, or is new, and the bridge has not brought it back yet.
    BeingBroughtBack,
    /// SpacetimeDB has lost some of what the bridge gives it, and takes changes all the same.
    Lacking,
    /// The challenge is not the newest one of the session and the node, was used before, or has expired.
    ChallengeRefused,
    /// The signature is not the key's, or is over something else.
    SignatureRefused,
    /// The authority is behind the history that the bridge carried before: it was restored.
    EpochBehind,
    /// The secret that stream keys are derived from is already set, to another value.
    KeySecretFixed,
    /// The request has no bearer credential.
    MissingAuthorization,
    /// The `Authorization` header is not a bearer credential.
    InvalidAuthorizationScheme,
    /// The credential is malformed, or nobody trusted has signed it.
    InvalidToken,
    /// The token has expired.
    TokenExpired,
    /// The token is not valid yet.
    TokenNotYetValid,
    /// The token has no id (`jti`).
    MissingJti,
    /// The token does not say when it was signed (`iat`).
    MissingIat,
    /// The token was signed too long ago, or its lifetime is too long.
    TokenTooOld,
    /// The token's session was revoked.
    TokenRevoked,
    /// The session is bound to another device.
    SessionBound,
    /// The session lacks a scope that this needs.
    MissingScope,
    /// The scope does not exist, or nobody gets it here.
    InvalidScope,
    /// The subject may see nothing of what it asked for.
    Forbidden,
    /// This kind of client may not do this.
    SurfacePolicyDenied,
    /// The request is malformed.
    InvalidRequest,
    /// More streams than one token may name, or one session may see.
    TooManyGrants,
    /// The caller asks too often.
    RateLimited,
    /// The issuer cannot answer at the moment.
    SyncTokenUnavailable,
    /// Nothing exists here, and nothing ever will.
    NotFound,
    /// The client's build id is malformed.
    InvalidClientBuild,
    /// The client speaks another protocol.
    UnsupportedProtocolVersion,
    /// The client was built with a schema version that is not served.
    UnsupportedSchemaVersion,
    /// The client is too old.
    UpgradeRequired,
    /// The client is too new.
    UnsupportedClientBuild,
}

/// Its name on the wire.
impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What to do about a refusal. All retries follow from this class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalClass {
    /// The same call may succeed later, or once the caller has read the heads again.
    Retry,
    /// The same call will be refused again. Other work goes on.
    Reject,
    /// Nothing will succeed until a person changes something.
    Fatal,
}

impl RefusalCode {
    /// What to do about this refusal.
    pub fn class(self) -> RefusalClass {
        match self {
            Self::SeqGap
            | Self::BelowWindow
            // Another token may succeed.
            | Self::TokenExpired
            | Self::TokenNotYetValid
            | Self::TokenTooOld
            | Self::RateLimited
            | Self::OutboxFull
            | Self::BeingBroughtBack
            | Self::SyncTokenUnavailable
            | Self::WrongDatabase => RefusalClass::Retry,
            Self::ForbiddenStream
            | Self::InvalidArgument
            | Self::InvalidFrame
            | Self::ChainMismatch
            | Self::EventConflict
            | Self::CheckpointBehind
            | Self::CheckpointAhead
            | Self::CapabilityConflict
            | Self::AssignmentConflict
            | Self::ForbiddenAssignment
            | Self::OutboxConflict
            | Self::Lacking
            | Self::ChallengeRefused
            | Self::SignatureRefused
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
    /// The part for machines.
    pub code: RefusalCode,
    /// The part for people: what was expected, what was found, what to do.
    pub message: String,
    /// Seq of the stream's head, where it helps the caller to continue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_seq: Option<u64>,
}

impl Refusal {
    /// A refusal that states no head.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            head_seq: None,
        }
    }

    /// The same refusal with the seq of the stream's head.
    #[must_use]
    pub fn at_head(mut self, head_seq: u64) -> Self {
        self.head_seq = Some(head_seq);
        self
    }

    /// Encodes the refusal for the wire.
    pub fn to_wire(&self) -> String {
        // Infallible: a map of a string, an enum name and a number.
        serde_json::to_string(self).expect("a refusal is always JSON")
    }

    /// Reads a text that a reducer answered with. `None` if it is not a refusal.
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
