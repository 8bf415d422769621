//! The issuer's routes: tokens, the keys that verify them, revocation, and the log for holders of a token.

mod discovery;
pub mod documents;
pub mod heads;
mod history;
mod reading;
pub mod refusal;
mod revocation;
mod token;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use spacetime_sync_doors::asker::Proxy;
use spacetime_sync_lane::Report;
use spacetime_sync_proto::access::{RETIRED_ROUTES, REVOKE_PATH, REVOKED_PATH, TOKEN_PATH};
use spacetime_sync_proto::heads::HEADS_PATH;
use tokio::sync::mpsc;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;

use crate::Issuer;
use crate::history::Histories;
use crate::revocation::Messenger;
use refusal::not_found;

/// Largest body of a request.
pub const BODY_BYTES: usize = 64 * 1024;

/// What the routes need.
#[derive(Debug)]
pub struct Desk {
    /// Issues tokens.
    pub issuer: Arc<Issuer>,
    /// Reads the log for clients.
    pub histories: Arc<Histories>,
    /// Tells the module about revocations.
    pub messenger: Messenger,
    /// Takes clients' reports that SpacetimeDB contradicts the authority.
    pub reports: mpsc::Sender<Report>,
    /// Whether every request comes through the operator's proxy, and in which header it names the client.
    pub proxy: Proxy,
}

/// The routes for clients. Without a desk they answer that this bridge issues no tokens.
pub fn router(desk: Option<Arc<Desk>>) -> Router {
    let log = Router::new()
        .route(history::EVENTS_PATH, get(history::events))
        .route(history::SNAPSHOT_PATH, get(history::snapshot))
        .route(documents::DOCUMENTS_PATH, get(documents::documents))
        .route(documents::CONTENT_PATH, get(documents::content))
        .layer(CompressionLayer::new().quality(CompressionLevel::Fastest));
    let mut router = Router::new()
        .merge(log)
        .route(discovery::DOCUMENT_PATH, get(discovery::document))
        .route(discovery::KEYS_PATH, get(discovery::keys))
        .route(HEADS_PATH, post(heads::heads).fallback(no_such_method))
        .route(TOKEN_PATH, post(token::token).fallback(no_such_method));
    for route in RETIRED_ROUTES {
        router = router.route(route, any(not_found));
    }
    router.with_state(desk)
}

/// The routes of revocations, for admins and gates: the caller must guard them.
pub fn internal_router(desk: Option<Arc<Desk>>) -> Router {
    Router::new()
        .route(REVOKE_PATH, post(revocation::revoke).fallback(no_such_method))
        .route(REVOKED_PATH, get(revocation::revoked))
        .with_state(desk)
}

async fn no_such_method(State(_): State<Option<Arc<Desk>>>) -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "POST")]).into_response()
}
