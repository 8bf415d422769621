//! Why the issuer refuses a request, before a protocol turns the refusal into an answer.

use std::borrow::Cow;
use std::time::Duration;

use spacetime_sync_proto::RefusalCode;
use spacetime_sync_proto::access::TokenRefusal;
use spacetime_sync_proto::refusal::RefusalClass;

use super::jws::Malformed;

/// A refusal. Its text never contains any part of a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denial {
    /// The reason, for programs.
    pub code: RefusalCode,
    /// The reason, for people.
    pub message: Cow<'static, str>,
    /// How long to wait before asking again, if asking again may help.
    pub retry_after: Option<Duration>,
}

impl Denial {
    /// A refusal after which asking again does not help.
    pub fn new(code: RefusalCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after: None,
        }
    }

    /// The token or credential is not one that is accepted here.
    pub fn invalid_token(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(RefusalCode::InvalidToken, message)
    }

    /// The caller asked too often.
    pub fn rate_limited(message: &'static str, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(RefusalCode::RateLimited, message)
        }
    }

    /// The issuer cannot answer at the moment.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(RefusalCode::SyncTokenUnavailable, message)
        }
    }

    /// The database behind the bridge is not the one that tokens are for.
    pub fn strayed() -> Self {
        Self {
            retry_after: Some(Duration::from_secs(5)),
            ..Self::new(
                RefusalCode::WrongDatabase,
                "SpacetimeDB leads to another database than this lane's: the operator of the bridge must look",
            )
        }
    }

    /// The refusal as the body of an answer.
    pub fn body(&self) -> TokenRefusal {
        TokenRefusal {
            code: self.code,
            message: self.message.clone().into_owned(),
            // An expired token has class retry because another token helps. The same credential never does.
            retryable: self.code.class() == RefusalClass::Retry && self.retry_after.is_some(),
            retry_after_ms: self
                .retry_after
                .map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

impl From<Malformed> for Denial {
    fn from(malformed: Malformed) -> Self {
        Self::invalid_token(malformed.to_string())
    }
}
