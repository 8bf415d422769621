//! Signed tokens in their compact form. The crate `jsonwebtoken` parses, verifies and signs them, with the cryptography
//! of [`crypto`]. This module is stricter than the crate: the key determines the algorithm and never the sender of the
//! token, nothing long is parsed, and no extension is accepted. Whoever reads the claims decides what they must say.

mod crypto;
#[cfg(test)]
mod tests;

pub use jsonwebtoken::Algorithm;
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use serde_json::value::RawValue;
use spacetime_sync_proto::access::TOKEN_TYP;
use spacetime_sync_proto::limit;

/// Longest compact form that is parsed: claims, header and signature, a third longer in base64.
const TOKEN_BYTES: usize = (limit::CLAIMS_BYTES + 4 * 1024) / 3 * 4;
/// Longest `kid`.
const KID_BYTES: usize = 256;

/// A key that verifies signatures.
#[derive(Clone)]
pub enum PublicKey {
    /// A point of P-256, uncompressed.
    P256(Vec<u8>),
    /// Modulus and exponent, big-endian.
    Rsa {
        /// The modulus.
        n: Vec<u8>,
        /// The exponent.
        e: Vec<u8>,
    },
    /// An RSA key in the form of PKCS#1.
    RsaDer(Vec<u8>),
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKey({:?})", self.algorithm())
    }
}

impl PublicKey {
    /// The only algorithm that this key is for: ES256 or RS256. Neither uses a shared secret.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::P256(_) => Algorithm::ES256,
            Self::Rsa { .. } | Self::RsaDer(_) => Algorithm::RS256,
        }
    }

    fn decoding(&self) -> DecodingKey {
        match self {
            Self::P256(point) => DecodingKey::from_ec_der(point),
            Self::Rsa { n, e } => DecodingKey::from_rsa_raw_components(n, e),
            Self::RsaDer(der) => DecodingKey::from_rsa_der(der),
        }
    }
}

/// What a token is for. Its header says so in `typ`, and a token of one kind never passes for one of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A session credential. The runtime signs it without a type of its own.
    Session,
    /// A sync token.
    Sync,
}

impl Kind {
    /// The `typ` with which it is signed here.
    fn typ(self) -> &'static str {
        match self {
            Self::Session => "JWT",
            Self::Sync => TOKEN_TYP,
        }
    }

    fn accepts(self, typ: Option<&str>) -> bool {
        let accepted: &[&str] = match self {
            Self::Session => &["JWT", "at+jwt", "application/at+jwt"],
            Self::Sync => &[TOKEN_TYP],
        };
        typ.map_or(self == Self::Session, |typ| {
            accepted.iter().any(|known| known.eq_ignore_ascii_case(typ))
        })
    }
}

/// A token of which only the header was read. Nothing in it is verified yet.
pub struct Jws<'a> {
    /// `kid` of its header.
    pub kid: Option<String>,
    algorithm: Algorithm,
    token: &'a str,
}

/// Why a text cannot be verified as a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The text is longer than any token that is accepted.
    #[error("the token is too long")]
    TooLong,
    /// The text is not three parts in base64url with JSON in them, or names an algorithm that nobody knows.
    #[error("the token does not have the compact form of a signed token")]
    Form,
    /// The header names another type of token, or extensions that this reader does not understand.
    #[error("this kind of token is not accepted here")]
    Kind,
    /// The algorithm is not accepted.
    #[error("the token is not signed with ES256 or RS256")]
    Algorithm,
}

/// Why a token yields no claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unverified {
    /// The key did not sign it.
    Signature,
    /// The key signed it, but what it signed is not JSON.
    Claims,
}

impl<'a> Jws<'a> {
    /// Reads the header of a token of this kind.
    pub fn parse(token: &'a str, kind: Kind) -> Result<Self, Malformed> {
        if token.len() > TOKEN_BYTES {
            return Err(Malformed::TooLong);
        }
        let header = decode_header(token).map_err(|_| Malformed::Form)?;
        if !matches!(header.alg, Algorithm::ES256 | Algorithm::RS256) {
            return Err(Malformed::Algorithm);
        }
        let known = kind.accepts(header.typ.as_deref());
        if !known || header.crit.is_some() || header.kid.as_ref().is_some_and(|kid| kid.len() > KID_BYTES) {
            return Err(Malformed::Kind);
        }
        if claims_bytes(token) > limit::CLAIMS_BYTES {
            return Err(Malformed::TooLong);
        }
        Ok(Self {
            kid: header.kid,
            algorithm: header.alg,
            token,
        })
    }

    /// The algorithm that its header names.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the claims as they were signed, if this key signed them.
    pub fn claims(&self, key: &PublicKey) -> Result<Box<RawValue>, Unverified> {
        crypto::install();
        let read = decode(self.token, &key.decoding(), &rules(key.algorithm()));
        read.map(|read| read.claims).map_err(|error| match error.kind() {
            ErrorKind::Json(_) => Unverified::Claims,
            _ => Unverified::Signature,
        })
    }
}

/// How many bytes the claims of a token have.
pub(super) fn claims_bytes(token: &str) -> usize {
    token.split('.').nth(1).map_or(0, str::len) * 3 / 4
}

/// Has the crate check the signature and the algorithm, which is the key's, whatever the header says. The crate checks no
/// claim: whoever reads the claims does, and has a code for each reason.
fn rules(algorithm: Algorithm) -> Validation {
    let mut rules = Validation::new(algorithm);
    rules.required_spec_claims.clear();
    rules.validate_exp = false;
    rules.validate_aud = false;
    rules
}

/// A key of P-256 that signs tokens.
pub(super) struct TokenKey(EncodingKey);

impl TokenKey {
    /// A key in the form of PKCS#8.
    pub(super) fn from_pkcs8(der: &[u8]) -> Self {
        Self(EncodingKey::from_ec_der(der))
    }

    /// Signs claims, as the key of this id.
    pub(super) fn sign(&self, kid: &str, kind: Kind, claims: &impl serde::Serialize) -> Result<String, Error> {
        crypto::install();
        let header = Header {
            typ: Some(kind.typ().to_owned()),
            kid: Some(kid.to_owned()),
            ..Header::new(Algorithm::ES256)
        };
        encode(&header, claims, &self.0)
    }
}
