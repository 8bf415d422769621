//! Revoking sessions, and what only an admin may do.

use std::time::Duration;

use serde_json::{Value, json};
use spacetime_sync_issuer::keys::now;
use spacetime_sync_proto::access::{RETIRED_ROUTES, REVOKE_PATH};
use spacetime_sync_tests::issuing::{ADMIN, Desk, Issuing, answer};
use spacetime_sync_tests::lane::wait_for;
use spacetime_sync_tests::stub::Stub;
use spacetime_sync_tests::write_secret;
use sqlx::Connection as _;

use super::desk;

const SOON: Duration = Duration::from_secs(20);

async fn until_refused(bridge: &Issuing, credential: &str) -> Duration {
    let started = tokio::time::Instant::now();
    loop {
        let (status, body) = bridge.token(credential, &["notes"]).await.unwrap();
        if status == 401 {
            assert_eq!(body["code"], "token_revoked");
            return started.elapsed();
        }
        assert_eq!(status, 200, "{body}");
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "the session was not refused in time"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_revoked_session_is_refused_by_every_bridge_for_good() {
    let desk = desk().await;
    desk.allow("everyone", "notes").await.unwrap();
    let many = [("issuer.session_burst", "10000".to_owned())];
    let (one, two) = (desk.bridge(&many).await.unwrap(), desk.bridge(&many).await.unwrap());
    let (credential, other) = (desk.session("7", "s1"), desk.session("7", "s2"));
    for bridge in [&one, &two] {
        assert_eq!(bridge.token(&credential, &["notes"]).await.unwrap().0, 200);
    }
    let (status, body) = one.revoke(&["s1", "never-seen"]).await.unwrap();
    // No SpacetimeDB runs that could have taken the revocation.
    assert_eq!(
        (status, &body),
        (
            200,
            &json!({ "revoked": ["s1", "never-seen"], "delivered": false, "unknown": ["never-seen"] })
        )
    );
    let (status, body) = one.token(&credential, &["notes"]).await.unwrap();
    assert_eq!(
        (status, body["code"].as_str()),
        (401, Some("token_revoked")),
        "refused at once by the bridge that revoked it"
    );
    let took = until_refused(&two, &credential).await;
    assert!(took < Duration::from_secs(4), "the other bridge took {took:?}");
    assert_eq!(
        one.token(&other, &["notes"]).await.unwrap().0,
        200,
        "another session still gets tokens"
    );
    let unseen = desk.session("7", "never-seen");
    assert_eq!(one.token(&unseen, &["notes"]).await.unwrap().0, 401);
    let count = one.metrics().await.unwrap()["auth_failures"]["token_revoked_total"].clone();
    assert_eq!(count, 2);
    drop((one, two));
    let three = desk.bridge(&[]).await.unwrap();
    assert_eq!(
        three.token(&credential, &["notes"]).await.unwrap().0,
        401,
        "still revoked after a restart"
    );
}

/// The credential of a session on a device that the runtime signed in at this second.
fn signed_in(desk: &Desk, user: &str, session: &str, device: &str, at: u64) -> String {
    let mut claims = desk.claims(user, session);
    claims["device_id"] = json!(device);
    claims["iat"] = json!(at);
    desk.sign(&claims)
}

#[tokio::test]
async fn a_user_or_a_device_is_revoked_with_all_its_sessions_until_it_signs_in_again() {
    let desk = desk().await;
    desk.allow("everyone", "notes").await.unwrap();
    let (one, two) = (desk.bridge(&[]).await.unwrap(), desk.bridge(&[]).await.unwrap());
    let status = async |credential: &str| one.token(credential, &["notes"]).await.unwrap().0;
    let before = |user, session, device| signed_in(&desk, user, session, device, now() - 60);
    let (laptop, phone) = (before("7", "s1", "laptop"), before("7", "s2", "phone"));
    let (neighbour, shared) = (before("8", "s3", "desk"), before("8", "s4", "phone"));
    for credential in [&laptop, &phone, &neighbour, &shared] {
        assert_eq!(status(credential).await, 200);
    }
    assert_eq!(two.token(&laptop, &["notes"]).await.unwrap().0, 200);

    let (code, body) = one
        .revoke_whom(&json!({ "device_ids": ["phone"], "reason": "lost" }))
        .await
        .unwrap();
    let mut revoked: Vec<&str> = body["revoked"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    revoked.sort_unstable();
    assert_eq!((code, revoked), (200, vec!["s2", "s4"]));
    assert_eq!([status(&phone).await, status(&shared).await], [401, 401]);
    assert_eq!([status(&laptop).await, status(&neighbour).await], [200, 200]);

    let (_, body) = one.revoke_whom(&json!({ "user_ids": ["7"] })).await.unwrap();
    assert_eq!(body["revoked"], json!(["s1"]));
    assert_eq!([status(&laptop).await, status(&neighbour).await], [401, 200]);
    until_refused(&two, &laptop).await;
    // These were signed in before, and ask for their first token only now.
    assert_eq!(status(&before("7", "s5", "tablet")).await, 401);
    assert_eq!(status(&before("9", "s6", "phone")).await, 401);
    // The user signs in again, on the device that was found again.
    // The runtime's clock may be ahead by a minute, so a session counts as new only after that.
    let mut sessions = 0;
    wait_for(SOON, "a session that was signed in again has a token", async || {
        sessions += 1;
        let session = format!("again-{sessions}");
        status(&signed_in(&desk, "7", &session, "phone", now() + 60)).await == 200
    })
    .await;
    assert_eq!(status(&before("7", "s5", "tablet")).await, 401);

    let acts: Vec<(String, String)> = sqlx::query_as(
        "select act, subject from runtime.sync_audit where act in ('revoke_user', 'revoke_device') order by id",
    )
    .fetch_all(&mut sqlx::PgConnection::connect(desk.database.url()).await.unwrap())
    .await
    .unwrap();
    let expected = [("revoke_device", "device:phone"), ("revoke_user", "user:7")];
    assert_eq!(
        acts,
        expected.map(|(act, subject)| (act.to_owned(), subject.to_owned()))
    );
}

#[tokio::test]
async fn a_revocation_is_repeated_until_the_module_has_taken_it() {
    let desk = desk().await;
    let away = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let stub = Stub::start({
        let away = away.clone();
        move |asked| match (
            asked.path.ends_with("/call/revoke_session"),
            away.load(std::sync::atomic::Ordering::SeqCst),
        ) {
            (true, false) => (200, String::new()),
            _ => (503, String::new()),
        }
    })
    .await
    .unwrap();
    let bridge = desk
        .bridge(&[("spacetimedb.uri", stub.url().to_owned())])
        .await
        .unwrap();
    let (_, body) = bridge.revoke(&["s1"]).await.unwrap();
    assert_eq!(body["delivered"], false);
    away.store(false, std::sync::atomic::Ordering::SeqCst);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(40);
    while !desk.authority.undelivered_revocations(10).await.unwrap().is_empty() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the revocation was not delivered in time"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (_, body) = bridge.revoke(&["s2"]).await.unwrap();
    assert_eq!(body["delivered"], true);
    let told = stub.asked("/v1/database/lane/call/revoke_session");
    assert_eq!(told.last().unwrap().body, r#"["s2"]"#);
    // The bridge authenticated with a token that it signed itself.
    assert!(
        told.iter()
            .all(|told| told.authorization.as_ref().unwrap().starts_with("Bearer ey"))
    );
    assert_eq!(
        desk.authority.redeliver_revocations(1_800.0).await.unwrap(),
        2,
        "delivered again after a new link"
    );
}

#[tokio::test]
async fn only_an_admin_may_use_internal_routes() {
    let desk = desk().await;
    let often = ("http.failures_burst", "1000".to_owned());
    let bridge = desk.bridge(&[often]).await.unwrap();
    let session = desk.session("7", "s1");
    let (client, metrics) = (bridge.http(), "/internal/v1/spacetime/sync/metrics");
    for path in [
        REVOKE_PATH,
        metrics,
        "/internal",
        "/internal/",
        "/internal/v1/sync",
        "/internal/made/up?x=/",
    ] {
        for credential in [
            None,
            Some(session.as_str()),
            Some("x"),
            Some("admin-credential-of-the-test"),
            Some(""),
        ] {
            for method in [reqwest::Method::GET, reqwest::Method::POST, reqwest::Method::DELETE] {
                let mut request = client
                    .request(method.clone(), bridge.url(path))
                    .body(r#"{"session_id":"s1"}"#);
                if let Some(credential) = credential {
                    request = request.bearer_auth(credential);
                }
                let (status, body) = answer(request.send().await.unwrap()).await.unwrap();
                assert_eq!(
                    (status, &body["code"]),
                    (401, &json!("unauthorized")),
                    "{method} {path} {credential:?}"
                );
            }
        }
    }
    let basic = client
        .get(bridge.url(metrics))
        .basic_auth("admin", Some(ADMIN))
        .send()
        .await
        .unwrap();
    assert_eq!(basic.status(), 401);
    assert!(
        desk.authority.undelivered_revocations(1).await.unwrap().is_empty(),
        "nothing was revoked"
    );
    let made_up = client.get(bridge.url("/internal/made/up")).bearer_auth(ADMIN);
    assert_eq!(answer(made_up.send().await.unwrap()).await.unwrap().0, 404);
    for (body, status) in [
        ("{}", 422),
        ("", 422),
        (r#"{"session_id":"a b"}"#, 422),
        (r#"{"session_id":"' or 1=1"}"#, 422),
    ] {
        let request = client.post(bridge.url(REVOKE_PATH)).bearer_auth(ADMIN).body(body);
        assert_eq!(answer(request.send().await.unwrap()).await.unwrap().0, status, "{body}");
    }
    let total = bridge.metrics().await.unwrap()["auth_failures"]["unauthorized_total"]
        .as_u64()
        .unwrap();
    assert_eq!(total, 6 * 5 * 3 + 1);
}

#[tokio::test]
async fn without_an_admin_credential_nobody_is_an_admin_and_the_metrics_are_open() {
    let desk = desk().await;
    let bridge = desk.bridge(&[("http.admin_token", String::new())]).await.unwrap();
    assert_eq!(bridge.revoke(&["s1"]).await.unwrap().0, 401);
    let (status, metrics) = bridge.get("/internal/v1/spacetime/sync/metrics").await.unwrap();
    assert_eq!((status, &metrics["transport"]), (200, &json!("spacetime_ws")));
}

#[tokio::test]
async fn the_admin_credential_may_come_from_a_file() {
    let desk = desk().await;
    write_secret(&desk.path("admin"), format!("{ADMIN}\n")).unwrap();
    let file = desk.path("admin").display().to_string();
    let set = [("http.admin_token", String::new()), ("http.admin_token_file", file)];
    let bridge = desk.bridge(&set).await.unwrap();
    assert!(bridge.metrics().await.is_ok());
}

#[tokio::test]
async fn retired_routes_always_answer_404() {
    let desk = desk().await;
    let bridge = desk.bridge(&[]).await.unwrap();
    let expected: Value = json!({ "code": "not_found", "message": "there is nothing here", "retryable": false });
    for path in RETIRED_ROUTES {
        for method in [
            reqwest::Method::GET,
            reqwest::Method::POST,
            reqwest::Method::PUT,
            reqwest::Method::OPTIONS,
        ] {
            for credential in ["", &desk.session("7", "s1"), ADMIN] {
                let request = bridge
                    .http()
                    .request(method.clone(), bridge.url(path))
                    .bearer_auth(credential);
                let found = answer(request.body("{}").send().await.unwrap()).await.unwrap();
                assert_eq!(found, (404, expected.clone()), "{method} {path}");
            }
        }
    }
    assert_eq!(bridge.get("/made/up").await.unwrap(), (404, expected));
}
