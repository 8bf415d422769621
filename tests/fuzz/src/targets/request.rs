//! Requests to the bridge through its real routes: headers, credentials, bodies.
//!
//! Properties: every answer is one of the contract's, in its form, and reveals nothing of a credential. Only a
//! credential signed by our key gets what only a session may get.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::json;
use spacetime_sync_bridge::config::Config;
use spacetime_sync_bridge::http::{AdminToken, Admins, Listener, Side, router};
use spacetime_sync_bridge::status::Status;
use spacetime_sync_doors::quota::Rate;
use spacetime_sync_issuer::history::Histories;
use spacetime_sync_issuer::http::Desk;
use spacetime_sync_issuer::policy::{Granted, Wanted};
use spacetime_sync_issuer::revocation::Messenger;
use spacetime_sync_proto::RefusalCode;
use spacetime_sync_proto::Secret;
use spacetime_sync_proto::access::{
    Incompatible, REVOKE_PATH, Scope, TOKEN_PATH, TTL_SECONDS, TokenRefusal, TokenRequest, headers,
};
use spacetime_sync_proto::contract::{PROTOCOL, SCHEMA_VERSION};
use spacetime_sync_proto::limit;
use spacetime_sync_stdb as stdb;
use spacetime_sync_stdb::tokens::TokenSource;
use tower::ServiceExt as _;

use super::token;
use crate::lane::{ISSUER, pem};
use crate::mutate;
use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const REQUEST: Entry = Entry {
    name: "request",
    about: "the bridge's routes: the token endpoint, revocation, and unknown paths",
    dictionary: &[
        b"POST /api/sync/token",
        b"GET /.well-known/jwks.json",
        b"GET /api/sync/streams/",
        b"/internal/v1/sync/sessions/revoke",
        b"/internal//v1/",
        b"authorization: Bearer ",
        b"x-oa-client-build-id: 20261101T000000Z",
        b"x-oa-schema-version: 1",
        b"x-oa-client-surface: desktop",
        b"x-forwarded-for: 1.2.3.4",
        b"content-length: 0",
        b"scopes",
        b"streams",
        b"topics",
        b"ttl_seconds",
        b"device_id",
        b"session_id",
        b"sync.subscribe",
        b"sync.append",
        b"runtime.run.*",
        b"run:42:events",
    ],
    most: 80 * 1024,
    open: || Ok(Box::new(Requests::new()?)),
    seeds,
};

const ADMIN: &str = "an-admin-credential-of-the-fuzzers";

struct Requests {
    router: Router,
    runtime: tokio::runtime::Runtime,
    signed: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Requests {
    fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        token::sessions_config(folder.path())?;
        let file = folder.path().join("bridge.toml");
        std::fs::write(&file, configuration(folder.path())?)?;
        let config = Config::load(Some(&file), std::iter::empty())?;
        let issuer = config.open_issuer()?.context("no issuer")?;
        // No request gets that far, because there is no authority.
        let messenger = Messenger::new(&stdb::link::Target {
            uri: config.spacetimedb.uri.clone(),
            transport: config.spacetimedb.transport()?,
            database: config.spacetimedb.database.clone(),
            pin: None,
            tokens: TokenSource::Fixed(Secret::from("none".to_owned())),
            compatibility: None,
            deadline: Duration::from_secs(1),
        });
        let desk = Desk {
            issuer,
            histories: Arc::new(Histories::new(&config.history, config.limits.frame_bytes)),
            messenger,
            reports: tokio::sync::mpsc::channel(1).0,
            proxy: config.http.proxy(),
        };
        let side = Side {
            status: Arc::new(Status::new(Duration::from_secs(10))),
            desk: Some(Arc::new(desk)),
            admins: Arc::new(Admins::new(
                Some(AdminToken::new(&Secret::from(ADMIN.to_owned()))),
                None,
                Rate::per_second(1_000_000, 1_000_000),
                Instant::now(),
            )),
            proxy: config.http.proxy(),
        };
        let listener = Listener::Only { open: false };
        Ok(Self {
            router: router(&Arc::new(side), listener),
            runtime: tokio::runtime::Builder::new_current_thread().enable_time().build()?,
            signed: token::signed_messages()?,
            _folder: folder,
        })
    }

    /// Status, headers and body of the answer.
    fn ask(&self, request: Request<Body>) -> anyhow::Result<(StatusCode, axum::http::HeaderMap, Vec<u8>)> {
        let router = self.router.clone();
        self.runtime.block_on(async {
            let answer = router.oneshot(request).await?;
            let (parts, body) = answer.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await?;
            Ok((parts.status, parts.headers, body.to_vec()))
        })
    }
}

fn configuration(folder: &std::path::Path) -> anyhow::Result<String> {
    let key = pem(3)?.expose().replace('\n', "\\n");
    let (p256, rsa) = (folder.join("p256.pem"), folder.join("rsa.pem"));
    Ok(format!(
        r#"[authority]
url = "postgres://nobody@127.0.0.1:1/none"
[spacetimedb]
uri = "http://127.0.0.1:1"
database = "lane"
unpinned = true
[http]
behind_proxy = true
[issuer]
url = "{ISSUER}"
key = "{key}"
session_per_minute = 1000000
session_burst = 1000000
checks_per_second = 1000000
checks_burst = 1000000
failures_per_minute = 1000000
failures_burst = 1000000
[sessions]
issuer = "{}"
audience = "{}"
public_keys = ["{}", "{}"]
[compatibility]
min_client_build_id = "20260101T000000Z"
max_client_build_id = "20271231T000000Z"
"#,
        crate::lane::SESSIONS.0,
        crate::lane::SESSIONS.1,
        p256.display(),
        rsa.display(),
    ))
}

/// A request as it would stand on the wire, parsed as leniently as possible. `None` if it cannot be a request at all
/// and would never reach the routes.
fn read(input: &[u8]) -> Option<Request<Body>> {
    let end = input.windows(2).position(|two| two == b"\n\n").unwrap_or(input.len());
    let (head, body) = (&input[..end], input.get(end + 2..).unwrap_or_default());
    let mut lines = head.split(|byte| *byte == b'\n');
    let first = std::str::from_utf8(lines.next()?).ok()?;
    let (method, target) = first.split_once(' ')?;
    let mut request = Request::new(Body::from(body.to_vec()));
    *request.method_mut() = Method::from_bytes(method.as_bytes()).ok()?;
    *request.uri_mut() = target.parse::<Uri>().ok()?;
    for line in lines {
        let at = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..at]).ok()?;
        let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii()).ok()?;
        request.headers_mut().append(name, value);
    }
    let peer: SocketAddr = ([127, 0, 0, 1], 40_000).into();
    request.extensions_mut().insert(ConnectInfo(peer));
    Some(request)
}

impl Target for Requests {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let Some(request) = read(input) else {
            return Ok(Verdict::Refused);
        };
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let authorization = request.headers().get(header::AUTHORIZATION).cloned();
        let credential = authorization
            .as_ref()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let body = input
            .windows(2)
            .position(|two| two == b"\n\n")
            .map_or(&[][..], |end| &input[end + 2..]);
        let (status, said, answer) = self.ask(request)?;

        ensure!(said.contains_key(header::CACHE_CONTROL) && said.contains_key(header::X_CONTENT_TYPE_OPTIONS));
        ensure!(status != StatusCode::INTERNAL_SERVER_ERROR, "500");
        let text = String::from_utf8_lossy(&answer);
        if let Some((_, secret)) = credential.as_deref().and_then(|value| value.split_once(' '))
            && secret.len() > 64
        {
            ensure!(!text.contains(secret), "the answer reveals the credential");
        }
        let internal = path == "/internal" || path.starts_with("/internal/") || path == "/metrics";
        if internal && credential.as_deref().is_none_or(|value| !is_admin(value)) {
            ensure!(
                status == StatusCode::UNAUTHORIZED,
                "{path} answers {status} to a request without the admin's credential"
            );
            return Ok(Verdict::Refused);
        }
        if ["/healthz", "/readyz"].contains(&path.as_str())
            && credential.as_deref().is_none_or(|value| !is_admin(value))
        {
            ensure!(
                answer.len() < 200 && !text.contains("problems"),
                "{path} tells a stranger {text}"
            );
            let refused = [StatusCode::UNAUTHORIZED, StatusCode::TOO_MANY_REQUESTS].contains(&status);
            ensure!(!refused, "{path} answers {status}");
        }
        if method != Method::POST || (path != TOKEN_PATH && path != REVOKE_PATH) {
            return Ok(Verdict::taken(status == StatusCode::OK));
        }
        if status == StatusCode::UPGRADE_REQUIRED {
            let why: Incompatible = serde_json::from_slice(&answer)?;
            ensure!(!why.retryable && said.contains_key(headers::CODE));
            return Ok(Verdict::Refused);
        }
        if path == REVOKE_PATH && status == StatusCode::PAYLOAD_TOO_LARGE {
            return Ok(Verdict::Refused);
        }
        let refusal: TokenRefusal = serde_json::from_slice(&answer).with_context(|| format!("{status}: {text}"))?;
        let done = refusal.code == RefusalCode::SyncTokenUnavailable;
        if path == TOKEN_PATH {
            let before_who = matches!(
                refusal.code,
                RefusalCode::MissingAuthorization
                    | RefusalCode::InvalidAuthorizationScheme
                    | RefusalCode::InvalidToken
                    | RefusalCode::TokenExpired
                    | RefusalCode::TokenNotYetValid
                    | RefusalCode::MissingIat
            );
            ensure!(before_who == (status == StatusCode::UNAUTHORIZED), "{status}: {text}");
            if !before_who {
                let token = credential.as_deref().and_then(|value| value.split_once(' '));
                let message = token.and_then(|(_, token)| Some(token.trim().rsplit_once('.')?.0));
                ensure!(
                    self.signed.iter().any(|signed| Some(signed.as_str()) == message),
                    "{text} answers a credential that our key has not signed"
                );
            }
            if done {
                wanted(body)?;
            }
        }
        Ok(Verdict::taken(done))
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        let end = input.windows(2).position(|two| two == b"\n\n")?;
        let (head, body) = (&input[..end], &input[end + 2..]);
        let mut head = head.to_vec();
        if rng.random_bool(0.2) {
            head = other_credential(rng, &head).unwrap_or(head);
        }
        if rng.random_bool(0.3) {
            mutate::bytes(rng, &mut head, &[], REQUEST.dictionary, 8_192);
        }
        let body = mutate::json(rng, body, REQUEST.dictionary)?;
        Some([&head[..], b"\n\n", &body].concat())
    }
}

/// Replaces the credential with another one of the same form.
fn other_credential(rng: &mut StdRng, head: &[u8]) -> Option<Vec<u8>> {
    let scheme = b"Bearer ";
    let from = head.windows(scheme.len()).position(|text| text == scheme)? + scheme.len();
    let length = head[from..].iter().position(|byte| *byte == b'\n');
    let to = length.map_or(head.len(), |length| from + length);
    let token = mutate::compact(rng, &head[from..to], REQUEST.dictionary)?;
    Some([&head[..from], &token, &head[to..]].concat())
}

fn is_admin(value: &str) -> bool {
    let (scheme, token) = value.split_at_checked(7).unwrap_or_default();
    scheme.eq_ignore_ascii_case("bearer ") && token == ADMIN
}

/// Checks that a request that got as far as the authority makes sense.
fn wanted(body: &[u8]) -> anyhow::Result<()> {
    ensure!(body.len() <= 64 * 1024);
    let request: TokenRequest = serde_json::from_slice(body)?;
    let wanted = Wanted::read(&request)?;
    ensure!(!wanted.scopes.is_empty() && !wanted.streams.is_empty());
    ensure!(wanted.streams.len() <= limit::TOKEN_STREAMS && TTL_SECONDS.contains(&wanted.ttl_seconds));
    let scopes_are = |granted: &Granted, least: bool| {
        let expected = wanted.scopes.iter().filter(|scope| !(least && scope.needs_policy()));
        granted.scopes.iter().eq(expected)
    };
    if let Ok(granted) = wanted.grant(&wanted.streams, &[]) {
        ensure!(scopes_are(&granted, true), "a scope is granted that needs policy");
    }
    if let Ok(granted) = wanted.grant(&wanted.streams, Scope::ALL) {
        ensure!(granted.streams.len() <= limit::TOKEN_STREAMS && scopes_are(&granted, false));
        let asked = |stream: &spacetime_sync_proto::access::StreamPattern| {
            wanted
                .streams
                .iter()
                .any(|wanted| wanted.intersect(stream).as_ref() == Some(stream))
        };
        ensure!(granted.streams.iter().all(asked), "more is granted than was asked for");
    }
    Ok(())
}

fn seeds() -> anyhow::Result<Vec<Seed>> {
    let credential = token::credential()?;
    let client = format!(
        "{}: 20261101T000000Z\n{}: {PROTOCOL}\n{}: {SCHEMA_VERSION}\n{}: desktop",
        headers::CLIENT_BUILD_ID,
        headers::PROTOCOL_VERSION,
        headers::SCHEMA_VERSION,
        headers::CLIENT_SURFACE,
    );
    let post = |path: &str, headers: &str, body: &serde_json::Value| format!("POST {path}\n{headers}\n\n{body}");
    let body = json!({
        "scopes": ["sync.subscribe", "sync.presence.serve", "runtime.run_events"],
        "streams": ["runtime.run.42.events", "user:7:*"],
        "topics": ["run:42:events"], "ttl_seconds": 300, "device_id": "d1",
    });
    let asking = format!("authorization: Bearer {credential}\n{client}");
    let admin = format!("authorization: Bearer {ADMIN}");
    let revocation = json!({ "session_id": "s1", "session_ids": ["s2"], "reason": "lost" });
    Ok(vec![
        Seed::new("token", post(TOKEN_PATH, &asking, &body)),
        Seed::new(
            "token-least",
            post(
                TOKEN_PATH,
                &asking,
                &json!({ "scopes": ["sync.subscribe"], "streams": ["a"] }),
            ),
        ),
        Seed::new("token-anonymous", post(TOKEN_PATH, &client, &body)),
        Seed::new(
            "token-old",
            post(TOKEN_PATH, "x-forwarded-for: 1.2.3.4, 5.6.7.8", &body),
        ),
        Seed::new("revoke", post(REVOKE_PATH, &admin, &revocation)),
        Seed::new("keys", "GET /.well-known/jwks.json"),
        Seed::new("health", "GET /healthz"),
        Seed::new(
            "events",
            "GET /api/sync/streams/runtime.run.1.events/events?after=0&limit=3",
        ),
        Seed::new("snapshot", "GET /api/sync/streams/runtime%2Frun/snapshot"),
        Seed::new(
            "documents",
            "GET /api/sync/streams/runtime.run_summaries/documents?limit=3",
        ),
        Seed::new(
            "content",
            "GET /api/sync/streams/runtime.run_summaries/document?key=runtime/run_summary:1&hash=sha256:00",
        ),
        Seed::new("internal", "GET /internal/v1/spacetime/sync/metrics"),
    ])
}
