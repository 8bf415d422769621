//! The credential that the bridge shows to SpacetimeDB.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use spacetime_sync_proto::Secret;

use super::StdbError;

/// Signs tokens for the bridge's own identity.
pub trait Signer: fmt::Debug + Send + Sync {
    /// A token that is good from now on; `None` while no key signs.
    fn token(&self) -> Option<Secret>;

    /// After how long the bridge shows a new token, so that the module never sees one end.
    fn renew_after(&self) -> Duration;
}

/// Where a token comes from when one is needed.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// Always the same one.
    Fixed(Secret),
    /// A new one each time.
    Signed(Arc<dyn Signer>),
}

impl TokenSource {
    /// A token that is good now.
    pub fn token(&self) -> Result<Secret, StdbError> {
        match self {
            Self::Fixed(token) => Ok(token.clone()),
            Self::Signed(signer) => signer.token().ok_or(StdbError::NoSigner),
        }
    }

    /// After how long the bridge must show a new token; `None` if the token never changes.
    pub fn renew_after(&self) -> Option<Duration> {
        match self {
            Self::Fixed(_) => None,
            Self::Signed(signer) => Some(signer.renew_after()),
        }
    }
}

/// Why a file gives no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is empty.
    #[error("{} is empty and holds no token", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a token out of its file.
pub fn read_token(path: &Path) -> Result<Secret, TokenFileError> {
    let text = std::fs::read_to_string(path).map_err(|source| TokenFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    match text.trim() {
        "" => Err(TokenFileError::Empty { path: path.to_owned() }),
        token => Ok(Secret::from(token.to_owned())),
    }
}
