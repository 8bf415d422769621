//! The bridge's HTTP side: health and metrics, and the issuer's routes.
//!
//! Below `/internal/`, everybody but an admin gets a 401, even if the route does not exist.

mod admin;
mod health;
mod metrics;
pub mod server;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use spacetime_sync_issuer::denial::Denial;
use spacetime_sync_issuer::http::refusal::{not_found, refuse};
use spacetime_sync_issuer::http::{BODY_BYTES, Desk};

use crate::status::Status;

pub use admin::AdminToken;

/// How long a request may take, including its body.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// What the routes need.
#[derive(Debug)]
pub struct Side {
    /// The health and the counters of the bridge.
    pub status: Arc<Status>,
    /// What the issuer's routes need. `None` if this bridge issues no tokens.
    pub desk: Option<Arc<Desk>>,
    /// The admin credential. `None` if nobody is an admin.
    pub admin: Option<AdminToken>,
    /// The credential of the gates. `None` if a gate needs the admin's.
    pub gate: Option<AdminToken>,
}

/// The routes.
pub fn router(side: Side) -> Router {
    let side = Arc::new(side);
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::text))
        .route(admin::METRICS_PATH, get(metrics::json))
        .with_state(side.clone())
        .merge(spacetime_sync_issuer::http::router(side.desk.clone()))
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(middleware::from_fn_with_state(side, admin::guard))
        .layer(middleware::from_fn(bounded))
}

/// Ends a request that takes too long, and keeps answers out of caches unless they say otherwise.
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
