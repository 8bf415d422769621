//! Says who is an admin, and guards everything that only an admin may see.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use spacetime_sync_doors::asker::{Origin, Proxy, Unexpected, asker, is_passed_on};
use spacetime_sync_doors::buckets::Buckets;
use spacetime_sync_doors::quota::Rate;
use spacetime_sync_issuer::denial::Denial;
use spacetime_sync_issuer::http::Desk;
use spacetime_sync_issuer::http::refusal::refuse;
use spacetime_sync_proto::access::REVOKED_PATH;
use spacetime_sync_proto::{RefusalCode, Secret};
use subtle::ConstantTimeEq as _;

pub(super) const METRICS_PATH: &str = "/internal/v1/spacetime/sync/metrics";
pub(super) const TEXT_PATH: &str = "/metrics";
pub(super) const HEALTH_PATHS: [&str; 2] = ["/healthz", "/readyz"];
const GUARDED: &str = "/internal";
/// Most origins that are remembered because they have shown a right credential.
const TRUSTED: usize = 1_024;

/// The hash of the admin credential. Hashes have one length, so that comparing them reveals nothing.
#[derive(Clone)]
pub struct AdminToken([u8; 32]);

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminToken(secret)")
    }
}

impl AdminToken {
    /// Hashes a credential.
    pub fn new(token: &Secret) -> Self {
        Self(hash(token.expose().as_bytes()))
    }

    /// Whether the value of an `Authorization` header is this credential. The comparison takes constant time.
    fn is(&self, authorization: &[u8]) -> bool {
        let (scheme, token) = authorization.split_at_checked(7).unwrap_or((b"", b""));
        let right = self.0.ct_eq(&hash(token));
        scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(right)
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    hash.copy_from_slice(digest.as_ref());
    hash
}

/// Who may come through to what only an admin may see.
#[derive(Debug)]
pub struct Admins {
    /// The admin credential. `None` if nobody is an admin.
    pub admin: Option<AdminToken>,
    /// The credential of the gates. `None` if a gate needs the admin's.
    pub gate: Option<AdminToken>,
    guesses: Buckets<Guesser>,
    trusted: Mutex<HashSet<Guesser>>,
}

/// Who shows credentials, and where. A gate with an old credential keeps no admin out who has the same address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Guesser {
    origin: Origin,
    among_gates: bool,
}

impl Admins {
    /// Whoever has one of these credentials. An origin that has shown none of them may guess as often as `guesses` says.
    pub fn new(admin: Option<AdminToken>, gate: Option<AdminToken>, guesses: Rate, now: Instant) -> Self {
        Self {
            admin,
            gate,
            guesses: Buckets::new(guesses, now),
            trusted: Mutex::default(),
        }
    }

    /// Whether whoever shows this may see what is at this path.
    ///
    /// After too many wrong credentials an origin is not heard, so that nobody finds the right one by guessing. An origin
    /// that has shown a right one before is heard all the same, whoever else guesses there. Where gates ask, both are
    /// counted apart.
    fn judge(&self, authorization: Option<&[u8]>, path: &str, origin: &Origin, now: Instant) -> Result<(), Denial> {
        let Some(authorization) = authorization else {
            return Err(unauthorized());
        };
        let is = |known: &Option<AdminToken>| known.as_ref().is_some_and(|known| known.is(authorization));
        let guesser = Guesser {
            origin: origin.clone(),
            among_gates: path == REVOKED_PATH,
        };
        let right = is(&self.admin) | (is(&self.gate) & guesser.among_gates);
        let mut trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        let limited = |wait| Denial::rate_limited("too many credentials from this address were wrong", wait);
        if !right {
            return match self.guesses.take(guesser, now) {
                Ok(()) => Err(unauthorized()),
                Err(wait) => Err(limited(wait)),
            };
        }
        if !trusted.contains(&guesser) {
            self.guesses.peek(&guesser, now).map_err(limited)?;
            if trusted.len() < TRUSTED {
                trusted.insert(guesser);
            }
        }
        Ok(())
    }
}

fn unauthorized() -> Denial {
    let message = "expected the admin credential as a bearer token";
    Denial::new(RefusalCode::Unauthorized, message)
}

/// Whether a request may see what only the operator may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SeesAll(pub(super) bool);

/// What decides who may see the operator's routes of a listener.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) admins: Arc<Admins>,
    pub(super) desk: Option<Arc<Desk>>,
    pub(super) proxy: Proxy,
    /// Whether everybody who reaches this listener may see health and metrics.
    pub(super) open: bool,
}

/// Notices a proxy of which the configuration says nothing.
pub(super) async fn notice(
    State(unexpected): State<Arc<Unexpected>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    unexpected.notice(request.headers(), peer.ip(), "http.behind_proxy");
    next.run(request).await
}

/// Lets only an admin to what is guarded, and a gate to the one route that is for gates. Everybody may ask for health,
/// but only an admin is told why; a wrong credential counts there, too, and gets the answer that everybody gets.
pub(super) async fn guard(
    State(guard): State<Arc<Guard>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let (health, metrics) = (HEALTH_PATHS.contains(&path), [METRICS_PATH, TEXT_PATH].contains(&path));
    let internal = path == GUARDED || path.strip_prefix(GUARDED).is_some_and(|rest| rest.starts_with('/'));
    let sent = request.headers();
    let authorization = sent.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    // A peer that speaks for others shows them nothing.
    let open = guard.open && (health || metrics) && !is_passed_on(sent);
    let mut sees = open;
    if !open && (internal || metrics || (health && authorization.is_some())) {
        let asker = asker(sent, peer.ip(), guard.proxy);
        let judged = guard.admins.judge(authorization, path, &asker.origin, Instant::now());
        sees = judged.is_ok();
        if let Err(denial) = judged {
            let denial = match &guard.desk {
                Some(desk) => desk.issuer.counted(denial),
                None => denial,
            };
            if !health {
                return refuse(&denial);
            }
        }
    }
    request.extensions_mut().insert(SeesAll(sees));
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use axum::{Extension, Router};

    use super::*;

    #[test]
    fn only_the_exact_credential_is_accepted() {
        let admin = AdminToken::new(&Secret::from("0123456789abcdef".to_owned()));
        for (value, expected) in [
            ("Bearer 0123456789abcdef", true),
            ("bearer 0123456789abcdef", true),
            ("Bearer 0123456789abcde", false),
            ("Bearer 0123456789abcdef0", false),
            ("Bearer  0123456789abcdef", false),
            ("Basic 0123456789abcdef", false),
            ("0123456789abcdef", false),
            ("Bearer ", false),
            ("", false),
        ] {
            assert_eq!(admin.is(value.as_bytes()), expected, "{value:?}");
        }
        assert!(!format!("{admin:?}").contains("0123"));
    }

    const RIGHT: &str = "Bearer 0123456789abcdef";
    const GATE: &str = "Bearer fedcba9876543210";

    fn admins(now: Instant) -> Admins {
        let token = |text: &str| Some(AdminToken::new(&Secret::from(text[7..].to_owned())));
        Admins::new(token(RIGHT), token(GATE), Rate::per_minute(1, 3), now)
    }

    fn told(admins: &Admins, value: &str, path: &str, last: u8, now: Instant) -> Option<RefusalCode> {
        let origin = Origin::of([10, 0, 0, last].into());
        let judged = admins.judge(Some(value.as_bytes()), path, &origin, now);
        judged.err().map(|denial| denial.code)
    }

    #[test]
    fn guesses_are_limited_and_keep_no_admin_out_who_was_there_before() {
        let now = Instant::now();
        let admins = admins(now);
        let (wrong, limited) = (Some(RefusalCode::Unauthorized), Some(RefusalCode::RateLimited));
        let told = |value, last| told(&admins, value, METRICS_PATH, last, now);
        assert_eq!(told(RIGHT, 1), None);
        for last in [1, 2] {
            let guesses = [(); 4].map(|()| told("Bearer guess", last));
            assert_eq!(guesses, [wrong, wrong, wrong, limited]);
        }
        assert_eq!(told(RIGHT, 1), None);
        assert_eq!(
            told(RIGHT, 2),
            limited,
            "whoever guesses does not hear that a guess is right"
        );
        assert_eq!(told(RIGHT, 3), None);
    }

    #[test]
    fn what_a_gate_shows_neither_keeps_an_admin_out_nor_lets_anybody_guess() {
        let now = Instant::now();
        let admins = admins(now);
        let limited = Some(RefusalCode::RateLimited);
        let wrong = |path, last| [(); 4].map(|()| told(&admins, "Bearer guess", path, last, now))[3];
        // A gate with an old credential, and an admin, at one address.
        assert_eq!(wrong(REVOKED_PATH, 1), limited);
        assert_eq!(told(&admins, GATE, REVOKED_PATH, 1, now), limited);
        assert_eq!(told(&admins, RIGHT, METRICS_PATH, 1, now), None);
        assert_eq!(wrong(METRICS_PATH, 1), limited);
        assert_eq!(told(&admins, RIGHT, METRICS_PATH, 1, now), None);
        // A gate with the right one, and somebody who guesses.
        assert_eq!(told(&admins, GATE, REVOKED_PATH, 2, now), None);
        assert_eq!(wrong(METRICS_PATH, 2), limited);
        assert_eq!(told(&admins, RIGHT, METRICS_PATH, 2, now), limited);
        assert_eq!(told(&admins, GATE, REVOKED_PATH, 2, now), None);
    }

    #[test]
    fn a_gate_may_ask_who_was_revoked_and_nothing_else() {
        let now = Instant::now();
        let admins = admins(now);
        assert_eq!(told(&admins, GATE, REVOKED_PATH, 1, now), None);
        for path in [METRICS_PATH, TEXT_PATH, "/internal", HEALTH_PATHS[0]] {
            let refused = told(&admins, GATE, path, 2, now);
            assert!(refused.is_some(), "{path}");
        }
    }
    async fn seen(Extension(SeesAll(sees)): Extension<SeesAll>) -> &'static str {
        if sees { "all" } else { "a word" }
    }

    type Headers<'a> = &'a [(&'a str, &'a str)];

    /// Asks a listener with a guard: status and text of its answers to paths with these headers.
    async fn answers(open: bool, asked: &[(&str, Headers<'_>)]) -> Vec<(u16, String)> {
        let guard = Arc::new(Guard {
            admins: Arc::new(admins(Instant::now())),
            desk: None,
            proxy: Proxy::None,
            open,
        });
        let routes = Router::new()
            .route(HEALTH_PATHS[0], get(seen))
            .route(TEXT_PATH, get(seen))
            .layer(from_fn_with_state(guard, super::guard))
            .into_make_service_with_connect_info::<SocketAddr>();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, routes).into_future());
        let mut answers = Vec::new();
        for (path, headers) in asked {
            let mut request = reqwest::Client::new().get(format!("http://{at}{path}"));
            for (name, value) in *headers {
                request = request.header(*name, *value);
            }
            let answer = request.send().await.unwrap();
            answers.push((answer.status().as_u16(), answer.text().await.unwrap()));
        }
        answers
    }

    #[tokio::test]
    async fn nobody_for_whom_a_proxy_speaks_sees_what_is_open() {
        let by_x: Headers<'_> = &[("x-forwarded-for", "10.0.0.1")];
        let by_rfc: Headers<'_> = &[("forwarded", "for=10.0.0.1")];
        let right: Headers<'_> = &[by_rfc[0], ("authorization", RIGHT)];
        let none: Headers<'_> = &[];
        let asked = [
            ("/healthz", none),
            ("/metrics", none),
            ("/healthz", by_x),
            ("/healthz", by_rfc),
            ("/metrics", right),
            ("/metrics", by_x),
        ];
        let told = answers(true, &asked).await;
        let texts: Vec<_> = told.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts[..5], ["all", "all", "a word", "a word", "all"]);
        assert_eq!(told[5].0, 401);
    }

    #[tokio::test]
    async fn a_wrong_credential_at_health_counts_and_gets_the_answer_that_everybody_gets() {
        let right: Headers<'_> = &[("authorization", RIGHT)];
        let none: Headers<'_> = &[];
        let wrong: Headers<'_> = &[("authorization", "Bearer guess")];
        let mut asked = vec![("/healthz", none)];
        asked.extend([("/healthz", wrong); 5]);
        asked.extend([("/metrics", wrong), ("/healthz", right), ("/metrics", right)]);
        let told = answers(false, &asked).await;
        assert!(
            told[..6].iter().all(|told| *told == (200, "a word".to_owned())),
            "{told:?}"
        );
        assert_eq!((told[6].0, &*told[7].1, told[8].0), (429, "a word", 429));
    }
}
