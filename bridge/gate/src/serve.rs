//! Accepts clients: who asks, with which token, and for what. Everything that can be refused is refused before
//! SpacetimeDB hears of it.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Path, RawQuery, Request, State};
use axum::http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderMap, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use spacetime_sync_doors::asker::{Asker, Origin, Proxy, Unexpected, asker};
use spacetime_sync_doors::failure::is_failure;
use spacetime_sync_doors::sockets;
use spacetime_sync_proto::{Label, Refusal, RefusalCode, error_text};
use spacetime_sync_rules::session::Policy;
use spacetime_sync_transport::Transport;
use spacetimedb_client_api_messages::websocket::v2::BIN_PROTOCOL;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::access::{self, Caller, Unverified, Verifier, judge};
use crate::counters::{Counters, count};
use crate::decide::Connection;
use crate::lead::{Lead, about};
use crate::operator;
use crate::query::CONTRACT;
use crate::registry::{Registry, Turned};
use crate::relay::pool::Pool;
use crate::relay::{Ending, Terms, relay};
use crate::request::{options, socket_key};
use crate::seat::Seat;
use crate::settings::GateConfig;

/// How long a client may take to ask.
pub(crate) const HEADERS_LIMIT: Duration = Duration::from_secs(10);
/// The largest headers. The largest token fits, with room for what a proxy adds.
const HEADERS_BYTES: usize = 32 * 1024;
/// Largest question over HTTP.
const QUESTION_BYTES: usize = 1_024;
/// Most of an answer of SpacetimeDB over HTTP that passes: the contract, or a refusal.
const ANSWER_BYTES: usize = 64 * 1024;
/// How often the gate forgets who has left.
const FORGET: Duration = Duration::from_secs(10);

/// A gate.
#[derive(Debug)]
pub struct Gate {
    pub(crate) config: GateConfig,
    policy: Policy,
    verifier: Arc<dyn Verifier>,
    registry: Mutex<Registry<oneshot::Sender<Ending>>>,
    pub(crate) lead: Lead,
    counters: Counters,
    pool: Pool,
    pub(crate) server: reqwest::Client,
    /// Makes numbers of tokens. It has a secret of its own, so that nobody finds another token with the same number.
    tokens: RandomState,
    unexpected: Unexpected,
}

impl Gate {
    /// A gate that lets nobody in until it has heard of the revoked sessions.
    pub fn new(config: GateConfig, transport: &Transport, verifier: Arc<dyn Verifier>) -> Self {
        let server = transport
            .http(&config.spacetimedb_uri)
            .http1_only()
            .no_gzip()
            .pool_max_idle_per_host(0)
            .connect_timeout(config.connect_deadline())
            .build();
        Self {
            policy: access::policy(&config.issuer, &config.audience),
            verifier,
            registry: Mutex::new(Registry::new(config.quotas())),
            lead: Lead::default(),
            counters: Counters::default(),
            pool: Pool::new(config.buffers_bytes),
            tokens: RandomState::new(),
            unexpected: Unexpected::default(),
            // Fails only where no client can be made at all.
            server: server.expect("a client whose options are numbers"),
            config,
        }
    }

    /// These sessions were revoked lately, as of a time. Ends their connections.
    pub fn revoked(&self, sessions: HashSet<Label>, at: Instant) {
        let ended = self.registry().heard(sessions, at);
        if !ended.is_empty() {
            tracing::info!(connections = ended.len(), "sessions were revoked");
        }
        for end in ended {
            // Whoever is gone already needs no end.
            let _ = end.send(Ending::Revoked);
        }
    }

    /// How many connections are open, and whether the gate lets nobody in.
    pub(crate) fn state(&self) -> (usize, bool) {
        let registry = self.registry();
        (registry.connections(), registry.is_blind(Instant::now()))
    }

    /// How many bytes all connections hold together.
    pub(crate) fn held(&self) -> usize {
        self.pool.held()
    }

    /// What was counted.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry<oneshot::Sender<Ending>>> {
        // Nothing can panic while it holds the lock: under it we only count.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who asks, if the token is good.
    pub(crate) async fn caller(&self, headers: &HeaderMap, origin: &Origin) -> Result<Caller, No> {
        let refuse = |status, code, text: &str| No::Token(status, Refusal::new(code, text));
        let missing = || {
            let text = "connecting needs a token from the bridge: ask for one with POST /api/sync/token";
            refuse(StatusCode::UNAUTHORIZED, RefusalCode::MissingAuthorization, text)
        };
        let bearer = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(missing)?;
        let (scheme, token) = bearer.split_once(' ').ok_or_else(missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(missing());
        }
        let token = token.trim();
        let number = self.tokens.hash_one(token);
        self.registry().show(origin, number, Instant::now())?;
        let bad = |no| {
            self.registry().bad(origin, Instant::now());
            no
        };
        let claims = self
            .verifier
            .claims(token)
            .await
            .map_err(|unverified| match unverified {
                Unverified::Invalid => {
                    let text = "the token is not signed by the issuer of this lane";
                    bad(refuse(StatusCode::UNAUTHORIZED, RefusalCode::InvalidToken, text))
                }
                Unverified::Unavailable => No::Keys,
            })?;
        let unix = unix_now();
        let caller = judge(&claims, &self.policy, unix.as_secs());
        let caller = caller.map_err(|refusal| {
            let failed = is_failure(refusal.code);
            let no = No::Token(StatusCode::FORBIDDEN, refusal);
            if failed { bad(no) } else { no }
        })?;
        let now = Instant::now();
        let until = now + Duration::from_secs(caller.expires_at).saturating_sub(unix);
        let mut registry = self.registry();
        registry.good(origin, number, &caller.session_id, until);
        registry.may(&caller.session_id, now)?;
        drop(registry);
        Ok(caller)
    }

    pub(crate) fn answer(&self, no: &No) -> Response {
        let (counter, status, refusal) = match no {
            No::Turned(Turned::Busy(_)) => (&self.counters.turned_away, StatusCode::TOO_MANY_REQUESTS, None),
            No::Turned(Turned::Revoked) => (&self.counters.refused_tokens, StatusCode::FORBIDDEN, None),
            No::Turned(Turned::Blind) => (&self.counters.blind, StatusCode::SERVICE_UNAVAILABLE, None),
            No::Token(status, refusal) => (&self.counters.refused_tokens, *status, Some(refusal.clone())),
            No::Keys => {
                let text = "the gate does not know the keys of the issuer at the moment: try again later";
                let refusal = Refusal::new(RefusalCode::SyncTokenUnavailable, text);
                (&self.counters.blind, StatusCode::SERVICE_UNAVAILABLE, Some(refusal))
            }
            No::Strayed => {
                let text = "SpacetimeDB leads to another database than this lane's: the operator must look";
                let refusal = Refusal::new(RefusalCode::WrongDatabase, text);
                (&self.counters.unreached, StatusCode::FORBIDDEN, Some(refusal))
            }
            No::Unreached => {
                let text = "SpacetimeDB does not answer the gate: try again later";
                let refusal = Refusal::new(RefusalCode::SyncTokenUnavailable, text);
                (&self.counters.unreached, StatusCode::BAD_GATEWAY, Some(refusal))
            }
        };
        count(counter);
        let refusal = match (refusal, no) {
            (None, No::Turned(turned)) => turned.refusal(),
            (refusal, _) => refusal.unwrap_or_else(nothing_here),
        };
        let mut response = told(status, &refusal);
        if let No::Turned(Turned::Busy(wait)) = no {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

/// Why a request does not reach SpacetimeDB.
pub(crate) enum No {
    Turned(Turned),
    Token(StatusCode, Refusal),
    /// The issuer's keys are not known.
    Keys,
    /// SpacetimeDB leads to another database.
    Strayed,
    /// SpacetimeDB does not answer.
    Unreached,
}

impl From<Turned> for No {
    fn from(turned: Turned) -> Self {
        Self::Turned(turned)
    }
}

fn told(status: StatusCode, refusal: &Refusal) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], refusal.to_wire()).into_response()
}

fn nothing_here() -> Refusal {
    Refusal::new(RefusalCode::NotFound, "there is nothing here")
}

pub(crate) fn not_found() -> Response {
    told(StatusCode::NOT_FOUND, &nothing_here())
}

/// Whatever else is asked for.
async fn elsewhere(body: Body) -> Response {
    // If something that the client sent is unread when the socket closes, the client may lose the answer.
    let _ = said(body).await;
    not_found()
}

/// What a request says, if it is short.
async fn said(body: Body) -> Option<bytes::Bytes> {
    timeout(HEADERS_LIMIT, to_bytes(body, QUESTION_BYTES)).await.ok()?.ok()
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Serves clients and the operator for as long as the process runs.
pub async fn serve(gate: Arc<Gate>, clients: TcpListener, operator: TcpListener) {
    let router = Router::new()
        .route("/v1/database/{name}/subscribe", get(subscribe))
        .route("/v1/database/{name}/sql", post(ask))
        .route("/v1/database/{name}", get(about).fallback(elsewhere))
        .route("/v1/ping", get(async || ""))
        .fallback(elsewhere)
        .layer(from_fn_with_state(gate.clone(), charge))
        .with_state(gate.clone());
    let forgetting = async {
        loop {
            tokio::time::sleep(FORGET).await;
            gate.registry().forget(Instant::now());
        }
    };
    tokio::join!(
        accept(gate.clone(), clients, router),
        operator::serve(gate.clone(), operator),
        forgetting
    );
}

/// Charges the address that asks, unless its socket has paid: it brings one request.
async fn charge(
    State(gate): State<Arc<Gate>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let proxy = gate.config.proxy();
    if proxy != Proxy::None {
        let asker = asker(request.headers(), peer.ip(), proxy);
        let asked = gate.registry().ask(&asker.origin, Instant::now());
        if let Err(turned) = asked {
            return gate.answer(&turned.into());
        }
    } else {
        gate.unexpected
            .notice(request.headers(), peer.ip(), "gate.behind_proxy");
    }
    next.run(request).await
}

async fn accept(gate: Arc<Gate>, listener: TcpListener, router: Router) {
    let most = gate.config.sockets;
    // A proxy's address stands for many clients.
    let counts = gate.config.proxy() == Proxy::None;
    let serve = |stream, peer: SocketAddr| {
        let counted = counts.then(|| Origin::of(peer.ip()));
        if let Some(origin) = &counted
            && !gate.registry().arrive(origin, Instant::now())
        {
            count(&gate.counters.turned_away);
            return None;
        }
        let (gate, router) = (gate.clone(), router.clone());
        Some(async move {
            // The headers, the answer of SpacetimeDB, and the answer of the gate.
            let limit = 2 * HEADERS_LIMIT + gate.config.connect_deadline();
            if timeout(limit, serve_one(stream, peer, router)).await.is_err() {
                tracing::debug!(%peer, "a client took too long to ask");
            }
            if let Some(origin) = counted {
                gate.registry().leave(&origin);
            }
        })
    };
    sockets::accept(listener, most, serve).await;
}

/// Answers one socket: one request, which may begin a connection.
pub(crate) async fn serve_one(stream: TcpStream, peer: SocketAddr, router: Router) {
    let _ = stream.set_nodelay(true);
    let routes = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = hyper::service::Service::call(&routes, request);
        async {
            let mut answer = answer.await?;
            // Hyper would say it of a connection that begins, too, if it were told to keep nothing alive.
            if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                answer
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_LIMIT)
        .max_buf_size(HEADERS_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, %peer, "a connection broke");
    }
}

/// A connection: `GET /v1/database/{name}/subscribe`.
async fn subscribe(
    State(gate): State<Arc<Gate>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Response {
    let asker = asker(request.headers(), peer.ip(), gate.config.proxy());
    match connect(&gate, asker, &name, query.as_deref().unwrap_or_default(), request).await {
        Ok(response) => response,
        Err(no) => gate.answer(&no),
    }
}

async fn connect(
    gate: &Arc<Gate>,
    asker: Asker,
    name: &str,
    query: &str,
    mut request: Request,
) -> Result<Response, No> {
    let headers = request.headers();
    let caller = gate.caller(headers, &asker.origin).await?;
    let invalid = |text: &str| {
        Ok(told(
            StatusCode::BAD_REQUEST,
            &Refusal::new(RefusalCode::InvalidRequest, text),
        ))
    };
    let Some(key) = socket_key(headers) else {
        return invalid("expected a WebSocket of v2.bsatn.spacetimedb");
    };
    let Some(options) = options(query) else {
        return invalid("expected compression, connection_id and confirmed, and nothing else");
    };
    let (end, told) = oneshot::channel();
    let (id, replaced) = gate
        .registry()
        .open(&caller.session_id, &asker.origin, end, Instant::now())?;
    let seat = Seat {
        gate: gate.clone(),
        id,
        session_id: caller.session_id.clone(),
        asker,
    };
    if let Some(replaced) = replaced {
        let _ = replaced.send(Ending::Replaced);
    }
    // After the quotas, because it asks SpacetimeDB.
    let Some(database) = gate.address(name).await? else {
        return Ok(not_found());
    };
    let url = format!(
        "{}/v1/database/{database}/subscribe{options}",
        gate.config.spacetimedb_uri
    );
    let mut sent = gate.server.get(url);
    for (name, value) in [
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        (SEC_WEBSOCKET_KEY, key),
        (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(BIN_PROTOCOL)),
    ] {
        sent = sent.header(name, value);
    }
    if let Some(token) = headers.get(AUTHORIZATION) {
        sent = sent.header(AUTHORIZATION, token);
    }
    let answer = reach(gate, sent).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        count(&gate.counters.unreached);
        return Ok(passed_on(answer).await);
    }
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL] {
        if let Some(value) = answer.headers().get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    count(&gate.counters.opened);
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let limit = seat.gate.config.connect_deadline();
        let both = timeout(limit, async { tokio::join!(upgrading, answer.upgrade()) }).await;
        if let Ok((Ok(client), Ok(server))) = both {
            run(seat, caller, TokioIo::new(client), server, told).await;
        }
    });
    Ok(response)
}

/// Runs a connection to its end.
async fn run(
    seat: Seat,
    caller: Caller,
    client: TokioIo<hyper::upgrade::Upgraded>,
    server: reqwest::Upgraded,
    told: oneshot::Receiver<Ending>,
) {
    let gate = &seat.gate;
    let left = Duration::from_secs(caller.expires_at).saturating_sub(unix_now());
    let terms = Terms {
        connection: Connection::new(caller.identity, gate.config.limits()),
        message_bytes: gate.config.message_bytes,
        subscription_bytes: gate.config.subscription_bytes as u64,
        bounds: gate.config.backlog(),
        expires: Instant::now() + left,
        told,
        account: &seat,
        counters: &gate.counters,
        pool: &gate.pool,
    };
    let ending = relay(client, server, terms).await;
    match ending {
        Ending::Gone | Ending::Expired => {}
        Ending::Breach(breach) => {
            tracing::warn!(session = %seat.session_id, address = %seat.asker.address, %breach, "a connection was ended");
        }
        Ending::Slow | Ending::Revoked | Ending::Replaced => {
            tracing::info!(session = %seat.session_id, address = %seat.asker.address, ?ending, "a connection was ended");
        }
    }
}

/// Asks SpacetimeDB.
pub(crate) async fn reach(gate: &Gate, request: reqwest::RequestBuilder) -> Result<reqwest::Response, No> {
    match timeout(gate.config.connect_deadline(), request.send()).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            tracing::debug!(
                error = error_text(&error.without_url()),
                "SpacetimeDB cannot be reached"
            );
            Err(No::Unreached)
        }
        Err(_) => Err(No::Unreached),
    }
}

/// An answer of SpacetimeDB as it is, up to a length.
async fn passed_on(answer: reqwest::Response) -> Response {
    let status = answer.status();
    match bytes_of(answer).await {
        Some(body) => (status, body).into_response(),
        None => StatusCode::BAD_GATEWAY.into_response(),
    }
}

/// What SpacetimeDB says. `None` if its answer breaks off, or is too long.
pub(crate) async fn bytes_of(mut answer: reqwest::Response) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = timeout(HEADERS_LIMIT, answer.chunk()).await.ok()?.ok()? {
        if body.len() + chunk.len() > ANSWER_BYTES {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

/// The one question over HTTP that a client of the lane asks: for the contract, to learn why it is not let in.
async fn ask(
    State(gate): State<Arc<Gate>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let asker = asker(&headers, peer.ip(), gate.config.proxy());
    let answer = async {
        // First, because a socket that is closed with something unread takes the answer back.
        let question = said(body).await;
        let caller = gate.caller(&headers, &asker.origin).await?;
        gate.registry().question(&caller.session_id, Instant::now())?;
        if question.as_deref() != Some(CONTRACT.as_bytes()) {
            let refusal = Refusal::new(
                RefusalCode::Forbidden,
                "no SQL passes but the question for the contract",
            );
            count(&gate.counters.breaches);
            return Ok(told(StatusCode::FORBIDDEN, &refusal));
        }
        let Some(database) = gate.address(&name).await? else {
            return Ok(not_found());
        };
        let url = format!("{}/v1/database/{database}/sql", gate.config.spacetimedb_uri);
        let mut sent = gate.server.post(url).body(CONTRACT);
        if let Some(token) = headers.get(AUTHORIZATION) {
            sent = sent.header(AUTHORIZATION, token);
        }
        Ok(passed_on(reach(&gate, sent).await?).await)
    };
    answer.await.unwrap_or_else(|no| gate.answer(&no))
}

#[cfg(test)]
mod tests;
