//! What a client shows to be let in: nothing, a fixed token, or tokens that a [`TokenProvider`] gives and that are
//! replaced before they end.
//!
//! A token is never shown: `Debug` leaves it out, and no error carries it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use spacetime_sync_proto::access::{ClientVersion, Incompatible, Scope, StreamPattern};
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Refusal, RefusalCode, StreamId};

use crate::error::ErrorClass;

/// What a client connects with.
#[derive(Clone, Default)]
pub enum Credential {
    /// Nothing: the host makes an identity up, which sees what strangers see.
    #[default]
    Anonymous,
    /// A token that is good for as long as the client is to run. Never shown.
    Fixed(String),
    /// Tokens that end, and are replaced before they do.
    Provider(Arc<dyn TokenProvider>),
}

impl Credential {
    /// With a provider.
    pub fn provider(provider: impl TokenProvider) -> Self {
        Self::Provider(Arc::new(provider))
    }

    /// Whether another token can be had when this one is not accepted.
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

/// Gives tokens. Asked when the client first connects, before each token ends, and when one was not accepted; never
/// twice at a time. It is given up after [`Limits::token_timeout`](crate::Limits::token_timeout).
///
/// A closure that returns a future is one too.
pub trait TokenProvider: Send + Sync + 'static {
    /// Gives a token for what is wanted, or says why there is none.
    fn token(&self, wanted: WantedToken) -> TokenFuture<'_>;

    /// The bridge that the tokens come from, if the same one is to be asked for the authority's log.
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

/// What a client is, and what it wants a token for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedToken {
    /// What the client is.
    pub client: ClientVersion,
    /// What it does: read, acknowledge, and whatever the kinds of its streams ask for.
    pub scopes: Vec<Scope>,
    /// The streams that it follows.
    pub streams: Vec<StreamId>,
}

impl WantedToken {
    pub(crate) fn new(client: ClientVersion, streams: &[StreamId]) -> Self {
        let mut scopes = vec![Scope::Subscribe, Scope::CheckpointWrite];
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

/// A token, and for how long it is good, counted from when it was asked for: no clock is compared with another.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken {
    /// The token. Never shown.
    pub token: String,
    /// When to ask for the next one. The client does so a little earlier, so that many do not come at once.
    pub refresh_after: Duration,
    /// When it ends.
    pub expires_in: Duration,
    /// What it lets be read. The client asks for every stream that it follows; this is to be shown.
    pub granted_streams: Vec<StreamPattern>,
    /// The session that the token is of, if the provider knows.
    pub session_id: Option<String>,
}

/// No token is taken to be good for longer, whatever its provider says: past it another one is asked for.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

impl AccessToken {
    /// A token of which nothing else is known. It is replaced when nine tenths of its time have passed.
    pub fn new(token: impl Into<String>, expires_in: Duration) -> Self {
        Self {
            token: token.into(),
            refresh_after: expires_in.mul_f64(0.9),
            expires_in,
            granted_streams: Vec::new(),
            session_id: None,
        }
    }

    /// The token as the client uses it, whatever a provider says of its times. `None` if the token cannot be sent or
    /// has ended.
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

/// Whether a text can be in a header, which is where tokens go.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic())
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nobody answered, or not as expected. Asked again after a wait.
    #[error("no token could be had: {message}")]
    Unavailable {
        /// What went wrong, for a person.
        message: String,
        /// How long to wait at least.
        retry_after: Option<Duration>,
    },
    /// The issuer said no. Whether it is asked again follows from the code.
    #[error("no token is given: {refusal}")]
    Refused {
        /// What it said.
        refusal: Refusal,
        /// How long to wait at least.
        retry_after: Option<Duration>,
    },
    /// This build of the application is not served.
    #[error("this build is not served: {0}")]
    Incompatible(Box<Incompatible>),
}

impl TokenError {
    /// Nobody answered, or not as expected.
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self::Unavailable {
            message: message.to_string(),
            retry_after: None,
        }
    }

    /// Someone said no.
    pub fn refused(code: RefusalCode, message: impl Into<String>) -> Self {
        Self::Refused {
            refusal: Refusal::new(code, message),
            retry_after: None,
        }
    }

    /// What to do about it. A client stops at whatever is not of class retry: it has nothing else to do.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable { .. } => RefusalClass::Retry,
            Self::Refused { refusal, .. } => refusal.code.class(),
            Self::Incompatible(_) => RefusalClass::Fatal,
        }
    }

    /// How long to wait at least before asking again.
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
    fn a_token_that_is_never_to_end_is_good_for_a_day() {
        let token = AccessToken::new("x", Duration::MAX).usable().unwrap();
        assert_eq!((token.refresh_after, token.expires_in), (LONGEST, LONGEST));
        assert_eq!(AccessToken::new("x", Duration::ZERO).usable(), None);
        assert_eq!(AccessToken::new("x\n", LONGEST).usable(), None);
    }

    #[test]
    fn what_is_wanted_follows_from_the_streams() {
        let streams = ["runtime.run.1.events", "runtime.run.2.events", "notes"].map(|id| StreamId::new(id).unwrap());
        let wanted = WantedToken::new(version(), &streams);
        assert_eq!(
            wanted.scopes,
            [Scope::Subscribe, Scope::CheckpointWrite, Scope::RunEvents]
        );
        assert_eq!(wanted.streams, streams);
    }

    #[test]
    fn what_can_be_tried_again_is_told_from_what_cannot() {
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
