//! How the processes of the lane reach one another, and how they read what they show there.
//!
//! [`plaintext`] says to whom something may go unencrypted, [`secret_file`] which files are secret enough to be read, [`tls`]
//! whose certificates count. [`tunnel`] gives SpacetimeDB's SDK the same TLS.
//!
//! *Never*: a connection that another crate has not asked for; a name that is resolved in order to decide.

pub mod plaintext;
pub mod secret_file;
mod tls;
mod tunnel;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use plaintext::PlaintextRefused;
pub use tls::{TlsError, TlsFiles};

/// How long a connection is kept for the next request: half of what a bridge lets it be idle. Whoever keeps one until the other
/// side closes it sends a request into the closing, and cannot tell whether it was heard.
pub const KEEP_IDLE: Duration = Duration::from_secs(5);

/// How a process reaches others.
#[derive(Clone, Default)]
pub struct Transport {
    allow_plaintext: bool,
    /// `None` if the authorities count that browsers trust.
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("allow_plaintext", &self.allow_plaintext)
            .field("own_certificates", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl Transport {
    /// Whether plaintext may go to other machines. Everybody on the way can then read the tokens and change what is said.
    #[must_use]
    pub fn allow_plaintext(mut self, allow: bool) -> Self {
        self.allow_plaintext = allow;
        self
    }

    /// Refuses a url to which nothing may be sent. `setting` is what allows it, in the caller's words.
    pub fn check(&self, url: &str, setting: &'static str) -> Result<(), PlaintextRefused> {
        plaintext::check(url, self.allow_plaintext, setting)
    }

    /// Begins a client for the requests to one url. It follows no redirect, which would hand a token to a server that nobody
    /// named.
    pub fn http(&self, url: &str) -> reqwest::ClientBuilder {
        let builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .pool_idle_timeout(KEEP_IDLE);
        if plaintext::is_plaintext(url) {
            // A proxy from the environment would read what goes to it, even what is for this machine.
            return builder.no_proxy();
        }
        match &self.tls {
            Some(tls) => builder.use_preconfigured_tls(rustls::ClientConfig::clone(tls)),
            None => builder,
        }
    }
}
