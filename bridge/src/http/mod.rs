//! The bridge's HTTP side: how it is and what it counts, tokens and the keys that verify them, the log for who holds a
//! token, and what an admin may do.
//!
//! Whoever has no business below `/internal/` is told no more than 401, whether or not there is something.

mod admin;
mod discovery;
mod health;
mod history;
mod metrics;
mod refusal;
pub mod server;
mod token;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use spacetime_sync_proto::access::{RETIRED_ROUTES, REVOKE_PATH, TOKEN_PATH};
use tower_http::compression::CompressionLayer;

use crate::auth::Issuer;
use crate::auth::denial::Denial;
use crate::auth::revocation::Messenger;
use crate::history::Histories;
use crate::status::Status;
use refusal::{not_found, refuse};

pub use admin::AdminToken;

/// Largest body of a request.
const BODY_BYTES: usize = 64 * 1024;
/// How long a request may take, reading its body included.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// What the routes stand on.
#[derive(Debug)]
pub struct Side {
    /// How the bridge is.
    pub status: Arc<Status>,
    /// Who issues tokens; none if nobody does.
    pub issuer: Option<Arc<Issuer>>,
    /// Who reads the log for clients; none if nobody issues tokens.
    pub histories: Option<Arc<Histories>>,
    /// Who tells the module of revocations; none if nobody issues tokens.
    pub messenger: Option<Messenger>,
    /// Whether every request comes by a proxy of ours, which says for whom.
    pub behind_proxy: bool,
    /// The credential of an admin; none if nobody is one.
    pub admin: Option<AdminToken>,
}

/// The routes.
pub fn router(side: Side) -> Router {
    let side = Arc::new(side);
    let log = Router::new()
        .route(history::EVENTS_PATH, get(history::events))
        .route(history::SNAPSHOT_PATH, get(history::snapshot))
        .layer(CompressionLayer::new());
    let mut router = Router::new()
        .merge(log)
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::text))
        .route(admin::METRICS_PATH, get(metrics::json))
        .route(discovery::DOCUMENT_PATH, get(discovery::document))
        .route(discovery::KEYS_PATH, get(discovery::keys))
        .route(TOKEN_PATH, post(token::token).fallback(no_such_method))
        .route(REVOKE_PATH, post(admin::revoke).fallback(no_such_method));
    for route in RETIRED_ROUTES {
        router = router.route(route, any(not_found));
    }
    router
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(middleware::from_fn_with_state(side.clone(), admin::guard))
        .layer(middleware::from_fn(bounded))
        .with_state(side)
}

/// Gives up on a request that takes too long, and keeps answers out of caches unless they say otherwise.
async fn bounded(request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(REQUEST_LIMIT, next.run(request)).await;
    let mut response = answer.unwrap_or_else(|_| refuse(&Denial::unavailable("the request took too long")));
    let headers = response.headers_mut();
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn no_such_method(State(_): State<Arc<Side>>) -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "POST")]).into_response()
}
