//! Asking for a token: who gets what, and how requests are refused.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use spacetime_sync_issuer::jws::{Jws, Kind};
use spacetime_sync_issuer::keys::{Ring, SigningKey, now};
use spacetime_sync_proto::access::SyncClaims;
use spacetime_sync_proto::contract::{PROTOCOL, SCHEMA_VERSION};
use spacetime_sync_tests::issuing::{ADMIN, BUILD, Issuing, answer};
use spacetime_sync_tests::process::built;
use spacetime_sync_tests::stub::Stub;
use spacetime_sync_tests::tool;

use super::desk;

/// Settings that allow a session to ask more often than production would.
fn unlimited() -> Vec<(&'static str, String)> {
    let much = || "100000".to_owned();
    vec![("issuer.session_burst", much()), ("issuer.failures_burst", much())]
}

async fn code(bridge: &Issuing, credential: &str) -> (u16, String) {
    let (status, body) = bridge.token(credential, &["notes"]).await.unwrap();
    (status, body["code"].as_str().unwrap_or_default().to_owned())
}

async fn granted(bridge: &Issuing, credential: &str, streams: &[&str]) -> Value {
    let (status, body) = bridge.token(credential, streams).await.unwrap();
    if status == 200 {
        body["granted_streams"].clone()
    } else {
        body["code"].clone()
    }
}

#[tokio::test]
async fn a_session_gets_what_it_asks_for_and_may_read() {
    let desk = desk().await;
    desk.own("runtime.run.1.events", "'7'", "null").await.unwrap();
    desk.own("runtime.run.2.events", "'8'", "null").await.unwrap();
    desk.allow("user:7", "user:7:*").await.unwrap();
    let bridge = desk.bridge(&[]).await.unwrap();
    let body = json!({
        "scopes": ["sync.subscribe", "sync.checkpoint.write", "runtime.run_events"],
        "streams": ["runtime.run.*", "user:7:notes", "user:70:notes"],
        "topics": ["run:1:events", "run:2:events"],
        "ttl_seconds": 120,
    });
    let asked_at = now();
    let response = bridge.ask(&desk.session("7", "s1")).json(&body).send().await.unwrap();
    assert_eq!(response.headers()["cache-control"], "no-store");
    let (status, token) = answer(response).await.unwrap();
    assert_eq!(status, 200, "{token}");
    for (field, expected) in [
        ("token_type", json!("Bearer")),
        ("transport", json!("spacetime_ws")),
        ("protocol_version", json!("spacetime.sync.v1")),
        ("expires_in", json!(120)),
        ("refresh_after_in", json!(90)),
        ("audience", json!("openagents-sync")),
        ("subject", json!("user:7/session:s1")),
        (
            "scopes",
            json!(["sync.subscribe", "sync.checkpoint.write", "runtime.run_events"]),
        ),
        ("granted_streams", json!(["runtime.run.1.events", "user:7:notes"])),
        ("granted_topics", json!(["run:1:events"])),
        ("session_id", json!("s1")),
        ("device_id", json!("s1-device")),
        ("claims_version", json!("oa_sync_claims_v1")),
    ] {
        assert_eq!(token[field], expected, "{field}");
    }
    let jws = Jws::parse(token["token"].as_str().unwrap(), Kind::Sync).unwrap();
    assert_eq!(jws.kid.as_deref(), token["kid"].as_str());
    let pem = std::fs::read_dir(desk.path("keys"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let key = SigningKey::from_pem(&std::fs::read_to_string(pem).unwrap().into(), 0, "test").unwrap();
    let claims: SyncClaims = serde_json::from_str(jws.claims(&key.public()).unwrap().get()).unwrap();
    assert!(claims.iat >= asked_at && claims.exp == claims.iat + 120 && claims.nbf == claims.iat);
    assert_eq!(json!(claims.oa_sync_streams), token["granted_streams"]);
    assert_eq!(
        (claims.oa_client_surface.as_str(), claims.oa_schema_version),
        ("desktop", SCHEMA_VERSION)
    );
    let metrics = bridge.metrics().await.unwrap();
    assert_eq!(
        (&metrics["minted_total"], &metrics["rate_limited_total"]),
        (&json!(1), &json!(0))
    );
    let text = bridge.text("/metrics").await.unwrap();
    assert!(text.contains("spacetime_sync_minted_total 1\n"), "{text}");
}

#[tokio::test]
async fn read_rights_come_from_the_authority() {
    let desk = desk().await;
    desk.own("a.user", "'7'", "null").await.unwrap();
    desk.own("a.org", "null", "'acme'").await.unwrap();
    desk.own("a.other", "'70'", "'acme2'").await.unwrap();
    desk.allow("everyone", "public.*").await.unwrap();
    desk.allow("user:7", "mine.*").await.unwrap();
    desk.allow("org:acme", "ours.*").await.unwrap();
    desk.allow("org:acme2", "theirs.*").await.unwrap();
    let bridge = desk.bridge(&unlimited()).await.unwrap();
    let mut with_org = desk.claims("7", "s1");
    with_org["org_id"] = json!("acme");
    let (with_org, without) = (desk.sign(&with_org), desk.session("7", "s2"));
    let all = ["a.*", "mine.x", "ours.x", "theirs.x", "public.x"];
    assert_eq!(
        granted(&bridge, &with_org, &all).await,
        json!(["a.org", "a.user", "mine.x", "ours.x", "public.x"])
    );
    assert_eq!(
        granted(&bridge, &without, &all).await,
        json!(["a.user", "mine.x", "public.x"])
    );
    assert_eq!(granted(&bridge, &without, &["theirs.x"]).await, json!("forbidden"));
    assert_eq!(granted(&bridge, &without, &["mine.*"]).await, json!(["mine.*"]));
    assert_eq!(granted(&bridge, &without, &["mine.a.*"]).await, json!(["mine.a.*"]));
    // A changed policy takes effect after a moment.
    desk.allow("user:7", "theirs.x").await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while granted(&bridge, &without, &["theirs.x"]).await != json!(["theirs.x"]) {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the changed policy did not take effect"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_request_for_more_streams_than_a_token_holds_is_refused() {
    let desk = desk().await;
    desk.sql(
        "insert into runtime.sync_stream_owners select 'many.' || n, '7', null from generate_series(1, 300) n;
         insert into runtime.sync_stream_owners select 'few.' || n, '7', null from generate_series(1, 256) n",
    )
    .await
    .unwrap();
    let bridge = desk.bridge(&unlimited()).await.unwrap();
    let credential = desk.session("7", "s1");
    assert_eq!(
        granted(&bridge, &credential, &["many.*"]).await,
        json!("invalid_request")
    );
    assert_eq!(
        granted(&bridge, &credential, &["few.*"])
            .await
            .as_array()
            .unwrap()
            .len(),
        256
    );
    desk.allow("user:7", "many.*").await.unwrap();
    assert_eq!(
        granted(&bridge, &desk.session("7", "s2"), &["many.*"]).await,
        json!(["many.*"])
    );
}

#[tokio::test]
async fn hostile_names_get_nothing() {
    let desk = desk().await;
    desk.allow("everyone", "notes").await.unwrap();
    desk.allow("user:1", "user:1:*").await.unwrap();
    desk.own("user:10:secret", "'10'", "null").await.unwrap();
    desk.own("user%secret", "'10'", "null").await.unwrap();
    let bridge = desk.bridge(&unlimited()).await.unwrap();
    let credential = desk.session("1", "s1");
    for (stream, expected) in [
        ("user:10:secret", "forbidden"),
        ("user:10:*", "forbidden"),
        ("user:1:", "forbidden"),
        ("user:1", "forbidden"),
        ("user%25secret", "forbidden"),
        ("user%", "forbidden"),
        ("user:_0:secret", "forbidden"),
        ("USER:1:notes", "forbidden"),
        ("user:1*", "invalid_request"),
        ("user:*:secret", "invalid_request"),
        ("*", "invalid_request"),
        ("", "invalid_request"),
        ("notes'", "invalid_request"),
        ("notes' or '1'='1", "invalid_request"),
        ("notes\"", "invalid_request"),
        ("notes;--", "invalid_request"),
        ("not\u{435}s", "invalid_request"),
        ("notes\u{200b}", "invalid_request"),
        ("notes\0", "invalid_request"),
        ("notes ", "invalid_request"),
        ("../notes*", "invalid_request"),
        (&"x".repeat(256), "invalid_request"),
    ] {
        assert_eq!(
            granted(&bridge, &credential, &[stream]).await,
            json!(expected),
            "{stream:?}"
        );
    }
    assert_eq!(granted(&bridge, &credential, &["user:*"]).await, json!(["user:1:*"]));
    assert_eq!(
        granted(&bridge, &credential, &["user:1:a'b", "notes"]).await,
        json!("invalid_request")
    );
    for (scopes, expected) in [
        (json!(["sync.append"]), "invalid_scope"),
        (json!(["sync.subscribe", "sync.append"]), "invalid_scope"),
        (json!(["sync.subscribe", "admin"]), "invalid_scope"),
        (json!([]), "invalid_scope"),
    ] {
        let request = bridge
            .ask(&credential)
            .json(&json!({ "scopes": scopes, "streams": ["notes"] }));
        let (status, body) = answer(request.send().await.unwrap()).await.unwrap();
        assert_eq!((status, &body["code"]), (422, &json!(expected)), "{scopes}");
    }
}

#[tokio::test]
async fn invalid_credentials_are_refused_with_the_reason() {
    let desk = desk().await;
    desk.allow("everyone", "notes").await.unwrap();
    let bridge = desk.bridge(&unlimited()).await.unwrap();
    let base = || desk.claims("7", "s1");
    let good = desk.sign(&base());
    let (status, sync_token) = bridge.token(&good, &["notes"]).await.unwrap();
    assert_eq!(status, 200);
    let with = |field: &str, value: Value| {
        let mut claims = base();
        claims[field] = value;
        desk.sign(&claims)
    };
    let without = |field: &str| {
        let mut claims = base();
        claims.as_object_mut().unwrap().remove(field);
        desk.sign(&claims)
    };
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let payload = signed.split_once('.').unwrap().1;
    let other = SigningKey::from_pem(&SigningKey::generate().unwrap(), 0, "test").unwrap();
    let mut megabyte = base();
    megabyte["more"] = json!("x".repeat(20_000));
    for (credential, expected) in [
        (forged(r#"{"alg":"none"}"#, payload, ""), "invalid_token"),
        (forged(r#"{"alg":"none"}"#, payload, signature), "invalid_token"),
        (
            forged(r#"{"alg":"HS256","typ":"JWT"}"#, payload, signature),
            "invalid_token",
        ),
        (
            forged(r#"{"alg":"RS256","typ":"JWT"}"#, payload, signature),
            "invalid_token",
        ),
        (
            forged(r#"{"alg":"ES256","typ":"secevent+jwt"}"#, payload, signature),
            "invalid_token",
        ),
        (
            forged(r#"{"alg":"ES256","crit":["b64"],"b64":false}"#, payload, signature),
            "invalid_token",
        ),
        (
            forged(r#"{"alg":"ES256","kid":"another"}"#, payload, signature),
            "invalid_token",
        ),
        (
            other.sign(Kind::Session, &base()).unwrap().expose().to_owned(),
            "invalid_token",
        ),
        (sync_token["token"].as_str().unwrap().to_owned(), "invalid_token"),
        (with("iss", json!("https://app.example.evil")), "invalid_token"),
        (with("aud", json!("openagents-sync")), "invalid_token"),
        (without("exp"), "invalid_token"),
        (with("exp", json!("9999999999")), "invalid_token"),
        (with("exp", json!(9_999_999_999.5)), "invalid_token"),
        (with("exp", json!(null)), "invalid_token"),
        (with("exp", json!(now() - 70)), "token_expired"),
        (with("exp", json!(now() - 61)), "token_expired"),
        (with("nbf", json!(now() + 100)), "token_not_yet_valid"),
        (with("nbf", json!("now")), "invalid_token"),
        (with("iat", json!(now() + 100)), "token_not_yet_valid"),
        (with("iat", json!(u64::MAX)), "token_not_yet_valid"),
        (without("iat"), "missing_iat"),
        (without("sid"), "invalid_token"),
        (with("sub", json!("7/session:s2")), "invalid_token"),
        (with("sub", json!(7)), "invalid_token"),
        (desk.sign(&megabyte), "invalid_token"),
        (String::new(), "invalid_authorization_scheme"),
        ("x".to_owned(), "invalid_token"),
        ("..".to_owned(), "invalid_token"),
    ] {
        let found = code(&bridge, &credential).await;
        let shown = &credential[..credential.len().min(120)];
        // The space after `Bearer` may get lost on the way if the credential is empty.
        let other = if credential.is_empty() {
            "invalid_token"
        } else {
            expected
        };
        assert!(
            found == (401, expected.to_owned()) || found == (401, other.to_owned()),
            "{found:?} for {shown}"
        );
    }
    for good in [
        with("exp", json!(now() - 50)),
        with("nbf", json!(now() + 50)),
        with("iat", json!(now() + 50)),
    ] {
        assert_eq!(code(&bridge, &good).await.0, 200, "within the leeway");
    }
    // A megabyte does not even reach the issuer.
    megabyte["more"] = json!("x".repeat(1024 * 1024));
    let sent = bridge.token(&desk.sign(&megabyte), &["notes"]).await;
    assert!(sent.as_ref().is_err() || matches!(sent, Ok((401 | 431, _))), "{sent:?}");
    let basic = bridge.client_of(BUILD, PROTOCOL, &SCHEMA_VERSION.to_string(), "x");
    for (request, expected) in [
        (basic.try_clone().unwrap(), "missing_authorization"),
        (
            basic.try_clone().unwrap().basic_auth("7", Some("x")),
            "invalid_authorization_scheme",
        ),
        (basic.header("authorization", good), "invalid_authorization_scheme"),
    ] {
        let (status, body) = answer(request.send().await.unwrap()).await.unwrap();
        assert_eq!((status, &body["code"]), (401, &json!(expected)));
        assert_eq!(body["retryable"], false);
    }
    let metrics = bridge.metrics().await.unwrap();
    let failures = &metrics["auth_failures"];
    assert_eq!(failures["token_expired_total"], 2, "{failures}");
    assert_eq!(failures["token_not_yet_valid_total"], 3, "{failures}");
    assert!(failures["invalid_token_total"].as_u64().unwrap() > 15, "{failures}");
    assert!(bridge.process.is_running());
}

/// A token with another header than the one it was signed with.
fn forged(header: &str, payload: &str, signature: &str) -> String {
    format!("{}.{payload}.{signature}", URL_SAFE_NO_PAD.encode(header))
}

#[tokio::test]
async fn a_second_device_with_the_same_session_is_refused() {
    let desk = desk().await;
    desk.allow("everyone", "notes").await.unwrap();
    let bridge = desk.bridge(&unlimited()).await.unwrap();
    let ask = async |claims: &Value, device: Option<&str>| {
        let mut body = json!({ "scopes": ["sync.subscribe"], "streams": ["notes"] });
        if let Some(device) = device {
            body["device_id"] = json!(device);
        }
        let request = bridge.ask(&desk.sign(claims)).json(&body);
        let (status, body) = answer(request.send().await.unwrap()).await.unwrap();
        (
            status,
            body["code"]
                .as_str()
                .or(body["device_id"].as_str())
                .unwrap_or_default()
                .to_owned(),
        )
    };
    let mut nameless = desk.claims("7", "s1");
    nameless.as_object_mut().unwrap().remove("device_id");
    let refused = (403, "session_bound".to_owned());
    assert_eq!(ask(&nameless, None).await, (422, "invalid_request".to_owned()));
    assert_eq!(ask(&nameless, Some("laptop")).await, (200, "laptop".to_owned()));
    assert_eq!(ask(&nameless, Some("phone")).await, refused);
    assert_eq!(ask(&nameless, Some("laptop")).await, (200, "laptop".to_owned()));
    assert_eq!(
        ask(&desk.claims("7", "s1"), None).await,
        refused,
        "the device that the credential proves is bound too"
    );
    assert_eq!(ask(&desk.claims("7", "s2"), Some("another")).await, refused);
    let mut stolen = nameless.clone();
    stolen["sub"] = json!("8");
    assert_eq!(
        ask(&stolen, Some("laptop")).await,
        refused,
        "the session belongs to another user"
    );
    drop(bridge);
    let bridge = desk.bridge(&[]).await.unwrap();
    let request = bridge.ask(&desk.sign(&nameless));
    let body = json!({ "scopes": ["sync.subscribe"], "streams": ["notes"], "device_id": "phone" });
    let (status, _) = answer(request.json(&body).send().await.unwrap()).await.unwrap();
    assert_eq!(status, 403, "the binding survives a restart");
}

#[tokio::test]
async fn too_many_token_requests_are_limited_with_a_time_to_return() {
    let desk = desk().await;
    desk.allow("everyone", "notes").await.unwrap();
    let set = |key, value: &str| (key, value.to_owned());
    let bridge = desk
        .bridge(&[
            set("issuer.session_per_minute", "1"),
            set("issuer.session_burst", "3"),
            set("issuer.failures_per_minute", "1"),
            set("issuer.failures_burst", "4"),
        ])
        .await
        .unwrap();
    let credential = desk.session("7", "s1");
    let began = std::time::Instant::now();
    for _ in 0..3 {
        assert_eq!(code(&bridge, &credential).await.0, 200);
    }
    let request = bridge
        .ask(&credential)
        .json(&json!({ "scopes": ["sync.subscribe"], "streams": ["notes"] }));
    let response = request.send().await.unwrap();
    let retry_after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    // The next request is allowed a minute after the first. The answer says so in whole seconds.
    let least = 59_u64.saturating_sub(began.elapsed().as_secs());
    assert!((least..=60).contains(&retry_after), "{retry_after}, at least {least}");
    let (status, body) = answer(response).await.unwrap();
    assert_eq!(
        (status, &body["code"], &body["retryable"]),
        (429, &json!("rate_limited"), &json!(true))
    );
    assert!(body["retry_after_ms"].as_u64().unwrap() <= 60_000);
    assert_eq!(
        code(&bridge, &desk.session("7", "s2")).await.0,
        200,
        "another session is not limited"
    );
    for _ in 0..4 {
        assert_eq!(code(&bridge, "x").await.0, 401);
    }
    assert_eq!(code(&bridge, "x").await, (429, "rate_limited".to_owned()));
    // Whoever shares the address with somebody who guesses is heard.
    assert_eq!(code(&bridge, &desk.session("7", "s3")).await.0, 200);
    assert_eq!(bridge.metrics().await.unwrap()["rate_limited_total"], 2);
}

#[tokio::test]
async fn a_malformed_body_is_refused_only_after_authentication() {
    let desk = desk().await;
    let bridge = desk.bridge(&unlimited()).await.unwrap();
    let credential = desk.session("7", "s1");
    let large = format!(r#"{{"scopes":["{}"]}}"#, "x".repeat(70 * 1024));
    for body in [
        "",
        "{",
        "[]",
        "null",
        r#"{"scope":["sync.subscribe"]}"#,
        r#"{"scopes":"sync.subscribe"}"#,
        r#"{"scopes":["sync.subscribe"],"streams":["a"],"ttl_seconds":"300"}"#,
        r#"{"scopes":["sync.subscribe"],"streams":["a"],"ttl_seconds":-1}"#,
        r#"{"scopes":["sync.subscribe"],"streams":["a"],"ttl_seconds":59}"#,
        r#"{"scopes":["sync.subscribe"],"streams":["a"],"ttl_seconds":901}"#,
        r#"{"scopes":["sync.subscribe"],"streams":["a"],"streams":["b"]}"#,
        r#"{"scopes":["sync.subscribe"],"streams":[]}"#,
        r#"{"scopes":["sync.subscribe"],"streams":["a"]} x"#,
        &large,
    ] {
        let request = bridge.ask(&credential).body(body.to_owned());
        let (status, found) = answer(request.send().await.unwrap()).await.unwrap();
        assert_eq!((status, &found["code"]), (422, &json!("invalid_request")), "{body:.60}");
        let request = bridge.ask("x").body(body.to_owned());
        assert_eq!(
            answer(request.send().await.unwrap()).await.unwrap().0,
            401,
            "{body:.60}"
        );
    }
    assert_eq!(bridge.get("/api/sync/token").await.unwrap().0, 405);
}

#[tokio::test]
async fn a_flood_of_unknown_key_ids_does_not_reach_the_session_issuer() {
    let desk = desk().await;
    desk.allow("everyone", "notes").await.unwrap();
    let pem = SigningKey::generate().unwrap();
    let key = Arc::new(SigningKey::from_pem(&pem, 0, "test").unwrap());
    let set = Ring::new(vec![key.clone()]).jwks(now()).to_string();
    let stub = Stub::start(move |_| (200, set.clone())).await.unwrap();
    let mut keys = unlimited();
    keys.push(("sessions.public_keys", String::new()));
    keys.push(("sessions.jwks_url", format!("{}/keys", stub.url())));
    let bridge = desk.bridge(&keys).await.unwrap();
    for number in 0..200 {
        let stranger = SigningKey::from_pem(&SigningKey::generate().unwrap(), 0, "test").unwrap();
        let claims = desk.claims("7", &format!("s{number}"));
        let credential = stranger.sign(Kind::Session, &claims).unwrap();
        assert_eq!(
            code(&bridge, credential.expose()).await,
            (401, "invalid_token".to_owned())
        );
    }
    let good = key.sign(Kind::Session, &desk.claims("7", "s1")).unwrap();
    assert_eq!(code(&bridge, good.expose()).await.0, 200);
    assert_eq!(stub.asked("/keys").len(), 1);
}

#[tokio::test]
async fn no_output_contains_a_token_or_key() {
    let desk = desk().await;
    desk.allow("everyone", "notes").await.unwrap();
    let stub = Stub::start(|_| (530, "no".to_owned())).await.unwrap();
    let mut set = unlimited();
    set.push(("spacetimedb.uri", stub.url().to_owned()));
    let bridge = desk
        .bridge_by(Command::new(built("spacetime-sync")), "trace", &set)
        .await
        .unwrap();
    let mut secrets = vec![ADMIN.to_owned(), "PRIVATE KEY".to_owned()];
    for path in [
        desk.path("app.pem"),
        std::fs::read_dir(desk.path("keys"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path(),
    ] {
        let pem = std::fs::read_to_string(path).unwrap();
        secrets.extend(pem.lines().filter(|line| !line.starts_with('-')).map(str::to_owned));
    }
    let mut said = String::new();
    for number in 0..50 {
        let mut claims = desk.claims("7", &format!("s{number}"));
        if number % 3 == 0 {
            claims["exp"] = json!(1);
        }
        let credential = desk.sign(&claims);
        let (_, mut body) = bridge.token(&credential, &["notes"]).await.unwrap();
        if let Some(token) = body["token"].take().as_str() {
            secrets.push(token.rsplit_once('.').unwrap().1.to_owned());
            // A sync token is not a session credential, and the refusal does not repeat it.
            let (_, body) = bridge.token(token, &["notes"]).await.unwrap();
            said += &body.to_string();
        }
        secrets.push(credential.rsplit_once('.').unwrap().1.to_owned());
        secrets.push(credential.split('.').nth(1).unwrap().to_owned());
        said += &body.to_string();
    }
    bridge.revoke(&["s1"]).await.unwrap();
    // The tokens that the bridge showed to SpacetimeDB count too.
    let shown = stub.asked("");
    assert!(!shown.is_empty());
    for asked in shown {
        if let Some(token) = asked.authorization {
            secrets.push(token.rsplit('.').next().unwrap().to_owned());
        }
    }
    said += &bridge.metrics().await.unwrap().to_string();
    for path in [
        "/metrics",
        "/healthz",
        "/readyz",
        "/.well-known/jwks.json",
        "/.well-known/openid-configuration",
    ] {
        said += &bridge.text(path).await.unwrap();
    }
    let environment = desk.environment("127.0.0.1:0", &set);
    let environment: Vec<_> = environment
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    said += &tool::run("spacetime-sync", &["config", "check"], &environment)
        .await
        .good();
    said += &bridge.process.log();
    assert!(said.len() > 10_000);
    for secret in secrets {
        assert!(!said.contains(&secret), "the output holds {secret}");
    }
}
