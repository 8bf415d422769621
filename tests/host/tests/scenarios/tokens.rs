//! Tokens: the host's own, and those of an issuer whose keys the host fetches.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use p256::SecretKey;
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::pkcs8::{EncodePrivateKey as _, LineEnding};
use reqwest::Method;
use serde_json::{Value, json};
use spacetimedb_lib::Identity;
use tokio::net::TcpListener;

use crate::support::{Gone, Host, Person, Socket, send};

/// An OIDC issuer in this process.
struct Issuer {
    url: String,
    key: SecretKey,
}

impl Issuer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let key = new_key();
        let discovery = json!({ "issuer": url, "jwks_uri": format!("{url}/keys") });
        let point = key.public_key().to_encoded_point(false);
        let coordinate = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let keys = json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "first",
            "x": coordinate(point.x().unwrap()), "y": coordinate(point.y().unwrap()),
        }] });
        let app = Router::new()
            .route("/.well-known/openid-configuration", get(async move || Json(discovery)))
            .route("/keys", get(async move || Json(keys)));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, key }
    }

    fn person(&self, subject: &str) -> Person {
        let token = sign(
            &self.key,
            &json!({ "iss": self.url, "sub": subject, "iat": now(), "exp": now() + 600 }),
        );
        Person {
            identity: Identity::from_claims(&self.url, subject),
            token,
        }
    }
}

fn new_key() -> SecretKey {
    SecretKey::from_slice(&rand::random::<[u8; 32]>()).expect("a random number below the order of the curve")
}

fn sign(key: &SecretKey, claims: &Value) -> String {
    let pem = key.to_pkcs8_pem(LineEnding::LF).unwrap();
    let header = Header {
        kid: Some("first".into()),
        ..Header::new(Algorithm::ES256)
    };
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_ec_pem(pem.as_bytes()).unwrap()).unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims_of(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn an_issuers_token_is_checked_against_its_published_key() {
    let (_dir, host, owner) = Host::with_demo().await;
    let issuer = Issuer::start().await;
    let ann = issuer.person("ann");
    host.call("demo", "introduce", json!([]), &ann).await.ok();
    let guests = host.rows("demo", "SELECT * FROM guest", &owner).await;
    assert_eq!(guests[0][0], json!([format!("0x{}", ann.identity)]));
    // The module sees the claims as they were signed.
    let seen: Value = serde_json::from_str(guests[0][1].as_str().unwrap()).unwrap();
    assert_eq!(seen, claims_of(&ann.token));
    let mut socket = Socket::open(&host, "demo", &ann).await;
    assert_eq!(socket.call("add_diary", &(1_u64, "ann's".to_owned())).await, Ok(()));
    assert_eq!(host.rows("demo", "SELECT id FROM diary", &ann).await, json!([[1]]));
}

#[tokio::test]
async fn tokens_not_signed_by_the_issuer_are_refused() {
    let (_dir, host, _) = Host::with_demo().await;
    let issuer = Issuer::start().await;
    let good = json!({ "iss": issuer.url, "sub": "ann", "iat": now(), "exp": now() + 600 });
    let with = |key: &str, value: Value| {
        let mut claims = good.clone();
        claims[key] = value;
        claims
    };
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (why, token) in [
        ("another key", sign(&new_key(), &good)),
        ("expired", sign(&issuer.key, &with("exp", json!(now() - 300)))),
        (
            "an issuer that does not answer",
            sign(&issuer.key, &with("iss", json!(format!("http://{nobody}")))),
        ),
        (
            "the host's own name",
            sign(&issuer.key, &with("iss", json!("localhost"))),
        ),
        ("no subject", sign(&issuer.key, &with("sub", json!("")))),
        ("not a token", "a.b.c".to_owned()),
    ] {
        let person = Person {
            identity: Identity::ZERO,
            token,
        };
        let answer = host.call("demo", "introduce", json!([]), &person).await;
        assert_eq!(answer.status, 401, "{why}: {}", answer.text);
    }
    let basic = host
        .request(Method::GET, "/v1/database/demo", None)
        .header("authorization", "Basic eDp5");
    assert_eq!(send(basic).await.status, 400);
}

#[tokio::test]
async fn a_module_may_refuse_a_caller() {
    let (_dir, host, _) = Host::with_demo().await;
    let unwelcome = Issuer::start().await.person("unwelcome");
    let refused = host.call("demo", "introduce", json!([]), &unwelcome).await;
    assert_eq!(refused.pair(), (403, "you are not welcome here"));
    let path = "/v1/database/demo/subscribe?compression=None";
    let protocol = spacetimedb_client_api_messages::websocket::v2::BIN_PROTOCOL;
    let mut socket = Socket::try_open(&host, path, protocol, &unwelcome).await.unwrap();
    assert!(matches!(socket.end().await, Gone::Lost | Gone::Closed { .. }));
}

#[tokio::test]
async fn a_caller_without_a_token_gets_a_new_identity() {
    let (_dir, host, _) = Host::with_demo().await;
    let request = host
        .request(Method::POST, "/v1/database/demo/call/introduce", None)
        .json(&json!([]));
    let response = request.send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    let person = Person {
        identity: Identity::from_hex(header("spacetime-identity")).unwrap(),
        token: header("spacetime-identity-token"),
    };
    // The caller can return with the same identity.
    assert_eq!(
        host.rows("demo", "SELECT * FROM guest", &person).await[0][0],
        json!([format!("0x{}", person.identity)])
    );
}

#[tokio::test]
async fn a_websocket_token_is_short_lived_and_keeps_the_identity() {
    let (_dir, host, _) = Host::with_demo().await;
    let ann = Issuer::start().await.person("ann");
    let path = "/v1/identity/websocket-token";
    assert_eq!(send(host.request(Method::POST, path, None)).await.status, 401);
    let answer = send(host.request(Method::POST, path, Some(&ann))).await.ok().json();
    let token = answer["token"].as_str().unwrap().to_owned();
    let claims = claims_of(&token);
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 60);
    assert_eq!(claims["iss"], claims_of(&ann.token)["iss"]);

    // In the URL, as a browser would send it.
    let path = format!("/v1/database/demo/call/add_diary?token={token}");
    send(host.request(Method::POST, &path, None).json(&json!([1, "ann's"])))
        .await
        .ok();
    assert_eq!(host.rows("demo", "SELECT id FROM diary", &ann).await, json!([[1]]));
}

#[tokio::test]
async fn the_hosts_public_key_checks_its_tokens() {
    let (_dir, host, owner) = Host::with_demo().await;
    let pem = host.get("/v1/identity/public-key", None).await.ok().text;
    let key = jsonwebtoken::DecodingKey::from_ec_pem(pem.as_bytes()).unwrap();
    let mut validation = jsonwebtoken::Validation::new(Algorithm::ES256);
    validation.validate_aud = false;
    validation.validate_exp = false;
    validation.required_spec_claims.clear();
    let claims = jsonwebtoken::decode::<Value>(&owner.token, &key, &validation)
        .unwrap()
        .claims;
    assert_eq!(claims["hex_identity"], json!(owner.identity.to_hex().to_string()));
    let age = Duration::from_secs(now().saturating_sub(claims["iat"].as_u64().unwrap()));
    assert!(age < crate::support::DEADLINE);
}
