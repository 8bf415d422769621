//! The credential that the bridge shows to SpacetimeDB.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use spacetime_sync_proto::Secret;
use spacetime_sync_transport::secret_file::{self, SecretFileError};

use super::StdbError;

/// Signs tokens for the bridge's own identity.
pub trait Signer: fmt::Debug + Send + Sync {
    /// A token that is valid from now on. `None` while no key may sign.
    fn token(&self) -> Option<Secret>;

    /// How long the bridge uses a token before it shows a new one, so that the module never sees a token expire.
    fn renew_after(&self) -> Duration;
}

/// Where the bridge gets its token from.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// Always the same token.
    Fixed(Secret),
    /// A new token each time.
    Signed(Arc<dyn Signer>),
}

impl TokenSource {
    /// A token that is valid now.
    pub fn token(&self) -> Result<Secret, StdbError> {
        match self {
            Self::Fixed(token) => Ok(token.clone()),
            Self::Signed(signer) => signer.token().ok_or(StdbError::NoSigner),
        }
    }

    /// How long the bridge may use a token before it must show a new one. `None` if the token never changes.
    pub fn renew_after(&self) -> Option<Duration> {
        match self {
            Self::Fixed(_) => None,
            Self::Signed(signer) => Some(signer.renew_after()),
        }
    }
}

/// Why a file yields no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The file cannot be read, or others can read it.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// The file is empty.
    #[error("{} is empty and holds no token", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a token from its file.
pub fn read_token(path: &Path) -> Result<Secret, TokenFileError> {
    match secret_file::read(path)?.expose().trim() {
        "" => Err(TokenFileError::Empty { path: path.to_owned() }),
        token => Ok(Secret::from(token.to_owned())),
    }
}
