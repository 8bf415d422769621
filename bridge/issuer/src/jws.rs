//! Signed tokens in their compact form: parsing, verifying, signing. The key determines the algorithm, never the sender
//! of the token.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature;
use serde::Deserialize;
use spacetime_sync_proto::limit;

use super::json::object;

/// Longest compact form that is parsed: claims, header and signature, a third longer in base64.
const TOKEN_BYTES: usize = (limit::CLAIMS_BYTES + 4 * 1024) / 3 * 4;
/// Longest `kid`.
const KID_BYTES: usize = 256;

/// The algorithms that are accepted. None uses a shared secret, and none leaves a token unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
}

impl Algorithm {
    /// Its name in a header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

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
        write!(f, "PublicKey({})", self.algorithm().as_str())
    }
}

impl PublicKey {
    /// The only algorithm that this key is for.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::P256(_) => Algorithm::Es256,
            Self::Rsa { .. } | Self::RsaDer(_) => Algorithm::Rs256,
        }
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::P256(point) => signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                .verify(message, signature)
                .is_ok(),
            Self::RsaDer(der) => signature::UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, der)
                .verify(message, signature)
                .is_ok(),
            Self::Rsa { n, e } => signature::RsaPublicKeyComponents { n, e }
                .verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok(),
        }
    }
}

/// A parsed token. Nothing in it is verified yet.
pub struct Jws<'a> {
    /// `kid` of its header.
    pub kid: Option<String>,
    algorithm: Algorithm,
    message: &'a [u8],
    payload: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    /// Extensions that the reader must understand. This reader understands none.
    crit: Option<serde_json::Value>,
}

/// Why a text cannot be verified as a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The text is longer than any token that is accepted.
    #[error("the token is too long")]
    TooLong,
    /// The text is not three parts in base64url with JSON in them.
    #[error("the token does not have the compact form of a signed token")]
    Form,
    /// The header names another type of token, or extensions that this reader does not understand.
    #[error("this kind of token is not accepted here")]
    Kind,
    /// The algorithm is not accepted.
    #[error("the token is not signed with ES256 or RS256")]
    Algorithm,
}

impl<'a> Jws<'a> {
    /// Parses a token.
    pub fn parse(token: &'a str) -> Result<Self, Malformed> {
        if token.len() > TOKEN_BYTES {
            return Err(Malformed::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Malformed::Form)?;
        let (header, payload) = signed.split_once('.').ok_or(Malformed::Form)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Malformed::Form);
        let header: Header = object(&decode(header)?).map_err(|_| Malformed::Form)?;
        let algorithm = match header.alg.as_str() {
            "ES256" => Algorithm::Es256,
            "RS256" => Algorithm::Rs256,
            _ => return Err(Malformed::Algorithm),
        };
        let typ = header.typ.as_deref().unwrap_or("JWT").to_ascii_lowercase();
        let known = matches!(typ.as_str(), "jwt" | "at+jwt" | "application/at+jwt");
        if !known || header.crit.is_some() || header.kid.as_ref().is_some_and(|kid| kid.len() > KID_BYTES) {
            return Err(Malformed::Kind);
        }
        let payload = decode(payload)?;
        if payload.len() > limit::CLAIMS_BYTES {
            return Err(Malformed::TooLong);
        }
        Ok(Self {
            kid: header.kid,
            algorithm,
            message: signed.as_bytes(),
            payload,
            signature: decode(signature)?,
        })
    }

    /// The algorithm that its header names.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The claims, if this key signed them.
    pub fn verified(&self, key: &PublicKey) -> Option<&[u8]> {
        let ours = key.algorithm() == self.algorithm && key.verifies(self.message, &self.signature);
        ours.then_some(&self.payload[..])
    }
}

/// Signs claims with a key of P-256.
pub fn sign(
    pair: &signature::EcdsaKeyPair,
    kid: &str,
    claims: &impl serde::Serialize,
) -> Result<String, ring::error::Unspecified> {
    let header = format!(r#"{{"alg":"ES256","typ":"JWT","kid":"{kid}"}}"#);
    let mut token = URL_SAFE_NO_PAD.encode(header);
    token.push('.');
    let claims = serde_json::to_vec(claims).map_err(|_| ring::error::Unspecified)?;
    URL_SAFE_NO_PAD.encode_string(claims, &mut token);
    let signature = pair.sign(&ring::rand::SystemRandom::new(), token.as_bytes())?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    Ok(token)
}
