//! The section `[spacetimedb]` of the bridge's configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use spacetime_sync_proto::{DatabasePin, IdentityHex, Secret};
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
    /// Name of the database that the module is published to.
    pub database: String,
    /// The identity of that database. `spacetime-sync publish` prints it, and that of the owner.
    pub database_identity: Option<IdentityHex>,
    /// The identity of the database's owner.
    pub owner_identity: Option<IdentityHex>,
    /// Publish to whichever database has the name, even if a stranger created it.
    #[serde(default)]
    pub unpinned: bool,
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

    /// Which database it must be. `None` without a pin.
    pub fn pin(&self) -> Option<DatabasePin> {
        let (database_identity, owner_identity) = (self.database_identity.clone()?, self.owner_identity.clone()?);
        Some(DatabasePin {
            database_identity,
            owner_identity,
        })
    }

    /// Checks the pin. `must` says whether strangers reach the server, and the bridge needs one.
    pub fn check_pin(&self, must: bool) -> Result<(), (&'static str, String)> {
        const HOW: &str = "what `spacetime-sync publish` printed; for a database that is there already, \
                           `spacetime-sync database --token-file OWNER` prints it";
        match (&self.database_identity, &self.owner_identity) {
            (Some(_), Some(_)) if self.unpinned => Err((
                "spacetimedb.unpinned",
                "expected this or spacetimedb.database_identity, found both".to_owned(),
            )),
            (Some(_), Some(_)) => Ok(()),
            (Some(_), None) => Err(("spacetimedb.owner_identity", format!("expected {HOW}, found nothing"))),
            (None, Some(_)) => Err((
                "spacetimedb.database_identity",
                format!("expected {HOW}, found nothing"),
            )),
            (None, None) if must && !self.unpinned => Err((
                "spacetimedb.database_identity",
                format!(
                    "expected {HOW}, found nothing. Without it whoever takes the database's name is sent every event; \
                     spacetimedb.unpinned = true accepts that"
                ),
            )),
            (None, None) => Ok(()),
        }
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
