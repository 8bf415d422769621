//! The bridge's own doors: what somebody who knocks too often, too slowly or without a key gets, and what an honest client
//! beside them gets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use spacetime_sync_issuer::jws::Kind;
use spacetime_sync_issuer::keys::{SigningKey, now};
use spacetime_sync_proto::StreamId;
use spacetime_sync_proto::access::{REVOKED_PATH, TOKEN_PATH};
use spacetime_sync_proto::page::STREAMS_PATH;
use spacetime_sync_tests::gate::GATE;
use spacetime_sync_tests::hostile::unread;
use spacetime_sync_tests::issuing::{ADMIN, Desk, Issuing, answer};
use spacetime_sync_tests::load::{Payload, Writer};
use spacetime_sync_tests::port;
use spacetime_sync_tests::postgres::Cluster;
use spacetime_sync_tests::tool;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(30);
/// How long it may take until a session holds all that it can: well less than until the bridge closes its connections.
const FULL: Duration = Duration::from_secs(20);
const NOTES: &str = "notes";

async fn desk() -> Desk {
    let desk = Desk::new(Cluster::shared().await).await.unwrap();
    desk.allow("everyone", NOTES).await.unwrap();
    desk
}

fn set(key: &'static str, value: &str) -> (&'static str, String) {
    (key, value.to_owned())
}

/// The status of a request for a token, and the token.
async fn token(bridge: &Issuing, credential: &str) -> (u16, String) {
    let (status, body) = bridge.token(credential, &[NOTES]).await.unwrap();
    (status, body["token"].as_str().unwrap_or_default().to_owned())
}

/// The status of a request for history.
async fn history(bridge: &Issuing, token: &str) -> u16 {
    let url = bridge.url(&format!("{STREAMS_PATH}/{NOTES}/events?after=0"));
    let response = bridge.http().get(url).bearer_auth(token).send().await.unwrap();
    response.status().as_u16()
}

/// A credential for which the bridge has to check a signature, and which nobody trusts.
fn forged(desk: &Desk, session: &str) -> String {
    let pem = SigningKey::generate().unwrap();
    let key = SigningKey::from_pem(&pem, 0, "forger").unwrap();
    key.sign(Kind::Session, &desk.claims("7", session))
        .unwrap()
        .expose()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_credentials_keep_no_good_client_at_their_address_from_tokens_and_history() {
    let desk = desk().await;
    let much = [
        set("issuer.session_burst", "1000"),
        set("history.session_burst", "1000"),
        set("issuer.failures_per_minute", "1"),
        // What the flood costs the machine is not the question here.
        set("issuer.checks_per_second", "1000000"),
        set("issuer.checks_burst", "1000000"),
    ];
    let bridge = Arc::new(desk.bridge(&much).await.unwrap());
    // 61 in a moment: one more than may fail.
    let bad = forged(&desk, "s1");
    let mut refused = Vec::new();
    for _ in 0..61 {
        refused.push(token(&bridge, &bad).await.0);
    }
    assert!(
        refused[..60].iter().all(|status| *status == 401) && refused[60] == 429,
        "{refused:?}"
    );
    let (status, first) = token(&bridge, &desk.session("7", "s1")).await;
    assert_eq!((status, history(&bridge, &first).await), (200, 200));

    // As many as four can show, for as long as an honest client asks.
    let (over, shown) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let flood: Vec<_> = (0..4)
        .map(|number| {
            let (bridge, over, shown) = (bridge.clone(), over.clone(), shown.clone());
            let bad = forged(&desk, &format!("bad-{number}"));
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    assert_ne!(token(&bridge, &bad).await.0, 200);
                    shown.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let began = Instant::now();
    for round in 0..20 {
        let credential = desk.session("7", &format!("new-{round}"));
        assert_eq!(token(&bridge, &credential).await.0, 200, "round {round}");
        let (status, read) = token(&bridge, &credential).await;
        assert_eq!((status, history(&bridge, &read).await), (200, 200), "round {round}");
    }
    over.store(true, Ordering::Relaxed);
    let (shown, took) = (shown.load(Ordering::Relaxed), began.elapsed());
    for one in flood {
        one.await.unwrap();
    }
    eprintln!("{shown} bad credentials in {took:?} beside 60 good ones");
    assert!(shown > 100);
}

#[tokio::test]
async fn a_credential_that_has_expired_is_not_hostile() {
    let desk = desk().await;
    let few = [
        set("issuer.failures_burst", "3"),
        set("issuer.failures_per_minute", "1"),
    ];
    let bridge = desk.bridge(&few).await.unwrap();
    let mut claims = desk.claims("7", "s1");
    claims["exp"] = json!(now() - 100);
    let expired = desk.sign(&claims);
    for _ in 0..10 {
        let (status, body) = bridge.token(&expired, &[NOTES]).await.unwrap();
        assert_eq!((status, &body["code"]), (401, &json!("token_expired")));
    }
    // What is wrong with a signed credential is no failure of its address, and none of its session.
    let mut odd = desk.claims("7", "s2");
    odd.as_object_mut().unwrap().remove("iat");
    let odd = desk.sign(&odd);
    let mut statuses = Vec::new();
    for credential in [&odd, &odd, &odd, &odd, &forged(&desk, "s3"), &expired] {
        statuses.push(token(&bridge, credential).await.0);
    }
    assert_eq!(statuses, [401, 401, 401, 429, 401, 401]);
    assert_eq!(token(&bridge, &desk.session("7", "s2")).await.0, 200);
    // One that is for somebody else is nobody's here. It is the second failure of the address, after the forged one.
    let mut foreign = desk.claims("7", "s2");
    foreign["aud"] = json!("something-else");
    let foreign = desk.sign(&foreign);
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(token(&bridge, &foreign).await.0);
    }
    assert_eq!(statuses, [401, 401, 429]);
}

#[tokio::test]
async fn behind_a_proxy_every_client_counts_for_itself() {
    let desk = desk().await;
    for (header, named) in [
        (
            "x-forwarded-for",
            [
                ("6.6.6.6, 10.0.0.1:567", "10.0.0.1:568"),
                ("[2001:db8::1]:567", "[2001:db8::2]:568"),
                ("2001:db8:0:1::1", "[2001:db8:0:1::9]"),
                ("10.0.0.2", "10.0.0.2"),
                ("_hidden", "_hidden"),
                ("unknown", "unknown"),
            ],
        ),
        (
            "forwarded",
            [
                ("for=6.6.6.6, for=\"10.0.0.1:567\"", "for=10.0.0.1;proto=https"),
                ("for=\"[2001:db8::1]:567\"", "For=\"[2001:db8::2]\""),
                ("by=1.1.1.1;for=\"[2001:db8:0:1::1]\"", "for=\"[2001:db8:0:1::9]:_p\""),
                ("for=\"6.6.6.6, for=10.0.0.2", "for=10.0.0.2"),
                ("for=_hidden", "for=_hidden"),
                ("for=unknown", "for=unknown"),
            ],
        ),
    ] {
        let few = [
            set("http.behind_proxy", header),
            set("issuer.failures_burst", "1"),
            set("issuer.failures_per_minute", "1"),
        ];
        let bridge = desk.bridge(&few).await.unwrap();
        let ask = async |said: &str| {
            let body = json!({ "scopes": ["sync.subscribe"], "streams": [NOTES] });
            let request = bridge.ask("bad").header(header, said).json(&body);
            answer(request.send().await.unwrap()).await.unwrap().0
        };
        for (first, second) in named {
            assert_eq!((ask(first).await, ask(second).await), (401, 429), "{header}: {first}");
        }
        // The other header is the client's own.
        let other = if header == "forwarded" {
            "x-forwarded-for"
        } else {
            "forwarded"
        };
        let request = bridge
            .ask("bad")
            .header(header, named[3].1)
            .header(other, "for=9.9.9.9");
        let body = json!({ "scopes": ["sync.subscribe"], "streams": [NOTES] });
        assert_eq!(request.json(&body).send().await.unwrap().status(), 429);
    }
}

#[tokio::test]
async fn whoever_has_an_issuer_behind_tls_says_whether_there_is_a_proxy() {
    let desk = desk().await;
    let check = async |set: &[(&str, String)]| {
        let environment = desk.environment("127.0.0.1:0", set);
        let environment: Vec<_> = environment
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        tool::run("spacetime-sync", &["config", "check"], &environment).await
    };
    let undecided = check(&[set("http.behind_proxy", "")]).await;
    undecided.failed(1, &["http.behind_proxy", "the issuer's url is https"]);
    for choice in ["false", "true", "forwarded"] {
        check(&[set("http.behind_proxy", choice)]).await.good();
    }
}

const METRICS: &str = "/internal/v1/spacetime/sync/metrics";

/// Status and text of an answer.
async fn told(bridge: &Issuing, url: String, credential: Option<&str>) -> (u16, String) {
    let mut request = bridge.http().get(url);
    if let Some(credential) = credential {
        request = request.bearer_auth(credential);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test]
async fn strangers_learn_in_one_word_how_the_bridge_is() {
    let desk = desk().await;
    let bridge = desk.bridge(&[]).await.unwrap();
    for (path, words) in [
        ("/healthz", ["healthy", "unhealthy"]),
        ("/readyz", ["ready", "unready"]),
    ] {
        let (status, text) = told(&bridge, bridge.url(path), None).await;
        assert!(
            words.contains(&text.as_str()) && [200, 503].contains(&status),
            "{path}: {text}"
        );
        let (_, whole) = told(&bridge, bridge.url(path), Some(ADMIN)).await;
        assert!(whole.contains("problems"), "{path}: {whole}");
        let (status, text) = told(&bridge, bridge.url(path), Some("guess")).await;
        assert!(words.contains(&text.as_str()) && status != 401, "{path}: {text}");
    }
    for path in ["/metrics", METRICS, REVOKED_PATH] {
        let (status, text) = told(&bridge, bridge.url(path), None).await;
        assert_eq!(status, 401, "{path}: {text}");
        assert_eq!(told(&bridge, bridge.url(path), Some(ADMIN)).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn an_operator_with_a_listener_is_served_there_and_nowhere_else() {
    let desk = desk().await;
    let admin = port::free().unwrap().to_string();
    let bridge = desk.bridge(&[set("http.admin_listen", &admin)]).await.unwrap();
    for path in ["/metrics", METRICS, REVOKED_PATH, "/internal", "/internal/x"] {
        for credential in [None, Some(ADMIN), Some(GATE)] {
            let (status, text) = told(&bridge, bridge.url(path), credential).await;
            assert_eq!(status, 404, "{path}: {text}");
        }
    }
    let (_, word) = told(&bridge, bridge.url("/healthz"), Some(ADMIN)).await;
    assert!(["healthy", "unhealthy"].contains(&word.as_str()), "{word}");
    for path in ["/healthz", "/readyz", "/metrics", METRICS] {
        let (_, text) = told(&bridge, bridge.operator(path), None).await;
        assert!(text.contains("authority_restored"), "{path}: {text}");
    }
    for (header, value) in [("x-forwarded-for", "10.0.0.1"), ("forwarded", "for=10.0.0.1")] {
        let passed_on = bridge.http().get(bridge.operator("/healthz")).header(header, value);
        let word = passed_on.send().await.unwrap().text().await.unwrap();
        assert!(["healthy", "unhealthy"].contains(&word.as_str()), "{header}: {word}");
    }
    for (credential, status) in [(None, 401), (Some("guess"), 401), (Some(GATE), 200), (Some(ADMIN), 200)] {
        assert_eq!(told(&bridge, bridge.operator(REVOKED_PATH), credential).await.0, status);
    }
    let (status, _) = told(&bridge, bridge.operator(TOKEN_PATH), None).await;
    assert_eq!(status, 404, "clients are not served there");
    assert_eq!(bridge.revoke(&["s1"]).await.unwrap().0, 200);
}

#[tokio::test]
async fn nobody_finds_the_admin_credential_by_guessing_and_no_guess_keeps_an_admin_out() {
    let desk = desk().await;
    let few = [
        set("http.behind_proxy", "x-forwarded-for"),
        set("http.failures_per_minute", "1"),
        set("http.failures_burst", "3"),
    ];
    let bridge = desk.bridge(&few).await.unwrap();
    let show = async |credential: &str, from: &str| {
        let request = bridge.http().get(bridge.url(METRICS)).bearer_auth(credential);
        let response = request.header("x-forwarded-for", from).send().await.unwrap();
        response.status().as_u16()
    };
    for number in 0..3 {
        assert_eq!(show(&format!("guess-{number}"), "10.0.0.9:1").await, 401);
    }
    assert_eq!(show("guess", "10.0.0.9:2").await, 429);
    assert_eq!(show(ADMIN, "10.0.0.9").await, 429, "a right guess is not heard either");
    assert_eq!(show(ADMIN, "10.0.0.8").await, 200);
    for status in [401, 401, 401, 429] {
        assert_eq!(show("guess", "10.0.0.8").await, status);
    }
    assert_eq!(show(ADMIN, "10.0.0.8").await, 200, "an admin was there before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_reads_nothing_of_what_it_asks_for_holds_up_no_other_session() {
    let desk = desk().await;
    let id = StreamId::new(NOTES).unwrap();
    let mut writer = Writer::new(&desk.authority, &id, "w", Payload::UpTo(8_000), 3);
    writer.append(400).await.unwrap();
    let bridge = desk.bridge(&[set("history.session_burst", "1000")]).await.unwrap();
    let (_, greedy) = token(&bridge, &desk.session("7", "greedy")).await;
    let (_, honest) = token(&bridge, &desk.session("7", "honest")).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(unread(&bridge.url(""), &greedy, &id, 12).await.unwrap());
    }
    let deadline = Instant::now() + FULL;
    let full = async || {
        let request = bridge
            .http()
            .get(bridge.url(&format!("{STREAMS_PATH}/{NOTES}/events?after=0")));
        request.bearer_auth(&greedy).send().await.unwrap().status().as_u16() == 429
    };
    while !full().await {
        assert!(Instant::now() < deadline, "the session gets all that it asks for");
    }
    for round in 0..20 {
        assert_eq!(history(&bridge, &honest).await, 200, "round {round}");
    }
    drop(held);
}

#[tokio::test]
async fn an_address_has_few_connections_and_none_that_says_nothing_for_long() {
    let desk = desk().await;
    let admin = port::free().unwrap().to_string();
    let few = [set("http.address_connections", "8"), set("http.admin_listen", &admin)];
    let bridge = desk.bridge(&few).await.unwrap();
    let at: std::net::SocketAddr = bridge.url("").trim_start_matches("http://").parse().unwrap();
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(at).await.unwrap());
    }
    let mut further = TcpStream::connect(at).await.unwrap();
    let mut nothing = Vec::new();
    for stream in std::iter::once(&mut further).chain(&mut silent) {
        let ended = timeout(SOON, stream.read_to_end(&mut nothing)).await;
        assert!(ended.is_ok() && nothing.is_empty(), "{nothing:?}");
        // The operator is served meanwhile.
        assert!(bridge.metrics().await.is_ok());
    }
    let client = reqwest::Client::new();
    assert!(client.get(bridge.url("/healthz")).send().await.is_ok());
}
