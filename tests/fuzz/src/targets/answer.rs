//! The answer of a bridge, or of something in its place, to a client that asks for a token.
//!
//! Properties: an accepted token can be sent and expires within a day; a refusal says what to do.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rand::Rng as _;
use rand::rngs::StdRng;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use spacetime_sync_client::HttpTokens;
use spacetime_sync_client::{ErrorClass, TokenError};
use spacetime_sync_proto::access::{CLAIMS_VERSION, headers};

use crate::mutate;
use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const ANSWER: Entry = Entry {
    name: "answer",
    about: "HttpTokens::read_answer and AccessToken::usable in the client",
    dictionary: &[
        b"200",
        b"401",
        b"426",
        b"429",
        b"503",
        b"retry-after: 7",
        b"retry_after_ms",
        b"expires_in",
        b"refresh_after_in",
        b"token",
        b"granted_streams",
        b"x-oa-compatibility-code: upgrade_required",
        b"18446744073709551615",
        b"<html>",
    ],
    most: 70 * 1024,
    open: || Ok(Box::new(Answers)),
    seeds,
};

struct Answers;

fn read(input: &[u8]) -> Option<(StatusCode, HeaderMap, &[u8])> {
    let end = input.windows(2).position(|two| two == b"\n\n")?;
    let mut lines = input[..end].split(|byte| *byte == b'\n');
    let status = StatusCode::from_bytes(lines.next()?).ok()?;
    let mut answered = HeaderMap::new();
    for line in lines {
        let at = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..at]).ok()?;
        answered.append(name, HeaderValue::from_bytes(line[at + 1..].trim_ascii()).ok()?);
    }
    Some((status, answered, &input[end + 2..]))
}

impl Target for Answers {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let Some((status, answered, body)) = read(input) else {
            return Ok(Verdict::Refused);
        };
        match HttpTokens::read_answer(status, &answered, body) {
            Ok(token) => {
                let Some(token) = token.usable() else {
                    return Ok(Verdict::Refused);
                };
                ensure!(status == StatusCode::OK);
                HeaderValue::from_str(&format!("Bearer {}", token.token)).context("the token cannot be sent")?;
                let day = Duration::from_secs(24 * 60 * 60);
                ensure!(!token.expires_in.is_zero() && token.expires_in <= day && token.refresh_after <= day);
                ensure!(
                    !format!("{token:?}").contains(&token.token) || token.token.len() < 32,
                    "the debug output shows the token"
                );
                Ok(Verdict::Taken)
            }
            Err(error) => {
                let again = error.class() == ErrorClass::Retry;
                // A server in trouble is asked again.
                ensure!(
                    again || !(status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS),
                    "{error}"
                );
                if let TokenError::Incompatible(_) = error {
                    ensure!(status == StatusCode::UPGRADE_REQUIRED && !again);
                    return Ok(Verdict::Taken);
                }
                Ok(Verdict::Refused)
            }
        }
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        let end = input.windows(2).position(|two| two == b"\n\n")?;
        let mut head = input[..end].to_vec();
        if rng.random_bool(0.3) {
            mutate::bytes(rng, &mut head, &[], ANSWER.dictionary, 4_096);
        }
        let body = mutate::json(rng, &input[end + 2..], ANSWER.dictionary)?;
        Some([&head[..], b"\n\n", &body].concat())
    }
}

fn seeds() -> anyhow::Result<Vec<Seed>> {
    let token = json!({
        "token": "aaaa.bbbb.cccc", "token_type": "Bearer", "transport": "spacetime_ws",
        "protocol_version": "spacetime.sync.v1", "expires_in": 300, "refresh_after_in": 270, "issued_at": 1,
        "refresh_after": 271, "expires_at": 301, "issuer": "https://lane.example/sync", "audience": "openagents-sync",
        "subject": "user:7/session:s1", "org_id": null, "claims_version": CLAIMS_VERSION,
        "scopes": ["sync.subscribe"], "granted_topics": [], "granted_streams": ["runtime.run.42.events", "user:7:*"],
        "kid": "k", "token_id": "sync_1", "session_id": "s1", "device_id": "d1",
        "pin": { "database_identity": "c2".repeat(32), "owner_identity": "c3".repeat(32) },
        "seal_keys": [{ "kid": "k", "kty": "EC", "crv": "P-256", "x": "eA", "y": "eQ" }],
    });
    let refusal = |code: &str| json!({ "code": code, "message": "no", "retryable": true, "retry_after_ms": 1_500 });
    let incompatible = json!({
        "code": "upgrade_required", "message": "update", "retryable": false, "upgrade_required": true,
        "surface": "desktop", "min_client_build_id": "20260101T000000Z", "min_schema_version": 1,
        "max_schema_version": 2, "protocol_version": "spacetime.sync.v1",
    });
    let said = format!(
        "{}: upgrade_required\n{}: true\n{}: 20260101T000000Z\n{}: 1\n{}: 2\n{}: spacetime.sync.v1",
        headers::CODE,
        headers::UPGRADE_REQUIRED,
        headers::MIN_CLIENT_BUILD_ID,
        headers::MIN_SCHEMA_VERSION,
        headers::MAX_SCHEMA_VERSION,
        headers::SERVED_PROTOCOL_VERSION,
    );
    Ok(vec![
        Seed::new("token", format!("200\n\n{token}")),
        Seed::new("limited", format!("429\nretry-after: 2\n\n{}", refusal("rate_limited"))),
        Seed::new(
            "revoked",
            format!("401\nwww-authenticate: Bearer\n\n{}", refusal("token_revoked")),
        ),
        Seed::new("unavailable", format!("503\n\n{}", refusal("sync_token_unavailable"))),
        Seed::new("incompatible", format!("426\n\n{incompatible}")),
        Seed::new("incompatible-by-headers", format!("426\n{said}\n\n<html>")),
        Seed::new("proxy", "502\ncontent-type: text/html\n\n<html>Bad Gateway</html>"),
    ])
}
