//! The keys that sync tokens are signed with, and the schedule by which one follows another.
//!
//! A key is published as soon as its file exists, and signs from the moment that the file is named after. SpacetimeDB
//! keeps a key set for up to two hours and refuses a `kid` that is not in it, so a new key waits that long before it
//! signs. A key never appears in a log line or an error, and never stays in memory longer than its file exists.

mod folder;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::SecretKey;
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use serde::Serialize;
use serde_json::{Value, json};
use spacetime_sync_proto::seal::sealed_text;
use spacetime_sync_proto::{Position, Seal, SealKey, SealKeyId, Secret, StreamId};
use spacetime_sync_transport::secret_file::SecretFileError;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime, UtcDateTime};

use super::jws::{Kind, PublicKey, TokenKey};

pub use folder::{KeyFolder, KeyListing, add_key, list_keys};

/// How long a superseded key stays published: as long as a token lives, plus the difference that clocks may have.
pub const PUBLISHED_AFTER_SECONDS: u64 = 900 + 120;
/// How long a new key waits before it signs, unless the operator says otherwise: longer than SpacetimeDB keeps a key
/// set.
pub const SIGNS_IN_SECONDS: u64 = 2 * 3_600 + 15 * 60;
/// Largest file of a key.
pub(super) const KEY_BYTES: u64 = 16 * 1024;

/// Why there is no key. The error never contains any part of one.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is not a private key of P-256 in PEM.
    #[error("{origin} holds no signing key: expected a private key of P-256 in PEM (PKCS#8 or SEC1)")]
    NoKey {
        /// The file, or the key in the configuration.
        origin: String,
    },
    /// A file or the folder cannot be read or written.
    #[error("cannot {what} {origin}")]
    Io {
        /// What the issuer tried to do.
        what: &'static str,
        /// The file or the folder.
        origin: String,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A file cannot be read, or others can read it.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// The name of a file is not a moment.
    #[error("{origin} is not named YYYYMMDDTHHMMSSZ.pem, after the moment from which the key signs")]
    Name {
        /// The file.
        origin: String,
    },
    /// No key in the folder may sign yet.
    #[error("{origin} holds no key that signs yet; create one with: spacetime-sync keys add --dir DIR")]
    Empty {
        /// The folder.
        origin: String,
    },
}

/// A private key that signs from a certain moment on.
pub struct SigningKey {
    signs_from: u64,
    kid: String,
    /// The beginning of the thumbprint that `kid` is, as seals carry it.
    seal_key: SealKeyId,
    /// Signs tokens.
    tokens: TokenKey,
    /// Signs seals.
    pair: EcdsaKeyPair,
    jwk: Jwk,
    random: SystemRandom,
}

/// The public half, in the form in which it is published.
#[derive(Debug, Clone, Serialize)]
struct Jwk {
    crv: &'static str,
    kty: &'static str,
    x: String,
    y: String,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .field("signs_from", &self.signs_from)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Reads a private key in PEM. Errors call it `origin`.
    pub fn from_pem(pem: &Secret, signs_from: u64, origin: &str) -> Result<Self, KeyError> {
        let none = || KeyError::NoKey {
            origin: origin.to_owned(),
        };
        // A value from the environment often has `\n` in place of line breaks.
        let pem = pem.expose().replace("\\n", "\n");
        let key = SecretKey::from_pkcs8_pem(pem.trim()).or_else(|_| SecretKey::from_sec1_pem(pem.trim()));
        let key = key.map_err(|_| none())?;
        let der = key.to_pkcs8_der().map_err(|_| none())?;
        let public = key.public_key().to_encoded_point(false);
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_bytes(), &random);
        let pair = pair.map_err(|_| none())?;
        let (Some(x), Some(y)) = (public.x(), public.y()) else {
            return Err(none());
        };
        let jwk = Jwk {
            crv: "P-256",
            kty: "EC",
            x: URL_SAFE_NO_PAD.encode(x),
            y: URL_SAFE_NO_PAD.encode(y),
        };
        let thumbprint = thumbprint(&jwk).ok_or_else(none)?;
        Ok(Self {
            signs_from,
            kid: URL_SAFE_NO_PAD.encode(thumbprint),
            seal_key: SealKeyId::of_thumbprint(&thumbprint),
            tokens: TokenKey::from_pkcs8(der.as_bytes()),
            pair,
            jwk,
            random,
        })
    }

    /// Makes a new key and returns it in PEM.
    pub fn generate() -> Result<Secret, KeyError> {
        let none = || KeyError::NoKey {
            origin: "the generator".to_owned(),
        };
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).map_err(|_| none())?;
        let key = SecretKey::from_pkcs8_der(der.as_ref()).map_err(|_| none())?;
        let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(|_| none())?;
        Ok(Secret::from(pem.to_string()))
    }

    /// The key's id: the thumbprint of RFC 7638.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The moment from which it signs, in seconds since 1970.
    pub fn signs_from(&self) -> u64 {
        self.signs_from
    }

    /// The key that verifies its signatures.
    pub fn public(&self) -> PublicKey {
        PublicKey::P256(self.pair.public_key().as_ref().to_vec())
    }

    /// The same in PEM, for `sessions.public_keys`.
    pub fn public_pem(&self) -> Option<String> {
        let key = p256::PublicKey::from_sec1_bytes(self.pair.public_key().as_ref()).ok()?;
        key.to_public_key_pem(LineEnding::LF).ok()
    }

    /// Signs the claims of a token.
    pub fn sign(&self, kind: Kind, claims: &impl Serialize) -> Result<Secret, jsonwebtoken::errors::Error> {
        self.tokens.sign(&self.kid, kind, claims).map(Secret::from)
    }

    /// Seals a position of a stream. `None` if the system gives no random bytes.
    pub fn seal(&self, stream_id: &StreamId, at: &Position) -> Option<Seal> {
        let signed = self.pair.sign(&self.random, &sealed_text(stream_id, at)).ok()?;
        Some(Seal {
            key: self.seal_key,
            signature: signed.as_ref().try_into().ok()?,
        })
    }

    /// Whether it made this seal of a position.
    fn is_seal(&self, stream_id: &StreamId, at: &Position, seal: &Seal) -> bool {
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref());
        public.verify(&sealed_text(stream_id, at), &seal.signature).is_ok()
    }

    /// The key that verifies its seals.
    pub fn seal_key(&self) -> SealKey {
        SealKey {
            kid: self.kid.clone(),
            kty: self.jwk.kty.to_owned(),
            crv: self.jwk.crv.to_owned(),
            x: self.jwk.x.clone(),
            y: self.jwk.y.clone(),
        }
    }

    fn published(&self) -> Value {
        json!({
            "kty": self.jwk.kty, "crv": self.jwk.crv, "x": self.jwk.x, "y": self.jwk.y,
            "kid": self.kid, "use": "sig", "alg": "ES256",
        })
    }
}

/// RFC 7638: sha256 over the required members in the order of their names, which is the order of the fields of [`Jwk`].
fn thumbprint(jwk: &Jwk) -> Option<[u8; 32]> {
    let text = serde_json::to_vec(jwk).ok()?;
    ring::digest::digest(&ring::digest::SHA256, &text)
        .as_ref()
        .try_into()
        .ok()
}

/// All keys at one moment. Time alone decides which of them signs.
#[derive(Debug, Default)]
pub struct Ring {
    /// Sorted by the moment from which they sign.
    keys: Vec<Arc<SigningKey>>,
}

impl Ring {
    /// A ring of these keys. Where two files hold the same key, the earlier moment counts.
    pub fn new(mut keys: Vec<Arc<SigningKey>>) -> Self {
        keys.sort_by_key(|key| key.signs_from);
        let mut seen = std::collections::HashSet::new();
        keys.retain(|key| seen.insert(key.kid.clone()));
        Self { keys }
    }

    /// The key that signs: the newest one whose moment has come.
    pub fn signer(&self, now: u64) -> Option<&Arc<SigningKey>> {
        self.keys.iter().rfind(|key| key.signs_from <= now)
    }

    /// The keys that are published: all except those that were superseded long ago.
    pub fn published(&self, now: u64) -> impl Iterator<Item = &Arc<SigningKey>> {
        self.keys.iter().enumerate().filter_map(move |(at, key)| {
            let superseded_at = self.keys.get(at + 1).map(|next| next.signs_from);
            let gone = superseded_at.is_some_and(|since| now > since.saturating_add(PUBLISHED_AFTER_SECONDS));
            (!gone).then_some(key)
        })
    }

    /// The keys whose seals are good: all whose files exist. Rows that a key sealed may be delivered long after it was
    /// superseded, so its file stays until no window holds them.
    pub fn seal_keys(&self) -> Vec<SealKey> {
        self.keys.iter().map(|key| key.seal_key()).collect()
    }

    /// Whether the key that a seal names made it for this position. `None` if there is no such key.
    pub fn check_seal(&self, stream_id: &StreamId, at: &Position, seal: &Seal) -> Option<bool> {
        let mut keys = self.keys.iter().filter(|key| key.seal_key == seal.key).peekable();
        keys.peek()?;
        Some(keys.any(|key| key.is_seal(stream_id, at, seal)))
    }

    /// The key set with which `/.well-known/jwks.json` answers.
    pub fn jwks(&self, now: u64) -> Value {
        let keys: Vec<Value> = self.published(now).map(|key| key.published()).collect();
        json!({ "keys": keys })
    }
}

/// The moment, in seconds since 1970, that a key file's name stands for.
pub fn moment_from_name(name: &str) -> Option<u64> {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let stem = name.strip_suffix(".pem")?;
    let moment = PrimitiveDateTime::parse(stem, format).ok()?;
    u64::try_from(moment.assume_utc().unix_timestamp()).ok()
}

/// A moment as `YYYYMMDDTHHMMSSZ`.
pub fn moment_text(seconds: u64) -> String {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|moment| moment.format(format).ok())
        .unwrap_or_else(|| "99991231T235959Z".to_owned())
}

/// Seconds since 1970.
pub fn now() -> u64 {
    u64::try_from(UtcDateTime::now().unix_timestamp()).unwrap_or(0)
}

/// Microseconds since 1970.
pub fn now_us() -> u64 {
    u64::try_from(UtcDateTime::now().unix_timestamp_nanos() / 1_000).unwrap_or(0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::jws::{Jws, Unverified};

    pub(crate) fn key(signs_from: u64) -> Arc<SigningKey> {
        let pem = SigningKey::generate().unwrap();
        Arc::new(SigningKey::from_pem(&pem, signs_from, "test").unwrap())
    }

    fn signer(ring: &Ring, now: u64) -> Option<u64> {
        ring.signer(now).map(|key| key.signs_from)
    }

    fn published(ring: &Ring, now: u64) -> Vec<u64> {
        ring.published(now).map(|key| key.signs_from).collect()
    }

    #[test]
    fn the_newest_key_whose_time_has_come_signs() {
        let ring = Ring::new(vec![key(2_000), key(1_000), key(9_000)]);
        for (now, signs) in [
            (999, None),
            (1_000, Some(1_000)),
            (1_999, Some(1_000)),
            (2_000, Some(2_000)),
            (8_999, Some(2_000)),
            (100_000, Some(9_000)),
        ] {
            assert_eq!(signer(&ring, now), signs, "{now}");
        }
    }

    #[test]
    fn a_key_is_published_before_it_signs_and_until_its_last_token_has_ended() {
        let ring = Ring::new(vec![key(1_000), key(9_000)]);
        for (now, keys) in [
            (0, vec![1_000, 9_000]),
            (9_000, vec![1_000, 9_000]),
            (9_000 + PUBLISHED_AFTER_SECONDS, vec![1_000, 9_000]),
            (9_001 + PUBLISHED_AFTER_SECONDS, vec![9_000]),
            (u64::MAX, vec![9_000]),
        ] {
            assert_eq!(published(&ring, now), keys, "{now}");
        }
    }

    #[test]
    fn the_same_key_twice_is_one() {
        let pem = SigningKey::generate().unwrap();
        let at = |moment| Arc::new(SigningKey::from_pem(&pem, moment, "test").unwrap());
        let ring = Ring::new(vec![at(2_000), at(1_000)]);
        assert_eq!(published(&ring, 0), [1_000]);
    }

    #[test]
    fn what_a_key_signs_is_verified_by_what_it_publishes() {
        let key = key(0);
        let token = key.sign(Kind::Sync, &json!({ "a": 1 })).unwrap();
        let jws = Jws::parse(token.expose(), Kind::Sync).unwrap();
        assert_eq!(jws.kid.as_deref(), Some(key.kid()));
        assert_eq!(jws.claims(&key.public()).unwrap().get(), r#"{"a":1}"#);
        assert_eq!(jws.claims(&self::key(0).public()).unwrap_err(), Unverified::Signature);
        let published = key.published();
        assert_eq!(
            (&published["alg"], &published["kid"]),
            (&json!("ES256"), &json!(key.kid()))
        );
        assert!(published.get("d").is_none());
    }

    #[test]
    fn a_kid_is_the_thumbprint_of_rfc_7638() {
        // sha256 of {"crv":"P-256","kty":"EC","x":"eA","y":"eQ"}
        let jwk = Jwk {
            crv: "P-256",
            kty: "EC",
            x: "eA".to_owned(),
            y: "eQ".to_owned(),
        };
        let text = br#"{"crv":"P-256","kty":"EC","x":"eA","y":"eQ"}"#;
        let hash = ring::digest::digest(&ring::digest::SHA256, text);
        assert_eq!(thumbprint(&jwk).unwrap(), hash.as_ref());
    }

    #[test]
    fn keys_of_both_forms_are_read_and_others_refused_without_showing_them() {
        let pem = SigningKey::generate().unwrap();
        let key = SecretKey::from_pkcs8_pem(pem.expose()).unwrap();
        let sec1 = key.to_sec1_pem(LineEnding::LF).unwrap().to_string();
        let of = |text: &str| SigningKey::from_pem(&Secret::from(text.to_owned()), 0, "issuer.key");
        let kid = of(pem.expose()).unwrap().kid().to_owned();
        assert_eq!(of(&sec1).unwrap().kid(), kid);
        assert_eq!(of(&pem.expose().replace('\n', "\\n")).unwrap().kid(), kid);
        let public = of(pem.expose()).unwrap().public_pem().unwrap();
        let cut = &pem.expose()[..pem.expose().len() / 2];
        for text in ["", "hunter2", cut, public.as_str()] {
            let error = of(text).unwrap_err();
            assert!(
                error.to_string().starts_with("issuer.key holds no signing key"),
                "{error}"
            );
            assert!(text.is_empty() || !format!("{error:?}{error}").contains(text));
        }
        assert!(!format!("{:?}", of(pem.expose()).unwrap()).contains("PRIVATE"));
    }

    #[test]
    fn a_file_is_named_after_a_moment() {
        assert_eq!(moment_from_name("19700101T000010Z.pem"), Some(10));
        assert_eq!(
            moment_from_name(&format!("{}.pem", moment_text(1_800_000_000))),
            Some(1_800_000_000)
        );
        for name in [
            "key.pem",
            "19700101T000010Z",
            "19701301T000010Z.pem",
            "19700101T000010Z.pem.tmp",
            "1.pem",
        ] {
            assert_eq!(moment_from_name(name), None, "{name}");
        }
    }
}
