//! A token issuer in this process. It publishes its key by OIDC discovery and signs whatever a test asks for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use spacetime_sync_issuer::jws::Kind;
use spacetime_sync_issuer::keys::{Ring, SigningKey, now};
use spacetime_sync_proto::access::{AUDIENCE, CLAIMS_VERSION, SERVICE_SUBJECT, TOKEN_TYP};
use spacetime_sync_proto::contract::{PROTOCOL, SCHEMA_VERSION};

use crate::issuing::BUILD;
use crate::stub::Stub;

/// A token issuer; see the module.
#[derive(Debug)]
pub struct Issuer {
    /// `iss`
    pub url: String,
    key: Arc<SigningKey>,
    counter: AtomicU64,
}

impl Issuer {
    /// Starts to publish a new key.
    pub async fn start() -> anyhow::Result<Self> {
        let key = Arc::new(new_key()?);
        let keys = Ring::new(vec![key.clone()]).jwks(now()).to_string();
        let stub = Stub::start(move |asked| match asked.path.as_str() {
            "/keys" => (200, keys.clone()),
            "/.well-known/openid-configuration" => {
                let url = format!("http://{}", asked.host);
                (
                    200,
                    json!({ "issuer": url, "jwks_uri": format!("{url}/keys") }).to_string(),
                )
            }
            _ => (404, "null".to_owned()),
        })
        .await?;
        Ok(Self {
            url: stub.url().to_owned(),
            key,
            counter: 0.into(),
        })
    }

    /// The claims of a session's token that is valid for five minutes. Tests change them as they need.
    pub fn claims(&self, user: &str, session: &str, streams: &[&str]) -> Value {
        let token = self.counter.fetch_add(1, Ordering::Relaxed);
        let now = now();
        json!({
            "iss": self.url, "aud": AUDIENCE, "sub": format!("user:{user}/session:{session}"),
            "iat": now, "nbf": now, "exp": now + 300, "jti": format!("sync_{token}"),
            "oa_user_id": user, "oa_session_id": session, "oa_device_id": format!("device-of-{session}"),
            "oa_sync_scopes": ["sync.subscribe", "sync.checkpoint.write", "sync.presence.serve", "runtime.run_events"],
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

    /// Signs claims with the published key. A token that does not say when in its second it was signed gets a later
    /// microsecond than all before it.
    pub fn sign(&self, claims: &Value) -> String {
        let mut claims = claims.clone();
        let at = self.counter.fetch_add(1, Ordering::Relaxed).min(999_999);
        let signed_at = claims["iat"]
            .as_u64()
            .and_then(|second| second.checked_mul(1_000_000)?.checked_add(at));
        if let (Some(signed_at), None) = (signed_at, claims.get("oa_iat_us")) {
            claims["oa_iat_us"] = json!(signed_at);
        }
        sign(&self.key, &claims)
    }

    /// Signs claims with an unpublished key, under the id of the published one.
    pub fn forge(&self, claims: &Value) -> anyhow::Result<String> {
        let (own, other) = (sign(&self.key, claims), sign(&new_key()?, claims));
        let signature = other.rsplit('.').next().unwrap_or_default();
        Ok(format!("{}.{signature}", signed_part(&own)))
    }

    /// Signs claims with an unpublished key, under its own id.
    pub fn sign_as_nobody(&self, claims: &Value) -> anyhow::Result<String> {
        Ok(sign(&new_key()?, claims))
    }

    /// Claims without a signature (`alg: none`).
    pub fn unsigned(&self, claims: &Value) -> String {
        format!("{}.", self.headed("none", claims))
    }

    /// Claims that are signed by HMAC with the published key as the secret.
    pub fn sign_with_public_key(&self, claims: &Value) -> String {
        let secret = self.key.public_pem().unwrap_or_default();
        let signed = self.headed("HS256", claims);
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
        let signature = ring::hmac::sign(&key, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn headed(&self, algorithm: &str, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({ "alg": algorithm, "typ": TOKEN_TYP, "kid": self.key.kid() });
        format!("{}.{}", part(&header), part(claims))
    }
}

fn new_key() -> anyhow::Result<SigningKey> {
    Ok(SigningKey::from_pem(&SigningKey::generate()?, 0, "test.pem")?)
}

fn sign(key: &SigningKey, claims: &Value) -> String {
    key.sign(Kind::Sync, claims)
        .map(|token| token.expose().to_owned())
        .unwrap_or_default()
}

fn signed_part(token: &str) -> &str {
    token.rsplit_once('.').map_or("", |(signed, _)| signed)
}
