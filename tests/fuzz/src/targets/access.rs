//! The claims of a sync token, which the module judges after SpacetimeDB has checked the signature.
//!
//! Properties: an opened session comes from the issuer, within its time and limits, and all its names and patterns are
//! valid.

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use serde_json::{Value, json};
use spacetime_sync_proto::access::{
    AUDIENCE, CLAIMS_VERSION, Compatibility, SERVICE_NAME, SERVICE_SUBJECT, Scope, StreamPattern, TTL_SECONDS,
};
use spacetime_sync_proto::contract::{PROTOCOL, SCHEMA_VERSION};
use spacetime_sync_proto::limit;
use spacetime_sync_rules::session::{self, Policy, SKEW_SECONDS};

use crate::lane::{ISSUER, NOW};
use crate::mutate;
use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const CLAIMS: Entry = Entry {
    name: "claims",
    about: "session::admit in the module",
    dictionary: DICTIONARY,
    most: 2 * limit::CLAIMS_BYTES,
    open: || Ok(Box::new(Claims)),
    seeds,
};

const DICTIONARY: &[&[u8]] = &[
    b"iss",
    b"aud",
    b"sub",
    b"iat",
    b"nbf",
    b"exp",
    b"jti",
    b"oa_session_id",
    b"oa_sync_scopes",
    b"oa_sync_streams",
    b"service:bridge",
    b"sync.append",
    b"sync.subscribe",
    b"runtime.run.*",
    b"user:7/session:s1",
    b"20261101T000000Z",
    b"spacetime.sync.v1",
    b"1800000060",
];

struct Claims;

/// Serves all build ids in question and all schema versions, so that the corpus outlives the next schema version.
fn compatibility() -> Compatibility {
    Compatibility {
        min_client_build_id: "20260101T000000Z".to_owned(),
        max_client_build_id: "20271231T000000Z".to_owned(),
        min_schema_version: 0,
        max_schema_version: u32::MAX,
    }
}

impl Target for Claims {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        // The host passes text.
        let Ok(text) = std::str::from_utf8(input) else {
            return Ok(Verdict::Refused);
        };
        let policy = Policy {
            issuer: ISSUER.to_owned(),
            audience: AUDIENCE.to_owned(),
            compatibility: compatibility(),
        };
        let claims = session::Claims::read(text);
        let admitted = claims.and_then(|claims| session::admit(claims, &policy, NOW, |name| name.as_str() == "gone"));
        let Ok(session) = admitted else {
            return Ok(Verdict::Refused);
        };
        ensure!(text.len() <= limit::CLAIMS_BYTES);
        let said: Value = serde_json::from_str(text)?;
        let says = |field: &str, expected: &str| said[field].as_str() == Some(expected);
        ensure!(says("iss", ISSUER) && says("aud", AUDIENCE) && says("oa_claims_version", CLAIMS_VERSION));
        ensure!(said["jti"].as_str().is_some_and(|jti| !jti.is_empty()));
        let time = |field: &str| said[field].as_u64().context("the field is not a time");
        let (issued, from, ends) = (time("iat")?, time("nbf")?, time("exp")?);
        ensure!(issued <= NOW + SKEW_SECONDS && from <= NOW + SKEW_SECONDS && ends > NOW);
        ensure!(ends > issued && ends - issued <= *TTL_SECONDS.end());
        ensure!((session.issued_at_us / 1_000_000, session.expires_at) == (issued, ends));
        let service = says("sub", SERVICE_SUBJECT);
        ensure!(session.scopes.contains(&Scope::Append) == service);
        ensure!(session.session_id.as_str() != "gone");
        let subject = format!("user:{}/session:{}", session.user_id, session.session_id);
        ensure!(service || says("sub", &subject));
        let reserved = [&session.user_id, &session.session_id]
            .iter()
            .any(|name| name.as_str() == SERVICE_NAME);
        ensure!(service || (subject.len() <= limit::CLAIMED_NAME_BYTES && !reserved));
        ensure!(said.get("hex_identity").is_none());
        for name in [&session.session_id, &session.user_id, &session.device_id]
            .into_iter()
            .chain(&session.org_id)
        {
            ensure!(
                !name.as_str().is_empty() && name.as_str().len() <= limit::NAME_BYTES && !name.as_str().contains('/')
            );
        }
        ensure!(session.streams.len() <= limit::TOKEN_STREAMS);
        for pattern in &session.streams {
            ensure!(StreamPattern::new(&pattern.to_string()).as_ref() == Ok(pattern));
        }
        Ok(Verdict::Taken)
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        mutate::json(rng, input, DICTIONARY)
    }
}

fn seeds() -> anyhow::Result<Vec<Seed>> {
    let client = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "user:7/session:s1",
        "iat": NOW - 10, "nbf": NOW - 10, "exp": NOW + 290, "jti": "sync_1",
        "oa_user_id": "7", "oa_org_id": "acme", "oa_session_id": "s1", "oa_device_id": "d1",
        "oa_sync_scopes": ["sync.subscribe", "sync.checkpoint.write", "runtime.run_events"],
        "oa_sync_topics": ["run:42:events"],
        "oa_sync_streams": ["runtime.run.42.events", "user:7:*"], "oa_claims_version": CLAIMS_VERSION,
        "oa_client_surface": "desktop", "oa_client_build_id": "20261101T000000Z",
        "oa_protocol_version": PROTOCOL, "oa_schema_version": SCHEMA_VERSION,
    });
    let with = |changes: Value| {
        let mut claims = client.clone();
        for (field, value) in changes.as_object().into_iter().flatten() {
            claims[field] = value.clone();
        }
        serde_json::to_vec(&claims)
    };
    let service = json!({
        "sub": SERVICE_SUBJECT, "oa_sync_scopes": ["sync.append"], "oa_sync_streams": [], "oa_sync_topics": [],
        "oa_client_build_id": "",
    });
    let full: Vec<String> = (0..limit::TOKEN_STREAMS)
        .map(|at| format!("runtime.run.{at}.events"))
        .collect();
    Ok(vec![
        Seed::new("client", with(json!({}))?),
        Seed::new("service", with(service)?),
        Seed::new("full", with(json!({ "oa_sync_streams": full }))?),
        Seed::new("ended", with(json!({ "exp": NOW }))?),
        Seed::new(
            "revoked",
            with(json!({ "sub": "user:7/session:gone", "oa_session_id": "gone" }))?,
        ),
        Seed::new(
            "early",
            with(json!({ "iat": NOW + 60, "nbf": NOW + 60, "exp": NOW + 360 }))?,
        ),
    ])
}
