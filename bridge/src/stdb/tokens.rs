//! The credential that the bridge shows to SpacetimeDB.

use std::sync::Arc;
use std::time::Duration;

use super::StdbError;
use crate::auth::service::ServiceTokens;
use spacetime_sync_proto::Secret;

/// Where a token comes from when one is needed.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// The same one for ever.
    Fixed(Secret),
    /// Signed anew every time.
    Signed(Arc<ServiceTokens>),
}

impl TokenSource {
    /// A token that is good now.
    pub fn token(&self) -> Result<Secret, StdbError> {
        match self {
            Self::Fixed(token) => Ok(token.clone()),
            Self::Signed(service) => service.token().ok_or(StdbError::NoSigner),
        }
    }

    /// After how long a new one must be shown; none if it never changes.
    pub fn renew_after(&self) -> Option<Duration> {
        match self {
            Self::Fixed(_) => None,
            Self::Signed(service) => Some(service.renew_after()),
        }
    }
}
