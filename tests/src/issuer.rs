//! An issuer of tokens in this process: it publishes its key as OIDC asks for, and signs whatever a test wants signed.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use p256::SecretKey;
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, LineEnding};
use serde_json::{Value, json};
use spacetime_sync_proto::access::{AUDIENCE, CLAIMS_VERSION, SERVICE_SUBJECT};
use spacetime_sync_proto::contract::{PROTOCOL, SCHEMA_VERSION};
use tokio::net::TcpListener;

/// A build id that every window of the tests serves.
pub const BUILD: &str = "20261101T000000Z";

/// See the module.
pub struct Issuer {
    /// `iss`
    pub url: String,
    key: SecretKey,
    counter: std::sync::atomic::AtomicU64,
}

impl Issuer {
    /// Begins to publish a new key.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let key = new_key();
        let discovery = json!({ "issuer": url, "jwks_uri": format!("{url}/keys") });
        let point = key.public_key().to_encoded_point(false);
        let coordinate = |bytes: Option<&p256::FieldBytes>| bytes.map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
        let keys = json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": KID,
            "x": coordinate(point.x()), "y": coordinate(point.y()),
        }] });
        let app = Router::new()
            .route("/.well-known/openid-configuration", get(async move || Json(discovery)))
            .route("/keys", get(async move || Json(keys)));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self {
            url,
            key,
            counter: 0.into(),
        })
    }

    /// The claims of a session's token that is good for five minutes, to be changed by a test.
    pub fn claims(&self, user: &str, session: &str, streams: &[&str]) -> Value {
        let token = self.counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let now = now();
        json!({
            "iss": self.url, "aud": AUDIENCE, "sub": format!("user:{user}/session:{session}"),
            "iat": now, "nbf": now, "exp": now + 300, "jti": format!("sync_{token}"),
            "oa_user_id": user, "oa_session_id": session, "oa_device_id": format!("device-of-{session}"),
            "oa_sync_scopes": ["sync.subscribe", "sync.checkpoint.write", "runtime.run_events"],
            "oa_sync_topics": [], "oa_sync_streams": streams, "oa_claims_version": CLAIMS_VERSION,
            "oa_client_surface": "desktop", "oa_client_build_id": BUILD,
            "oa_protocol_version": PROTOCOL, "oa_schema_version": SCHEMA_VERSION,
        })
    }

    /// The claims of the bridge's own token.
    pub fn service(&self) -> Value {
        let mut claims = self.claims("bridge", "bridge", &[]);
        claims["sub"] = json!(SERVICE_SUBJECT);
        claims["oa_sync_scopes"] = json!(["sync.append"]);
        claims
    }

    /// Signs.
    pub fn sign(&self, claims: &Value) -> String {
        sign(&self.key, KID, claims)
    }

    /// Signs with a key that is not published, and says it is.
    pub fn forge(&self, claims: &Value) -> String {
        sign(&new_key(), KID, claims)
    }

    /// Signs, and names a key that there is not.
    pub fn sign_as(&self, kid: &str, claims: &Value) -> String {
        sign(&self.key, kid, claims)
    }

    /// Not signed at all, and says so.
    pub fn unsigned(&self, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!(
            "{}.{}.",
            part(&json!({ "alg": "none", "typ": "JWT", "kid": KID })),
            part(claims)
        )
    }

    /// Signed by a secret that is no secret: the published key.
    pub fn sign_with_public_key(&self, claims: &Value) -> String {
        let pem = self
            .key
            .public_key()
            .to_public_key_pem(LineEnding::LF)
            .unwrap_or_else(|error| panic!("{error}"));
        let header = Header {
            kid: Some(KID.to_owned()),
            ..Header::new(Algorithm::HS256)
        };
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(pem.as_bytes()))
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

const KID: &str = "first";

fn new_key() -> SecretKey {
    SecretKey::from_slice(&rand::random::<[u8; 32]>()).unwrap_or_else(|_| new_key())
}

fn sign(key: &SecretKey, kid: &str, claims: &Value) -> String {
    let pem = key
        .to_pkcs8_pem(LineEnding::LF)
        .unwrap_or_else(|error| panic!("{error}"));
    let header = Header {
        kid: Some(kid.to_owned()),
        ..Header::new(Algorithm::ES256)
    };
    let key = EncodingKey::from_ec_pem(pem.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    jsonwebtoken::encode(&header, claims, &key).unwrap_or_else(|error| panic!("{error}"))
}

/// Unix seconds.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
