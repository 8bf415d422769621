//! The section `[spacetimedb]` of the bridge's configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use spacetime_sync_proto::Secret;
use spacetime_sync_transport::{PlaintextRefused, TlsError, TlsFiles, Transport, plaintext};

use crate::tokens::{TokenFileError, read_token};

/// `[spacetimedb]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpacetimeConfig {
    /// `http://host:port` of the server.
    pub uri: String,
    /// Whether `http://` may lead to another machine.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// Certificates of the only authorities that count there, in PEM.
    pub ca_file: Option<PathBuf>,
    /// The certificate that the bridge shows there, in PEM.
    pub cert_file: Option<PathBuf>,
    /// Its private key.
    pub key_file: Option<PathBuf>,
    /// Name or identity of the database that the module is published to.
    pub database: String,
    /// File that holds the token of the bridge's identity.
    pub token_file: Option<PathBuf>,
    /// The token itself, for operators who keep secrets in the environment. The bridge needs one of the two, unless it
    /// has an `[issuer]`: then it signs its own.
    pub token: Option<Secret>,
}

impl SpacetimeConfig {
    /// How the bridge reaches the server.
    pub fn transport(&self) -> Result<Transport, TlsError> {
        let files = TlsFiles {
            ca: self.ca_file.as_deref(),
            cert: self.cert_file.as_deref(),
            key: self.key_file.as_deref(),
        };
        Transport::default()
            .allow_plaintext(self.allow_plaintext)
            .with_files(files)
    }

    /// Refuses an address to which nothing may be sent.
    pub fn check_transport(&self) -> Result<(), PlaintextRefused> {
        plaintext::check(&self.uri, self.allow_plaintext, "spacetimedb.allow_plaintext = true")
    }

    /// The token of the bridge's identity, from its file or the configuration. `None` if the bridge signs its own.
    pub fn token(&self) -> Result<Option<Secret>, TokenFileError> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(Some(token.clone())),
            (None, Some(path)) => read_token(path).map(Some),
            (None, None) => Ok(None),
        }
    }
}
