//! Verifies who asks for a token: a session credential of the runtime, signed by the runtime's own issuer.
//!
//! A credential never appears in a log line or an error, the sender never chooses the algorithm, and no claim is
//! guessed.

mod jwks;

use std::path::{Path, PathBuf};
use std::time::Duration;

use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::pkcs8::DecodePublicKey as _;
use p256::pkcs8::spki::{Error as SpkiError, SubjectPublicKeyInfoRef};
use serde::Deserialize;
use spacetime_sync_proto::access::SyncClaims;
use spacetime_sync_proto::{Label, RefusalCode};
use spacetime_sync_transport::{TlsError, Transport};

use super::denial::Denial;
use super::json::object;
use super::jws::{Jws, Kind, PublicKey, Unverified};
use super::settings::SessionsConfig;
use jwks::RemoteKeys;
pub use jwks::published_keys;

/// How far clocks may differ.
pub const LEEWAY_SECONDS: u64 = 60;
/// Most audiences of one credential.
const AUDIENCES: usize = 16;
/// Largest file of a public key.
const KEY_BYTES: u64 = 16 * 1024;

/// A session, as its credential describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// `sub`
    pub user_id: Label,
    /// `sid` or `session_id`
    pub session_id: Label,
    /// `org_id`
    pub org_id: Option<Label>,
    /// `device_id`
    pub device_id: Option<Label>,
    /// `iat`
    pub issued_at: u64,
    /// `exp`
    pub expires_at: u64,
}

/// Why a credential is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What its holder is told.
    pub denial: Denial,
    /// Whose it is, if it is signed and for this bridge.
    pub session_id: Option<Label>,
}

impl From<Denial> for Refused {
    fn from(denial: Denial) -> Self {
        Self {
            denial,
            session_id: None,
        }
    }
}

/// Verifies session credentials.
#[derive(Debug)]
pub struct SessionVerifier {
    issuer: String,
    audience: String,
    fixed: Vec<PublicKey>,
    remote: Option<RemoteKeys>,
}

/// Why a file yields no public key.
#[derive(Debug, thiserror::Error)]
pub enum PublicKeyError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The certificates for the key set cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The file does not hold a public key.
    #[error("{} holds no public key: expected one PUBLIC KEY in PEM, of P-256, or RSA of 2048 to 8192 bits", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
}

impl SessionVerifier {
    /// Reads the keys that the configuration names.
    pub fn new(config: &SessionsConfig) -> Result<Self, PublicKeyError> {
        let transport = config.transport()?;
        let fixed: Result<Vec<_>, _> = config.public_keys.iter().map(|path| read_key(path)).collect();
        Ok(Self {
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            fixed: fixed?,
            remote: config.jwks_url.as_deref().map(|url| RemoteKeys::new(url, &transport)),
        })
    }

    /// Returns the session of a credential, or why the credential is refused.
    pub async fn verify(&self, token: &str, now: u64) -> Result<Session, Refused> {
        let jws = Jws::parse(token, Kind::Session).map_err(Denial::from)?;
        let mut by_fixed = self.fixed.iter().map(|key| jws.claims(key));
        let judged = by_fixed.find(|read| !matches!(read, Err(Unverified::Signature)));
        let read = match (judged, &self.remote) {
            (Some(read), _) => read,
            (None, Some(remote)) => {
                let key = remote.key(jws.kid.as_deref(), jws.algorithm()).await?;
                key.map_or(Err(Unverified::Signature), |key| jws.claims(&key))
            }
            (None, None) => Err(Unverified::Signature),
        };
        let claims = read.map_err(|unverified| match unverified {
            Unverified::Signature => {
                Denial::invalid_token("the credential is not signed by an issuer that this bridge trusts")
            }
            Unverified::Claims => malformed(),
        })?;
        self.check(claims.get(), now)
    }

    /// Checks signed claims. Their types are strict: a time is a whole number, a name is a valid label.
    fn check(&self, claims: &str, now: u64) -> Result<Session, Refused> {
        let claims: Claims = object(claims.as_bytes()).map_err(|_| malformed())?;
        let session_id = match (&claims.sid, &claims.session_id) {
            (Some(sid), Some(other)) if sid != other => return Err(malformed().into()),
            (Some(session_id), _) | (None, Some(session_id)) => session_id.clone(),
            (None, None) => return Err(malformed().into()),
        };
        self.is_for_us(&claims)?;
        let names = SyncClaims::check_names(&claims.sub, &session_id);
        let names = names.map_err(|unusable| Denial::invalid_token(unusable.to_string()));
        let issued_at = match issued_at(&claims, now).and_then(|issued_at| names.map(|()| issued_at)) {
            Ok(issued_at) => issued_at,
            Err(denial) => {
                let session_id = Some(session_id);
                return Err(Refused { denial, session_id });
            }
        };
        Ok(Session {
            user_id: claims.sub,
            session_id,
            org_id: claims.org_id,
            device_id: claims.device_id,
            issued_at,
            expires_at: claims.exp,
        })
    }

    /// Checks whether claims are from the sessions' issuer, and for this bridge.
    fn is_for_us(&self, claims: &Claims) -> Result<(), Denial> {
        if claims.iss != self.issuer {
            return Err(Denial::invalid_token("the credential comes from another issuer"));
        }
        if !claims.aud.holds(&self.audience) {
            return Err(Denial::invalid_token("the credential is for another audience"));
        }
        Ok(())
    }
}

/// Checks whether claims are valid now. Returns when they were signed.
fn issued_at(claims: &Claims, now: u64) -> Result<u64, Denial> {
    let Some(issued_at) = claims.iat else {
        return Err(Denial::new(
            RefusalCode::MissingIat,
            "the credential does not say when it was signed",
        ));
    };
    if claims.exp.saturating_add(LEEWAY_SECONDS) <= now {
        return Err(Denial::new(RefusalCode::TokenExpired, "the credential has expired"));
    }
    let latest = now.saturating_add(LEEWAY_SECONDS);
    if issued_at > latest || claims.nbf.is_some_and(|from| from > latest) {
        return Err(Denial::new(
            RefusalCode::TokenNotYetValid,
            "the credential is not valid yet",
        ));
    }
    Ok(issued_at)
}

/// Verifies sync tokens where the issuer itself does not run: by the keys that it publishes.
#[derive(Debug)]
pub struct TokenVerifier(RemoteKeys);

/// The shortest time between two requests for the keys. Short, because whoever verifies tokens may start before the
/// issuer does.
const KEYS_PAUSE: Duration = Duration::from_secs(2);

impl TokenVerifier {
    /// Verifies by the keys at a url.
    pub fn new(keys_url: &str, transport: &Transport) -> Self {
        Self(RemoteKeys::with_pause(keys_url, transport, KEYS_PAUSE))
    }

    /// The claims of a token that the issuer signed, as JSON.
    pub async fn claims(&self, token: &str) -> Result<String, Denial> {
        let jws = Jws::parse(token, Kind::Sync)?;
        let key = self.0.key(jws.kid.as_deref(), jws.algorithm()).await?;
        let claims = key.and_then(|key| jws.claims(&key).ok());
        let claims = claims.ok_or_else(|| Denial::invalid_token("the token is not signed by the issuer"))?;
        Ok(claims.get().to_owned())
    }
}

fn malformed() -> Denial {
    Denial::invalid_token("the credential's claims are not those of a session: iss, aud, sub, sid, iat, exp")
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    sub: Label,
    exp: u64,
    #[serde(default, deserialize_with = "not_null")]
    iat: Option<u64>,
    #[serde(default, deserialize_with = "not_null")]
    nbf: Option<u64>,
    sid: Option<Label>,
    session_id: Option<Label>,
    org_id: Option<Label>,
    device_id: Option<Label>,
}

/// A field that may be missing, but not `null`.
fn not_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    u64::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn holds(&self, wanted: &str) -> bool {
        match self {
            Self::One(audience) => audience == wanted,
            Self::Many(audiences) => {
                audiences.len() <= AUDIENCES && audiences.iter().any(|audience| audience == wanted)
            }
        }
    }
}

/// The RSA key in a SubjectPublicKeyInfo, in the form of PKCS#1.
struct RsaSpki(Vec<u8>);

impl TryFrom<SubjectPublicKeyInfoRef<'_>> for RsaSpki {
    type Error = SpkiError;
    fn try_from(info: SubjectPublicKeyInfoRef<'_>) -> Result<Self, SpkiError> {
        const RSA_ENCRYPTION: &str = "1.2.840.113549.1.1.1";
        if info.algorithm.oid.to_string() != RSA_ENCRYPTION {
            return Err(SpkiError::OidUnknown {
                oid: info.algorithm.oid,
            });
        }
        Ok(Self(info.subject_public_key.raw_bytes().to_vec()))
    }
}

fn read_key(path: &Path) -> Result<PublicKey, PublicKeyError> {
    let read = |source| PublicKeyError::Read {
        path: path.to_owned(),
        source,
    };
    let length = std::fs::metadata(path).map_err(read)?.len();
    let pem = if length <= KEY_BYTES {
        std::fs::read_to_string(path).map_err(read)?
    } else {
        String::new()
    };
    key_from_pem(&pem).ok_or_else(|| PublicKeyError::NoKey { path: path.to_owned() })
}

fn key_from_pem(pem: &str) -> Option<PublicKey> {
    if let Ok(key) = p256::PublicKey::from_public_key_pem(pem.trim()) {
        return Some(PublicKey::P256(key.to_encoded_point(false).as_bytes().to_vec()));
    }
    let RsaSpki(der) = RsaSpki::from_public_key_pem(pem.trim()).ok()?;
    // Verifying would refuse a shorter key each time; refusing it here names the file.
    let least = 2048 / 8;
    (der.len() > least).then_some(PublicKey::RsaDer(der))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::tests::key;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::{Value, json};
    use spacetime_sync_proto::Secret;
    use std::sync::Arc;

    const NOW: u64 = 1_800_000_000;
    /// A throw-away key of 2048 bits, made with: openssl genpkey -algorithm rsa | openssl pkey -pubout
    const RSA: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAuiUqas5ZGTKKyrtBABSj
K1ODStWewe71aMSQFk8pktDLu2B/Mk/V76FAsERJcibOk8A3tWY/txcer6NNUclW
2XY2gc7Gb7HP2na+7iAbp8atwjnK0uJAw3xfTrz5ukhdbT3yntJP4hhECvJvUDIJ
UigHLk0AkTDVrI87g1HRwstQgCjbwEGz1GNgSwDwLmXQ6WNdmyuD3wr4iIRKaZu4
jO1/bjwz3uNVXXlc7RMopNLN8dStpsnMcLE6EycRyImi3MOjdLoCuuGG86lDDYgu
/EfKAlogs2C0tnoRWoZHO1UI5jTrMWRNQbOYUR7aRnXqMM1Oh8HQ1Wku0/ar8brU
MwIDAQAB
-----END PUBLIC KEY-----";

    fn claims() -> Value {
        json!({
            "iss": "https://app.example", "aud": "runtime-sync", "sub": "7", "sid": "s1",
            "iat": NOW - 100, "nbf": NOW - 100, "exp": NOW + 3_600,
            "org_id": "acme", "device_id": "d1",
        })
    }

    fn verifier(key: &Arc<crate::keys::SigningKey>) -> SessionVerifier {
        SessionVerifier {
            issuer: "https://app.example".to_owned(),
            audience: "runtime-sync".to_owned(),
            fixed: vec![key.public()],
            remote: None,
        }
    }

    async fn verify(change: impl FnOnce(&mut Value)) -> Result<Session, RefusalCode> {
        let key = key(0);
        let mut claims = claims();
        change(&mut claims);
        let token = key.sign(Kind::Session, &claims).unwrap();
        verifier(&key)
            .verify(token.expose(), NOW)
            .await
            .map_err(|Refused { denial, .. }| {
                assert!(!denial.to_string().contains(token.expose()));
                denial.code
            })
    }

    fn without(field: &'static str) -> impl FnOnce(&mut Value) {
        move |claims| drop(claims.as_object_mut().unwrap().remove(field))
    }

    fn with(field: &'static str, value: Value) -> impl FnOnce(&mut Value) {
        move |claims| claims[field] = value
    }

    #[tokio::test]
    async fn a_good_credential_is_a_session() {
        let session = verify(|_| {}).await.unwrap();
        let label = |text| Label::new(text).unwrap();
        assert_eq!((session.user_id, session.session_id), (label("7"), label("s1")));
        assert_eq!(
            (session.org_id, session.device_id),
            (Some(label("acme")), Some(label("d1")))
        );
        for change in [
            ("aud", json!(["other", "runtime-sync"])),
            ("session_id", json!("s1")),
            ("scope", json!("x")),
        ] {
            assert!(verify(with(change.0, change.1)).await.is_ok(), "{}", change.0);
        }
        for field in ["org_id", "device_id", "nbf"] {
            assert!(verify(without(field)).await.is_ok(), "{field}");
        }
    }

    #[tokio::test]
    async fn a_refused_credential_is_a_sessions_only_if_it_is_for_this_bridge() {
        let key = key(0);
        for (field, value, whose) in [
            ("iss", json!("https://other.example"), None),
            ("aud", json!("something-else"), None),
            ("exp", json!(1), Some("s1")),
            ("nbf", json!(NOW + 1_000), Some("s1")),
            ("sub", json!("bridge"), Some("s1")),
        ] {
            let mut claims = claims();
            claims[field] = value;
            let token = key.sign(Kind::Session, &claims).unwrap();
            let refused = verifier(&key).verify(token.expose(), NOW).await.unwrap_err();
            let found = refused.session_id.as_ref().map(Label::as_str);
            assert_eq!(found, whose, "{field}");
        }
    }

    #[tokio::test]
    async fn claims_that_are_missing_or_mistyped_are_refused() {
        for field in ["iss", "aud", "sub", "sid", "exp"] {
            assert_eq!(verify(without(field)).await, Err(RefusalCode::InvalidToken), "{field}");
        }
        assert_eq!(verify(without("iat")).await, Err(RefusalCode::MissingIat));
        for (field, value) in [
            ("iss", json!("https://app.example/")),
            ("iss", json!(["https://app.example"])),
            ("aud", json!("openagents-sync")),
            ("aud", json!([])),
            ("aud", json!(vec!["runtime-sync"; 17])),
            ("sub", json!(7)),
            ("sub", json!("")),
            ("sub", json!("a/b")),
            ("sub", json!("stre\u{430}m")),
            ("sub", json!("x".repeat(129))),
            ("sid", json!(null)),
            ("sid", json!({})),
            ("session_id", json!("another")),
            ("exp", json!("1900000000")),
            ("exp", json!(1_900_000_000.5)),
            ("exp", json!(-1)),
            ("exp", json!(null)),
            ("exp", json!(true)),
            ("exp", json!([1_900_000_000])),
            ("iat", json!("1")),
            ("iat", json!(null)),
            ("nbf", json!("1")),
            ("nbf", json!(null)),
            ("org_id", json!(1)),
            ("device_id", json!("a b")),
        ] {
            assert_eq!(
                verify(with(field, value.clone())).await,
                Err(RefusalCode::InvalidToken),
                "{field}: {value}"
            );
        }
    }

    #[tokio::test]
    async fn names_that_no_session_can_have_are_refused_with_the_reason() {
        let key = key(0);
        let refused = async |user: &str, session: &str| {
            let mut claims = claims();
            claims["sub"] = json!(user);
            claims["sid"] = json!(session);
            let token = key.sign(Kind::Session, &claims).unwrap();
            let denial = verifier(&key).verify(token.expose(), NOW).await.err()?.denial;
            assert_eq!(denial.code, RefusalCode::InvalidToken);
            Some(denial.message.into_owned())
        };
        let (fits, exceeds) = ("u".repeat(112), "u".repeat(113));
        for (user, session, expected) in [
            (
                "7",
                "bridge",
                Some("session: the name bridge is reserved for the bridge itself"),
            ),
            (
                "bridge",
                "s1",
                Some("user: the name bridge is reserved for the bridge itself"),
            ),
            (
                &exceeds,
                "s1",
                Some("expected names of at most 114 bytes together, found 115"),
            ),
            (&fits, "s1", None),
        ] {
            let found = refused(user, session).await;
            let said = found
                .as_deref()
                .zip(expected)
                .is_none_or(|(found, expected)| found.contains(expected));
            assert!(
                found.is_some() == expected.is_some() && said,
                "{user} {session}: {found:?}"
            );
        }
    }

    #[tokio::test]
    async fn times_are_taken_with_a_leeway_and_no_more() {
        for (field, value, expected) in [
            ("exp", NOW - LEEWAY_SECONDS + 1, None),
            ("exp", NOW - LEEWAY_SECONDS, Some(RefusalCode::TokenExpired)),
            ("exp", 0, Some(RefusalCode::TokenExpired)),
            ("exp", u64::MAX, None),
            ("nbf", NOW + LEEWAY_SECONDS, None),
            ("nbf", NOW + LEEWAY_SECONDS + 1, Some(RefusalCode::TokenNotYetValid)),
            ("iat", NOW + LEEWAY_SECONDS, None),
            ("iat", NOW + LEEWAY_SECONDS + 1, Some(RefusalCode::TokenNotYetValid)),
            ("iat", u64::MAX, Some(RefusalCode::TokenNotYetValid)),
        ] {
            assert_eq!(
                verify(with(field, json!(value))).await.err(),
                expected,
                "{field}: {value}"
            );
        }
    }

    #[tokio::test]
    async fn the_algorithm_is_the_keys_and_never_the_senders() {
        let key = key(0);
        let verifier = verifier(&key);
        let good = key.sign(Kind::Session, &claims()).unwrap();
        let (signed, signature) = good.expose().rsplit_once('.').unwrap();
        let (_, payload) = signed.split_once('.').unwrap();
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let PublicKey::P256(point) = key.public() else { panic!() };
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &point);
        let hs256 = format!("{}.{payload}", part(json!({ "alg": "HS256", "typ": "JWT" })));
        let tag = URL_SAFE_NO_PAD.encode(ring::hmac::sign(&secret, hs256.as_bytes()));
        let es256 = json!({ "alg": "ES256", "typ": "JWT" });
        for token in [
            format!("{}.{payload}.", part(json!({ "alg": "none" }))),
            format!("{}.{payload}.{signature}", part(json!({ "alg": "none" }))),
            format!("{}.{payload}.{signature}", part(json!({ "alg": "None", "typ": "JWT" }))),
            format!("{hs256}.{tag}"),
            format!("{}.{payload}.{signature}", part(json!({ "alg": "RS256" }))),
            format!("{}.{payload}.{signature}", part(json!({ "alg": "ES384" }))),
            format!("{}.{payload}.{signature}", part(json!({ "typ": "JWT" }))),
            format!(
                "{}.{payload}.{signature}",
                part(json!({ "alg": "ES256", "typ": "dpop+jwt" }))
            ),
            format!(
                "{}.{payload}.{signature}",
                part(json!({ "alg": "ES256", "crit": ["exp"] }))
            ),
            format!("{}.{payload}.{signature}", part(json!({ "alg": "ES256", "kid": 1 }))),
            // The header is signed, too.
            format!("{}.{payload}.{signature}", part(es256)),
            format!("{signed}."),
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode([0; 64])),
            format!("{signed}.{signature}A"),
            format!("{signed}.{signature}="),
            format!("{signed}.{signature}.x"),
            format!("{signed} .{signature}"),
            signed.to_owned(),
            String::new(),
            "..".to_owned(),
            "a.b.c".to_owned(),
            "x".repeat(1024 * 1024),
        ] {
            let denial = verifier.verify(&token, NOW).await.unwrap_err().denial;
            assert_eq!(
                denial.code,
                RefusalCode::InvalidToken,
                "{}",
                &token[..token.len().min(80)]
            );
        }
        assert!(verifier.verify(good.expose(), NOW).await.is_ok());
        let other = self::key(0).sign(Kind::Session, &claims()).unwrap();
        assert!(verifier.verify(other.expose(), NOW).await.is_err(), "another key");
    }

    #[tokio::test]
    async fn a_megabyte_of_claims_is_not_read() {
        let key = key(0);
        let mut claims = claims();
        claims["more"] = json!("x".repeat(1024 * 1024));
        let token: Secret = key.sign(Kind::Session, &claims).unwrap();
        let denial = verifier(&key).verify(token.expose(), NOW).await.unwrap_err().denial;
        assert_eq!(
            (denial.code, denial.message.as_ref()),
            (RefusalCode::InvalidToken, "the token is too long")
        );
    }

    #[test]
    fn public_keys_are_read_and_nothing_else() {
        let pem = crate::keys::SigningKey::generate().unwrap();
        let public = crate::keys::SigningKey::from_pem(&pem, 0, "test")
            .unwrap()
            .public_pem()
            .unwrap();
        assert!(matches!(key_from_pem(&public), Some(PublicKey::P256(_))));
        assert!(matches!(key_from_pem(RSA), Some(PublicKey::RsaDer(_))));
        assert!(
            key_from_pem(pem.expose()).is_none(),
            "a private key is not for verifying"
        );
        assert!(key_from_pem("").is_none());
    }
}
