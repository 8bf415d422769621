//! The section `[spacetimedb]` of the bridge's configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use spacetime_sync_proto::Secret;

use crate::tokens::{TokenFileError, read_token};

/// `[spacetimedb]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpacetimeConfig {
    /// `http://host:port` of the server.
    pub uri: String,
    /// Name or identity of the database that the module is published to.
    pub database: String,
    /// File that holds the token of the bridge's identity.
    pub token_file: Option<PathBuf>,
    /// The token itself, for operators who keep secrets in the environment. The bridge needs one of the two, unless it
    /// has an `[issuer]`: then it signs its own.
    pub token: Option<Secret>,
}

impl SpacetimeConfig {
    /// The token of the bridge's identity, from its file or the configuration. `None` if the bridge signs its own.
    pub fn token(&self) -> Result<Option<Secret>, TokenFileError> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(Some(token.clone())),
            (None, Some(path)) => read_token(path).map(Some),
            (None, None) => Ok(None),
        }
    }
}
