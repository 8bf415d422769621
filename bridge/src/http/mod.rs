//! The bridge's HTTP side: health and metrics, and the issuer's routes.
//!
//! Strangers learn from it in one word how the bridge is, and nothing else. Below `/internal/`, everybody but an admin gets
//! a 401, even if the route does not exist; where the operator has a listener of their own, nothing below it exists for
//! clients.

mod admin;
mod health;
mod metrics;
pub mod server;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use spacetime_sync_doors::asker::{Proxy, Unexpected};
use spacetime_sync_issuer::denial::Denial;
use spacetime_sync_issuer::http::refusal::{not_found, refuse};
use spacetime_sync_issuer::http::{BODY_BYTES, Desk};

use crate::status::Status;
use admin::SeesAll;

pub use admin::{AdminToken, Admins};

/// How long a request may take, including its body.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// What the routes need.
#[derive(Debug)]
pub struct Side {
    /// The health and the counters of the bridge.
    pub status: Arc<Status>,
    /// What the issuer's routes need. `None` if this bridge issues no tokens.
    pub desk: Option<Arc<Desk>>,
    /// Who is an admin.
    pub admins: Arc<Admins>,
    /// Whether every request of a client comes through the operator's proxy.
    pub proxy: Proxy,
}

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// For everybody. Whoever has the admin credential sees everything; if `open`, everybody sees health and metrics for whom
    /// no proxy speaks.
    Only {
        /// See there.
        open: bool,
    },
    /// For clients, beside a listener for the operator: there are no admins here.
    Clients,
    /// For the operator, who needs no credential to see health and metrics, unless a proxy passes the question on.
    Operator,
}

/// The routes of a listener.
pub fn router(side: &Arc<Side>, listener: Listener) -> Router {
    let [healthz, readyz] = admin::HEALTH_PATHS;
    let health = Router::new()
        .route(healthz, get(health::healthz))
        .route(readyz, get(health::readyz));
    let metrics = Router::new()
        .route(admin::TEXT_PATH, get(metrics::text))
        .route(admin::METRICS_PATH, get(metrics::json));
    let clients = || spacetime_sync_issuer::http::router(side.desk.clone());
    let internal = || spacetime_sync_issuer::http::internal_router(side.desk.clone());
    let routes = match listener {
        Listener::Only { .. } => health
            .merge(metrics)
            .with_state(side.clone())
            .merge(clients())
            .merge(internal()),
        Listener::Clients => health.with_state(side.clone()).merge(clients()),
        Listener::Operator => health.merge(metrics).with_state(side.clone()).merge(internal()),
    };
    let routes = routes.fallback(not_found).layer(DefaultBodyLimit::max(BODY_BYTES));
    let routes = if listener == Listener::Clients {
        routes.layer(Extension(SeesAll(false)))
    } else {
        let guard = admin::Guard {
            admins: side.admins.clone(),
            desk: side.desk.clone(),
            // The operator's listener is not behind the proxy of the clients.
            proxy: if listener == Listener::Operator {
                Proxy::None
            } else {
                side.proxy
            },
            open: matches!(listener, Listener::Operator | Listener::Only { open: true }),
        };
        routes.layer(middleware::from_fn_with_state(Arc::new(guard), admin::guard))
    };
    let routes = if side.proxy == Proxy::None {
        routes.layer(middleware::from_fn_with_state(
            Arc::<Unexpected>::default(),
            admin::notice,
        ))
    } else {
        routes
    };
    routes.layer(middleware::from_fn(bounded))
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
