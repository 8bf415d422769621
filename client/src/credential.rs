//! How a client authenticates: with nothing, with a fixed token, or with tokens from a [`TokenProvider`] that are
//! replaced before they end.
//!
//! A token is never shown: `Debug` leaves it out, and no error contains it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use spacetime_sync_proto::access::{ClientVersion, Incompatible, Scope, StreamPattern};
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{DatabasePin, Refusal, RefusalCode, SealKey, StreamId};

use crate::error::ErrorClass;

/// What a client connects with.
#[derive(Clone, Default)]
pub enum Credential {
    /// Nothing: SpacetimeDB makes up an identity, which has no rights of its own.
    #[default]
    Anonymous,
    /// A token that lasts as long as the client runs. Never shown.
    Fixed(String),
    /// Tokens that end, and that the client replaces before they do.
    Provider(Arc<dyn TokenProvider>),
}

impl Credential {
    /// Uses a provider.
    pub fn provider(provider: impl TokenProvider) -> Self {
        Self::Provider(Arc::new(provider))
    }

    /// Whether the client can get another token when one is not accepted.
    pub(crate) fn is_renewable(&self) -> bool {
        match self {
            Self::Anonymous | Self::Fixed(_) => false,
            Self::Provider(_) => true,
        }
    }
}

impl From<Option<String>> for Credential {
    fn from(token: Option<String>) -> Self {
        token.map_or(Self::Anonymous, Self::Fixed)
    }
}

impl From<String> for Credential {
    fn from(token: String) -> Self {
        Self::Fixed(token)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Fixed(_) => "Fixed((redacted))",
            Self::Provider(_) => "Provider((redacted))",
        })
    }
}

/// Provides tokens. The client asks when it first connects, before each token ends, and when a token was not accepted;
/// never twice at the same time. It gives up after [`Limits::token_timeout`](crate::Limits::token_timeout).
///
/// A closure that returns a future is a provider too.
pub trait TokenProvider: Send + Sync + 'static {
    /// Returns a token for what is wanted, or an error.
    fn token(&self, wanted: WantedToken) -> TokenFuture<'_>;

    /// The bridge that issues the tokens, if the client should read the authority's log there too.
    fn bridge(&self) -> Option<&str> {
        None
    }
}

/// What a [`TokenProvider`] answers with.
pub type TokenFuture<'a> = Pin<Box<dyn Future<Output = Result<AccessToken, TokenError>> + Send + 'a>>;

impl<F, R> TokenProvider for F
where
    F: Fn(WantedToken) -> R + Send + Sync + 'static,
    R: Future<Output = Result<AccessToken, TokenError>> + Send + 'static,
{
    fn token(&self, wanted: WantedToken) -> TokenFuture<'_> {
        Box::pin(self(wanted))
    }
}

/// What the client is, and what it wants a token for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedToken {
    /// What the client is.
    pub client: ClientVersion,
    /// What it does: read, acknowledge, say what it serves, ask for work, provide, and whatever the kinds of its streams
    /// require.
    pub scopes: Vec<Scope>,
    /// The streams that it follows.
    pub streams: Vec<StreamId>,
}

impl WantedToken {
    pub(crate) fn new(client: ClientVersion, streams: &[StreamId], mut scopes: Vec<Scope>) -> Self {
        scopes.extend(streams.iter().filter_map(Scope::of_stream));
        scopes.sort();
        scopes.dedup();
        Self {
            client,
            scopes,
            streams: streams.to_vec(),
        }
    }
}

/// A token and how long it lasts, counted from when the client asked for it: no clock is compared with another.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken {
    /// The token. Never shown.
    pub token: String,
    /// When to ask for the next one. Clients ask a little earlier, at random, so that they do not come all at once.
    pub refresh_after: Duration,
    /// When it ends.
    pub expires_in: Duration,
    /// The streams that it grants, for display: the client asks for every stream that it follows anyway.
    pub granted_streams: Vec<StreamPattern>,
    /// The session that the token belongs to, if the provider knows.
    pub session_id: Option<String>,
    /// The keys whose seals the client accepts from now on. If there are none, those of
    /// [`ClientConfig::seal_keys`](crate::ClientConfig::seal_keys) stay.
    pub seal_keys: Vec<SealKey>,
    /// The one database to connect to with this token. Without it, [`ClientConfig::pin`](crate::ClientConfig::pin) says so.
    pub pin: Option<Box<DatabasePin>>,
}

/// The longest time that a token is used, whatever its provider says.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

impl AccessToken {
    /// A token without further details. The client replaces it after nine tenths of its time.
    pub fn new(token: impl Into<String>, expires_in: Duration) -> Self {
        Self {
            token: token.into(),
            refresh_after: expires_in.mul_f64(0.9),
            expires_in,
            granted_streams: Vec::new(),
            session_id: None,
            seal_keys: Vec::new(),
            pin: None,
        }
    }

    /// The token with its times bounded. `None` if it cannot be sent in a header or has ended.
    pub fn usable(self) -> Option<Self> {
        let usable = is_token(&self.token) && !self.expires_in.is_zero();
        usable.then(|| Self {
            refresh_after: self.refresh_after.min(LONGEST),
            expires_in: self.expires_in.min(LONGEST),
            ..self
        })
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken")
            .field("token", &"(redacted)")
            .field("refresh_after", &self.refresh_after)
            .field("expires_in", &self.expires_in)
            .field("granted_streams", &self.granted_streams)
            .field("session_id", &self.session_id)
            .finish()
    }
}

/// Whether a text can be sent in a header, as tokens are.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic())
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nobody answered, or the answer was unexpected. The client asks again after a wait.
    #[error("could not get a token: {message}")]
    Unavailable {
        /// What went wrong, in words for a person.
        message: String,
        /// The shortest wait before asking again.
        retry_after: Option<Duration>,
    },
    /// The issuer refused. Whether to ask again follows from the code.
    #[error("the issuer refused a token: {refusal}")]
    Refused {
        /// The refusal.
        refusal: Refusal,
        /// The shortest wait before asking again.
        retry_after: Option<Duration>,
    },
    /// This build of the application is not supported.
    #[error("this build is not supported: {0}")]
    Incompatible(Box<Incompatible>),
}

impl TokenError {
    /// Nobody answered, or the answer was unexpected.
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self::Unavailable {
            message: message.to_string(),
            retry_after: None,
        }
    }

    /// The issuer refused.
    pub fn refused(code: RefusalCode, message: impl Into<String>) -> Self {
        Self::Refused {
            refusal: Refusal::new(code, message),
            retry_after: None,
        }
    }

    /// How to react. A client stops at any error that is not of class retry: it has nothing else to do.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable { .. } => RefusalClass::Retry,
            Self::Refused { refusal, .. } => refusal.code.class(),
            Self::Incompatible(_) => RefusalClass::Fatal,
        }
    }

    /// The shortest wait before asking again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } | Self::Refused { retry_after, .. } => *retry_after,
            Self::Incompatible(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version() -> ClientVersion {
        ClientVersion {
            client_build_id: "20260101T000000Z".to_owned(),
            protocol_version: "spacetime.sync.v1".to_owned(),
            schema_version: 1,
            oldest_schema_version: None,
            surface: "desktop".to_owned(),
        }
    }

    #[test]
    fn no_token_is_shown() {
        let token = AccessToken::new("very-secret", Duration::from_secs(300));
        let closure = |_: WantedToken| async { Err(TokenError::unavailable("very-secret")) };
        for shown in [
            format!("{token:?}"),
            format!("{:?}", Credential::Fixed("very-secret".to_owned())),
            format!("{:?}", Credential::provider(closure)),
        ] {
            assert!(!shown.contains("very-secret"), "{shown}");
            assert!(shown.contains("(redacted)"), "{shown}");
        }
    }

    #[test]
    fn a_token_without_an_end_is_used_for_a_day() {
        let token = AccessToken::new("x", Duration::MAX).usable().unwrap();
        assert_eq!((token.refresh_after, token.expires_in), (LONGEST, LONGEST));
        assert_eq!(AccessToken::new("x", Duration::ZERO).usable(), None);
        assert_eq!(AccessToken::new("x\n", LONGEST).usable(), None);
    }

    #[test]
    fn the_wanted_scopes_follow_from_the_streams() {
        let streams = ["runtime.run.1.events", "runtime.run.2.events", "notes"].map(|id| StreamId::new(id).unwrap());
        let wanted = WantedToken::new(version(), &streams, vec![Scope::Subscribe, Scope::CheckpointWrite]);
        assert_eq!(
            wanted.scopes,
            [Scope::Subscribe, Scope::CheckpointWrite, Scope::RunEvents]
        );
        assert_eq!(wanted.streams, streams);
        let other = WantedToken::new(version(), &streams[2..], vec![Scope::Subscribe]);
        assert_eq!(other.scopes, [Scope::Subscribe]);
    }

    #[test]
    fn errors_worth_a_retry_are_told_from_permanent_ones() {
        for (error, class) in [
            (TokenError::unavailable("x"), RefusalClass::Retry),
            (TokenError::refused(RefusalCode::RateLimited, "x"), RefusalClass::Retry),
            (TokenError::refused(RefusalCode::TokenExpired, "x"), RefusalClass::Retry),
            (
                TokenError::refused(RefusalCode::SyncTokenUnavailable, "x"),
                RefusalClass::Retry,
            ),
            (TokenError::refused(RefusalCode::Unauthorized, "x"), RefusalClass::Fatal),
            (TokenError::refused(RefusalCode::TokenRevoked, "x"), RefusalClass::Fatal),
            (
                TokenError::refused(RefusalCode::MissingScope, "x"),
                RefusalClass::Reject,
            ),
        ] {
            assert_eq!(error.class(), class, "{error:?}");
        }
    }
}
