use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use serde_json::{Value, json};
use spacetime_sync_proto::StreamId;
use spacetime_sync_proto::access::Scope;

use super::*;
use crate::error::ErrorClass;

const SESSION: &str = "very-secret-session";
const TOKEN: &str = "very-secret-token";

/// A bridge that answers one request. Its thread returns the request.
fn bridge(answer: impl Into<Vec<u8>>) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let answer = answer.into();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut request, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            let read = stream.read(&mut chunk).unwrap();
            request.extend_from_slice(&chunk[..read]);
            let text = String::from_utf8_lossy(&request).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().unwrap())
            });
            if body.len() >= length.unwrap_or(0) {
                // The client may hang up early.
                let _ = stream.write_all(&answer);
                return text;
            }
        }
    });
    (address, served)
}

fn answer(status: &str, headers: &[(&str, &str)], body: &str) -> String {
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!(
        "HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn wanted() -> WantedToken {
    let client = ClientVersion {
        client_build_id: "20261101T000000Z".to_owned(),
        protocol_version: "spacetime.sync.v1".to_owned(),
        schema_version: 12,
        oldest_schema_version: Some(11),
        surface: "desktop".to_owned(),
    };
    let streams = [StreamId::new("runtime.run.42.events").unwrap()];
    WantedToken::new(client, &streams, vec![Scope::Subscribe, Scope::CheckpointWrite])
}

fn tokens(bridge: &str) -> HttpTokens {
    HttpTokens::new(bridge, || async { Ok(format!("{SESSION}\n")) }).unwrap()
}

async fn asked(answer: impl Into<Vec<u8>>) -> Result<AccessToken, TokenError> {
    let (address, served) = bridge(answer);
    let token = tokens(&address).token(wanted()).await;
    served.join().unwrap();
    for shown in [format!("{token:?}"), format!("{:?}", tokens(&address))] {
        assert!(!shown.contains("very-secret"), "{shown}");
    }
    token
}

fn response() -> Value {
    json!({
        "token": TOKEN, "token_type": "Bearer", "transport": "spacetime_ws",
        "protocol_version": "spacetime.sync.v1", "expires_in": 300, "refresh_after_in": 270, "issued_at": 1,
        "refresh_after": 271, "expires_at": 301, "issuer": "https://sync.example", "audience": "openagents-sync",
        "subject": "user:7/session:s1", "org_id": null, "claims_version": "oa_sync_claims_v1",
        "scopes": ["sync.subscribe"], "granted_topics": [], "granted_streams": ["runtime.run.42.events"],
        "kid": "k", "token_id": "sync_1", "session_id": "s1", "device_id": "d1",
        "seal_keys": [{"kid": "k1", "kty": "EC", "crv": "P-256", "x": "eA", "y": "eQ"}],
    })
}

fn refusal(code: &str) -> String {
    json!({"code": code, "message": "no", "retryable": false}).to_string()
}

#[tokio::test]
async fn a_request_for_a_token_carries_the_session_and_the_client_version() {
    let (address, served) = bridge(answer("200 OK", &[], &response().to_string()));
    let provider = tokens(&format!("{address}/"))
        .ttl(Duration::from_secs(60))
        .device_id("d1");
    let token = provider.token(wanted()).await.unwrap();
    assert_eq!(token.token, TOKEN);
    assert_eq!(token.refresh_after, Duration::from_secs(270));
    assert_eq!(token.expires_in, Duration::from_secs(300));
    assert_eq!(token.granted_streams[0].to_string(), "runtime.run.42.events");
    assert_eq!(token.session_id.as_deref(), Some("s1"));
    assert_eq!(token.seal_keys[0].kid, "k1");

    let request = served.join().unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /api/sync/token HTTP/1.1\r\n"), "{head}");
    for header in [
        "authorization: Bearer very-secret-session",
        "x-oa-client-build-id: 20261101T000000Z",
        "x-oa-protocol-version: spacetime.sync.v1",
        "x-oa-schema-version: 12",
        "x-oa-oldest-schema-version: 11",
        "x-oa-client-surface: desktop",
    ] {
        assert!(head.lines().any(|line| line == header), "{header}: {head}");
    }
    let body: TokenRequest = serde_json::from_str(body).unwrap();
    assert_eq!(
        body,
        TokenRequest {
            scopes: ["sync.subscribe", "sync.checkpoint.write", "runtime.run_events"]
                .map(str::to_owned)
                .to_vec(),
            streams: vec!["runtime.run.42.events".to_owned()],
            topics: Vec::new(),
            ttl_seconds: Some(60),
            device_id: Some("d1".to_owned()),
        }
    );
}

#[tokio::test]
async fn answers_of_the_bridge_are_told_apart() {
    use spacetime_sync_proto::refusal::RefusalClass::*;
    for (status, body, class, code) in [
        ("401 Unauthorized", refusal("unauthorized"), Fatal, Some("unauthorized")),
        (
            "401 Unauthorized",
            refusal("token_revoked"),
            Fatal,
            Some("token_revoked"),
        ),
        // The session credential has ended: the application may have a new one by the next attempt.
        (
            "401 Unauthorized",
            refusal("token_expired"),
            Retry,
            Some("token_expired"),
        ),
        ("401 Unauthorized", String::new(), Fatal, Some("unauthorized")),
        ("403 Forbidden", refusal("forbidden"), Fatal, Some("forbidden")),
        ("403 Forbidden", refusal("made_up"), Fatal, Some("forbidden")),
        ("403 Forbidden", refusal("missing_scope"), Reject, Some("missing_scope")),
        (
            "422 Unprocessable Entity",
            refusal("invalid_scope"),
            Fatal,
            Some("invalid_scope"),
        ),
        (
            "422 Unprocessable Entity",
            "{".to_owned(),
            Fatal,
            Some("invalid_request"),
        ),
        (
            "429 Too Many Requests",
            refusal("rate_limited"),
            Retry,
            Some("rate_limited"),
        ),
        ("429 Too Many Requests", String::new(), Retry, None),
        ("404 Not Found", refusal("not_found"), Fatal, Some("not_found")),
        ("404 Not Found", "<html>".to_owned(), Retry, None),
        ("302 Found", String::new(), Retry, None),
        ("500 Internal Server Error", refusal("forbidden"), Retry, None),
        ("502 Bad Gateway", "<html>".to_owned(), Retry, None),
        (
            "503 Service Unavailable",
            refusal("sync_token_unavailable"),
            Retry,
            Some("sync_token_unavailable"),
        ),
        ("200 OK", "{}".to_owned(), Retry, None),
        ("200 OK", "token".to_owned(), Retry, None),
        ("426 Upgrade Required", String::new(), Fatal, Some("upgrade_required")),
    ] {
        let error = asked(answer(status, &[], &body)).await.unwrap_err();
        let found = match &error {
            TokenError::Refused { refusal, .. } => serde_json::to_value(refusal.code).unwrap(),
            TokenError::Unavailable { .. } => Value::Null,
            TokenError::Incompatible(_) => panic!("{status}: {error:?}"),
        };
        assert_eq!((error.class(), found.as_str()), (class, code), "{status} {body}");
    }
}

#[tokio::test]
async fn how_long_to_wait_is_read_from_body_or_header() {
    let body = json!({"code": "rate_limited", "message": "", "retryable": true, "retry_after_ms": 1500}).to_string();
    let error = asked(answer("429 Too Many Requests", &[("retry-after", "7")], &body))
        .await
        .unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_millis(1_500)));
    let error = asked(answer("503 Service Unavailable", &[("retry-after", "7")], ""))
        .await
        .unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    let error = asked(answer("503 Service Unavailable", &[("retry-after", "tomorrow")], ""))
        .await
        .unwrap_err();
    assert_eq!(error.retry_after(), None);
}

/// What a client hears whose version is not served: once by the body, and once by headers alone.
async fn not_served(code: &str, upgrade_required: bool) -> [Incompatible; 2] {
    let body = json!({
        "code": code, "message": "not served", "retryable": false, "upgrade_required": upgrade_required,
        "surface": "desktop", "min_client_build_id": "20270101T000000Z", "min_schema_version": 1,
        "max_schema_version": 2, "protocol_version": "spacetime.sync.v1",
    });
    let flag = upgrade_required.to_string();
    let by_headers = [
        (headers::CODE, code),
        (headers::UPGRADE_REQUIRED, &*flag),
        (headers::MIN_CLIENT_BUILD_ID, "20270101T000000Z"),
        (headers::MIN_SCHEMA_VERSION, "1"),
        (headers::MAX_SCHEMA_VERSION, "2"),
        (headers::SERVED_PROTOCOL_VERSION, "spacetime.sync.v1"),
    ];
    let heard = async |answer: String| match asked(answer).await {
        Err(TokenError::Incompatible(found)) => *found,
        other => panic!("expected an incompatible build, not {other:?}"),
    };
    [
        heard(answer("426 Upgrade Required", &[], &body.to_string())).await,
        heard(answer("426 Upgrade Required", &by_headers, "<html>")).await,
    ]
}

#[tokio::test]
async fn an_unsupported_build_learns_it_from_body_or_headers() {
    for found in not_served("upgrade_required", true).await {
        assert_eq!(found.code, RefusalCode::UpgradeRequired);
        assert!(found.upgrade_required && !found.retryable);
        assert_eq!(found.min_client_build_id, "20270101T000000Z");
        assert_eq!(found.max_client_build_id, None);
        assert_eq!(found.max_schema_version, 2);
    }
}

#[tokio::test]
async fn a_code_of_a_later_release_loses_nothing_that_stands_beside_it() {
    for upgrade_required in [true, false] {
        for found in not_served("unsupported_weather", upgrade_required).await {
            assert_eq!(
                (found.code, found.upgrade_required),
                (RefusalCode::UpgradeRequired, upgrade_required)
            );
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_too_long_or_has_no_usable_token_is_refused() {
    let long = answer("200 OK", &[], &"x".repeat(ANSWER_BYTES + 1));
    // Without a length, until the connection ends.
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(ANSWER_BYTES * 2));
    let mut wrong = vec![long, endless];
    for (field, value) in [("token", json!("a\nb")), ("token", json!("")), ("expires_in", json!(0))] {
        let mut body = response();
        body[field] = value;
        wrong.push(answer("200 OK", &[], &body.to_string()));
    }
    for answer in wrong {
        let error = asked(answer).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Retry, "{error}");
    }
}

#[tokio::test]
async fn a_bridge_that_is_unreachable_or_hangs_up_is_asked_again() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = tokens(&format!("http://{closed}")).token(wanted()).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Retry);
    let error = asked("").await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Retry);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let location = format!("http://{}/", elsewhere.local_addr().unwrap());
    asked(answer("307 Temporary Redirect", &[("location", location.as_str())], ""))
        .await
        .unwrap_err();
    assert!(elsewhere.accept().is_err(), "the session credential was sent elsewhere");
}

#[tokio::test]
async fn the_application_classifies_a_missing_session_credential() {
    for (session, class) in [
        (Err(TokenError::unavailable("the file is gone")), ErrorClass::Retry),
        (
            Err(TokenError::refused(RefusalCode::Unauthorized, "signed out")),
            ErrorClass::Fatal,
        ),
        (Ok(" \n".to_owned()), ErrorClass::Retry),
        (Ok("two words".to_owned()), ErrorClass::Retry),
    ] {
        let provider = HttpTokens::new("http://127.0.0.1:1", move || std::future::ready(session.clone())).unwrap();
        assert_eq!(provider.token(wanted()).await.unwrap_err().class(), class);
    }
}

#[test]
fn a_credential_goes_in_plaintext_to_this_machine_alone() {
    let made = |transport: Transport| HttpTokens::over(transport, "http://bridge:7070", || async { Ok(String::new()) });
    let refused = made(Transport::default()).unwrap_err();
    assert!(matches!(refused, ConfigError::Plaintext(_)), "{refused}");
    assert!(made(Transport::default().allow_plaintext(true)).is_ok());
}

#[test]
fn an_invalid_bridge_address_is_refused() {
    for wrong in ["", "bridge", "ftp://bridge", "http://bridge/?x=1&y=", "http://"] {
        let made = HttpTokens::new(wrong, || async { Ok(String::new()) });
        assert!(made.is_err(), "{wrong:?}");
    }
    let shown = format!("{:?}", tokens("https://user:very-secret@bridge"));
    assert!(!shown.contains("very-secret"), "{shown}");
}
