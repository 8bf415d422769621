use serde_json::json;
use spacetime_sync_proto::contract::{PROTOCOL, SCHEMA_VERSION};

use super::*;

const NOW: u64 = 1_000_000;

fn policy() -> Policy {
    Policy {
        issuer: "https://sync.example".to_owned(),
        audience: "openagents-sync".to_owned(),
        compatibility: Compatibility {
            min_client_build_id: "20260101T000000Z".to_owned(),
            ..Compatibility::default()
        },
    }
}

fn claims() -> Value {
    json!({
        "iss": "https://sync.example", "aud": "openagents-sync", "sub": "user:7/session:s1",
        "iat": NOW - 10, "nbf": NOW - 10, "exp": NOW + 290, "jti": "sync_1",
        "oa_user_id": "7", "oa_session_id": "s1", "oa_device_id": "d1",
        "oa_sync_scopes": ["sync.subscribe", "runtime.run_events"], "oa_sync_topics": [],
        "oa_sync_streams": ["user:7:*"], "oa_claims_version": "oa_sync_claims_v1",
        "oa_client_surface": "desktop", "oa_client_build_id": "20261101T000000Z",
        "oa_protocol_version": PROTOCOL, "oa_schema_version": SCHEMA_VERSION,
    })
}

fn judged(changes: &[(&str, Value)]) -> Result<Session, RefusalCode> {
    let mut claims = claims();
    for (field, value) in changes {
        claims[*field] = value.clone();
    }
    Claims::read(&claims.to_string())
        .and_then(|claims| admit(claims, &policy(), NOW, |session| session.as_str() == "gone"))
        .map_err(|refusal| refusal.code)
}

/// How a token of the bridge differs.
fn service() -> [(&'static str, Value); 4] {
    [
        ("sub", json!("service:bridge")),
        ("oa_sync_scopes", json!(["sync.append"])),
        ("oa_sync_streams", json!([])),
        ("oa_client_build_id", json!("")),
    ]
}

#[test]
fn a_good_token_opens_its_session() {
    let session = judged(&[]).unwrap();
    assert_eq!((session.session_id.as_str(), session.expires_at), ("s1", NOW + 290));
    assert!(may_see(
        &session.scopes,
        &StreamId::new("runtime.run.1.events").unwrap()
    ));
    assert!(!may_see(
        &session.scopes,
        &StreamId::new("runtime.worker.1.lifecycle").unwrap()
    ));
    assert!(!may_see(
        &[Scope::RunEvents],
        &StreamId::new("runtime.run.1.events").unwrap()
    ));
}

#[test]
fn a_pattern_covers_streams_with_its_prefix_if_the_session_has_their_scope() {
    let streams = json!(["user:7:*", "runtime.*", "org:a:x"]);
    let session = judged(&[("oa_sync_streams", streams)]).unwrap();
    let covered = [
        "user:7:notes",
        "user:7:",
        "runtime.run.1.events",
        "runtime.worker.1.lifecycle",
        "org:a:x",
    ]
    .map(|name| session.covers(&StreamId::new(name).unwrap()));
    assert_eq!(covered, [true, false, true, false, false]);
}

#[test]
fn an_older_token_brings_nothing_back() {
    let signed = |at: u64| ("oa_iat_us", json!((NOW - 10) * 1_000_000 + at));
    let newest = |expires_at| {
        let issued_at_us = (NOW - 10) * 1_000_000 + 5;
        Some(NewestToken {
            issued_at_us,
            expires_at,
        })
    };
    let renews = |at, newest| {
        let token = judged(&[signed(at)]).unwrap();
        token.renews(newest, NOW).map_err(|refusal| refusal.code)
    };
    assert_eq!(renews(4, None), Ok(true));
    assert_eq!(renews(6, newest(NOW + 1)), Ok(true));
    assert_eq!(renews(6, newest(NOW)), Ok(true));
    for older in [5, 4, 0] {
        assert_eq!(renews(older, newest(NOW + 1)), Ok(false));
        assert_eq!(renews(older, newest(NOW)), Err(RefusalCode::TokenExpired));
    }
}

#[test]
fn of_several_bridges_the_token_that_lasts_longest_counts() {
    let token = judged(&service()).unwrap();
    let newest = |expires_at| {
        let issued_at_us = NOW * 1_000_000;
        Some(NewestToken {
            issued_at_us,
            expires_at,
        })
    };
    assert_eq!(token.renews(newest(NOW + 289), NOW), Ok(true));
    assert_eq!(token.renews(newest(NOW + 290), NOW), Ok(false));
    assert_eq!(token.renews(newest(NOW - 1), NOW), Ok(true));
}

#[test]
fn the_newest_streams_stay_when_there_is_no_room_for_all() {
    let kept = |room, streams: &[(i64, u64)]| {
        let mut newest = Newest::new(room);
        for (created_at, stream_key) in streams {
            newest.add(*created_at, *stream_key);
        }
        newest.keys().collect::<Vec<_>>()
    };
    assert_eq!(kept(2, &[(3, 30), (1, 10), (2, 20)]), [20, 30]);
    // Two patterns may cover the same stream.
    assert_eq!(kept(2, &[(3, 30), (2, 20), (3, 30)]), [20, 30]);
    assert_eq!(kept(2, &[(1, 11), (1, 12), (1, 10)]), [11, 12]);
    assert_eq!(kept(0, &[(1, 10)]), [0; 0]);
}

#[test]
fn the_bridge_has_a_session_without_streams_whatever_its_build() {
    assert_eq!(judged(&service()).unwrap().scopes, [Scope::Append]);
}

#[test]
fn every_invalid_token_is_refused_with_its_code() {
    for (changes, code) in [
        (vec![("iss", json!("https://other.example"))], RefusalCode::InvalidToken),
        (vec![("iss", json!("https://sync.example/"))], RefusalCode::InvalidToken),
        (vec![("aud", json!("sessions"))], RefusalCode::InvalidToken),
        (
            vec![("oa_claims_version", json!("oa_sync_claims_v0"))],
            RefusalCode::InvalidToken,
        ),
        (vec![("jti", json!(""))], RefusalCode::MissingJti),
        (vec![("exp", json!("soon"))], RefusalCode::InvalidToken),
        (vec![("exp", json!(NOW))], RefusalCode::TokenExpired),
        (vec![("exp", json!(NOW - 30))], RefusalCode::TokenExpired),
        (vec![("exp", json!(NOW + 891))], RefusalCode::TokenTooOld),
        (vec![("iat", json!(NOW + 61))], RefusalCode::TokenNotYetValid),
        (vec![("nbf", json!(NOW + 61))], RefusalCode::TokenNotYetValid),
        (
            vec![("oa_iat_us", json!((NOW - 9) * 1_000_000))],
            RefusalCode::InvalidToken,
        ),
        (vec![("iat", json!(0))], RefusalCode::TokenTooOld),
        (vec![("sub", json!("user:8/session:s1"))], RefusalCode::InvalidToken),
        (vec![("sub", json!("service:bridge"))], RefusalCode::InvalidScope),
        (
            vec![
                ("oa_session_id", json!("bridge")),
                ("sub", json!("user:7/session:bridge")),
            ],
            RefusalCode::InvalidToken,
        ),
        (
            vec![
                ("oa_user_id", json!("bridge")),
                ("sub", json!("user:bridge/session:s1")),
            ],
            RefusalCode::InvalidToken,
        ),
        (
            vec![
                ("oa_user_id", json!("u".repeat(113))),
                ("sub", json!(format!("user:{}/session:s1", "u".repeat(113)))),
            ],
            RefusalCode::InvalidToken,
        ),
        (
            vec![("oa_sync_scopes", json!(["sync.append"]))],
            RefusalCode::InvalidScope,
        ),
        (vec![("oa_sync_streams", json!(["user:7*"]))], RefusalCode::InvalidToken),
        (
            vec![("oa_sync_streams", json!(vec!["a"; 257]))],
            RefusalCode::TooManyGrants,
        ),
        (
            vec![("oa_session_id", json!("gone")), ("sub", json!("user:7/session:gone"))],
            RefusalCode::TokenRevoked,
        ),
        (
            vec![("oa_client_build_id", json!("1.0"))],
            RefusalCode::InvalidClientBuild,
        ),
        (
            vec![("oa_protocol_version", json!("v0"))],
            RefusalCode::UnsupportedProtocolVersion,
        ),
        (
            vec![("oa_schema_version", json!(999))],
            RefusalCode::UnsupportedSchemaVersion,
        ),
        (
            vec![("oa_client_build_id", json!("20251231T000000Z"))],
            RefusalCode::UpgradeRequired,
        ),
        (
            vec![("oa_client_surface", json!("x".repeat(1 << 20)))],
            RefusalCode::InvalidToken,
        ),
    ] {
        assert_eq!(judged(&changes).err(), Some(code), "{changes:.80?}");
    }
    let mut without = claims();
    without.as_object_mut().unwrap().remove("iat");
    let refusal = admit(Claims(without), &policy(), NOW, |_| false).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::MissingIat);
}

#[test]
fn a_client_that_is_not_served_is_told_who_is() {
    let mut older = claims();
    older["oa_client_build_id"] = json!("20251231T000000Z");
    let denied = judge(Claims(older), &policy(), NOW, |_| false).unwrap_err();
    let wire = denied.to_wire();
    let said: Incompatible = serde_json::from_str(&wire).unwrap();
    assert_eq!((said.code, said.upgrade_required), (RefusalCode::UpgradeRequired, true));
    assert_eq!(said.min_client_build_id, "20260101T000000Z");
    // Whoever reads refusals alone reads the same one.
    assert_eq!(Refusal::from_wire(&wire), Some(denied.refusal()));
    let gone = judge(Claims(claims()), &policy(), NOW, |_| true).unwrap_err();
    let refusal = Refusal::from_wire(&gone.to_wire()).unwrap();
    assert_eq!(
        (refusal.code, Denied::Refused(refusal)),
        (RefusalCode::TokenRevoked, gone)
    );
}

#[test]
fn a_token_that_spacetimedb_signed_anew_is_refused_as_such() {
    let mut anew = claims();
    anew["hex_identity"] = json!("c2000000");
    let mut listed = claims();
    listed["aud"] = json!(["openagents-sync"]);
    for claims in [anew, listed] {
        let read = Claims::read(&claims.to_string()).unwrap();
        let refusal = admit(read, &policy(), NOW, |_| false).unwrap_err();
        assert_eq!(
            (refusal.code, refusal.message.as_str()),
            (RefusalCode::InvalidToken, SIGNED_ANEW)
        );
    }
}

#[test]
fn a_token_at_the_limits_is_accepted() {
    let named = [
        ("oa_user_id", json!("u".repeat(112))),
        ("sub", json!(format!("user:{}/session:s1", "u".repeat(112)))),
    ];
    assert!(judged(&named).is_ok());
    let longest = [("iat", json!(NOW)), ("exp", json!(NOW + TTL_SECONDS.end()))];
    assert!(judged(&longest).is_ok());
    let most_streams = json!(vec!["a"; limit::TOKEN_STREAMS]);
    assert!(judged(&[("oa_sync_streams", most_streams)]).is_ok());
    let padded = |bytes: usize| {
        let text = claims().to_string();
        Claims::read(&(" ".repeat(bytes - text.len()) + &text)).map_err(|refusal| refusal.code)
    };
    assert!(padded(limit::CLAIMS_BYTES).is_ok());
    assert_eq!(padded(limit::CLAIMS_BYTES + 1).err(), Some(RefusalCode::InvalidToken));
}

#[test]
fn the_issuer_of_a_token_is_known_before_its_claims_are_checked() {
    let issuer = |text: &str| Claims::read(text).ok()?.issuer().map(str::to_owned);
    assert_eq!(issuer(&claims().to_string()).as_deref(), Some("https://sync.example"));
    for text in [
        "",
        "null",
        "[]",
        "{}",
        r#"{"iss":1}"#,
        r#"["iss"]"#,
        &" ".repeat(1 << 20),
    ] {
        assert_eq!(issuer(text), None, "{text:.20}");
    }
}

#[test]
fn a_token_may_be_a_minute_early_but_never_late() {
    let fresh = [
        ("iat", json!(NOW + 60)),
        ("nbf", json!(NOW + 60)),
        ("exp", json!(NOW + 360)),
    ];
    assert!(judged(&fresh).is_ok());
    assert!(judged(&[("exp", json!(NOW + 1))]).is_ok());
}
