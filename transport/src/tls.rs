//! Whose certificates count, and what a process shows for itself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::Transport;
use crate::secret_file::{self, SecretFileError};

/// The files of a way: the authorities that count there, and a certificate to show.
#[derive(Debug, Clone, Copy, Default)]
pub struct TlsFiles<'a> {
    /// Certificates of authorities, in PEM. With it, no other authority counts.
    pub ca: Option<&'a Path>,
    /// The certificate that this process shows, with those between it and its authority, in PEM.
    pub cert: Option<&'a Path>,
    /// The private key of that certificate, in PEM.
    pub key: Option<&'a Path>,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file of the key cannot be read, or others can read it.
    #[error(transparent)]
    Key(#[from] SecretFileError),
    /// A text holds no certificate.
    #[error("{origin} holds no certificate: expected one or more CERTIFICATE in PEM")]
    NoCertificate {
        /// Which text.
        origin: String,
    },
    /// A text holds no private key.
    #[error("{origin} holds no private key: expected a PRIVATE KEY in PEM")]
    NoKey {
        /// Which text.
        origin: String,
    },
    /// A certificate without its key, or a key without its certificate.
    #[error("expected a certificate and its key, found only one of them: set both cert_file and key_file")]
    Half,
    /// A certificate or key that nobody can use.
    #[error("{origin} cannot be used")]
    Unusable {
        /// Which text.
        origin: String,
        /// What is wrong.
        source: rustls::Error,
    },
}

impl Transport {
    /// Reads certificates from files. Without any, those authorities count that browsers trust, by Mozilla's list.
    pub fn with_files(self, files: TlsFiles<'_>) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Read {
                path: path.to_owned(),
                source,
            })
        };
        let ca = files.ca.map(read).transpose()?;
        let roots = match (&ca, files.ca) {
            (Some(pem), Some(path)) => roots(pem, &path.display().to_string())?,
            _ => public_roots(),
        };
        let identity = match (files.cert, files.key) {
            (Some(cert), Some(key)) => {
                let pem = read(cert)?;
                let secret = secret_file::read(key)?;
                let chain = certificates(&pem, &cert.display().to_string())?;
                Some((
                    chain,
                    private_key(secret.expose().as_bytes(), &key.display().to_string())?,
                ))
            }
            (None, None) if ca.is_none() => return Ok(self),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return Err(TlsError::Half),
        };
        self.with(roots, identity)
    }

    /// Lets only these authorities count: certificates in PEM.
    pub fn with_authorities(self, pem: &[u8]) -> Result<Self, TlsError> {
        let roots = roots(pem, "the text")?;
        self.with(roots, None)
    }

    fn with(mut self, roots: RootCertStore, identity: Option<Identity>) -> Result<Self, TlsError> {
        let config = config(roots, identity).map_err(|source| TlsError::Unusable {
            origin: "the certificate or its key".to_owned(),
            source,
        })?;
        self.tls = Some(Arc::new(config));
        Ok(self)
    }

    /// The TLS of a way. Without certificates of its own, it is that of [`http`](Self::http).
    pub(crate) fn tls(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        match &self.tls {
            Some(tls) => Ok(Arc::clone(tls)),
            None => config(public_roots(), None).map(Arc::new),
        }
    }
}

fn config(roots: RootCertStore, identity: Option<Identity>) -> Result<ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    match identity {
        Some((chain, key)) => config.with_client_auth_cert(chain, key),
        None => Ok(config.with_no_client_auth()),
    }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub(crate) fn public_roots() -> RootCertStore {
    RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned())
}

fn roots(pem: &[u8], origin: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, origin)? {
        roots.add(certificate).map_err(|source| TlsError::Unusable {
            origin: origin.to_owned(),
            source,
        })?;
    }
    Ok(roots)
}

fn certificates(pem: &[u8], origin: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = read.ok().filter(|found| !found.is_empty());
    found.ok_or_else(|| TlsError::NoCertificate {
        origin: origin.to_owned(),
    })
}

fn private_key(pem: &[u8], origin: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| TlsError::NoKey {
        origin: origin.to_owned(),
    })
}
