//! Why somebody is not given what they ask for, before it becomes an answer of any protocol.

use std::borrow::Cow;
use std::time::Duration;

use spacetime_sync_proto::RefusalCode;
use spacetime_sync_proto::access::TokenRefusal;
use spacetime_sync_proto::refusal::RefusalClass;

/// A refusal of the issuer. Its text never holds anything of a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denial {
    /// The machine's part.
    pub code: RefusalCode,
    /// The person's part.
    pub message: Cow<'static, str>,
    /// When to ask again, if asking again may help.
    pub retry_after: Option<Duration>,
}

impl Denial {
    /// A refusal.
    pub fn new(code: RefusalCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after: None,
        }
    }

    /// Asked too often.
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

    /// The body of an answer.
    pub fn body(&self) -> TokenRefusal {
        TokenRefusal {
            code: self.code,
            message: self.message.clone().into_owned(),
            // With a credential, as opposed to a request, that has ended, the same credential never helps.
            retryable: self.code.class() == RefusalClass::Retry && self.retry_after.is_some(),
            retry_after_ms: self
                .retry_after
                .map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}
