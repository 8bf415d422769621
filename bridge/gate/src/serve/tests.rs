use serde_json::json;

use super::*;
use crate::access::Verified;
use crate::access::tests::{ISSUER, claims};

/// Takes a token for its claims.
#[derive(Debug)]
struct Trusting;

impl Verifier for Trusting {
    fn claims<'a>(&'a self, token: &'a str) -> Verified<'a> {
        Box::pin(async move { Ok(token.to_owned()) })
    }
}

fn gate() -> Arc<Gate> {
    let config = json!({
        "spacetimedb_uri": "http://127.0.0.1:9", "database": "lane", "issuer": ISSUER, "behind_proxy": false,
        "bridge_token": "a-credential-of-the-gate", "address_failures_per_second": 1, "address_failures_burst": 1,
    });
    let config = serde_json::from_value(config).unwrap();
    let gate = Gate::new(config, &Transport::default(), Arc::new(Trusting));
    gate.revoked(HashSet::new(), Instant::now());
    Arc::new(gate)
}

#[tokio::test]
async fn a_token_that_has_expired_is_no_failure_of_its_address() {
    let (gate, origin) = (gate(), Origin::of([10, 0, 0, 1].into()));
    let now = unix_now().as_secs();
    let told = async |field: &str, value| {
        let mut headers = HeaderMap::new();
        let bearer = format!("Bearer {}", claims(now, &[(field, value)]));
        headers.insert(AUTHORIZATION, bearer.parse().unwrap());
        match gate.caller(&headers, &origin).await {
            Ok(_) => None,
            Err(No::Token(_, refusal)) => Some(refusal.code),
            Err(_) => Some(RefusalCode::RateLimited),
        }
    };
    for _ in 0..5 {
        assert_eq!(told("exp", json!(now - 1)).await, Some(RefusalCode::TokenExpired));
    }
    assert_eq!(told("aud", json!("other")).await, Some(RefusalCode::InvalidToken));
    assert_eq!(told("exp", json!(now - 1)).await, Some(RefusalCode::RateLimited));
}

#[tokio::test]
async fn one_who_says_nothing_does_not_keep_the_operator_waiting() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(operator::serve(gate(), listener));
    let silent = TcpStream::connect(at).await.unwrap();
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream
        .write_all(b"GET /readyz HTTP/1.1\r\nhost: h\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("knows_revocations"),
        "{answer}"
    );
    drop(silent);
}
