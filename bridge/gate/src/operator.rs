//! What the operator sees: health and metrics.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use spacetime_sync_doors::sockets;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::serve::{Gate, HEADERS_LIMIT, serve_one};

/// The most sockets at once. Further ones wait to be accepted.
const SOCKETS: usize = 32;

/// Serves for as long as the process runs: one request on each socket.
pub(crate) async fn serve(gate: Arc<Gate>, listener: TcpListener) {
    let router = router(gate);
    let serve = |stream, peer| {
        let router = router.clone();
        Some(async move {
            if timeout(2 * HEADERS_LIMIT, serve_one(stream, peer, router))
                .await
                .is_err()
            {
                tracing::debug!(%peer, "an operator took too long to ask");
            }
        })
    };
    sockets::accept(listener, SOCKETS, serve).await;
}

/// The routes.
fn router(gate: Arc<Gate>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(gate)
}

async fn metrics(State(gate): State<Arc<Gate>>) -> Response {
    let (connections, blind) = gate.state();
    let text = gate.counters().text(connections, gate.held(), blind);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// The process lives. It needs no restart, whatever it waits for.
async fn healthz(State(gate): State<Arc<Gate>>) -> Response {
    Json(health(&gate)).into_response()
}

/// 503 while the gate lets nobody in.
async fn readyz(State(gate): State<Arc<Gate>>) -> Response {
    let status = if gate.state().1 {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    (status, Json(health(&gate))).into_response()
}

fn health(gate: &Gate) -> serde_json::Value {
    let (connections, blind) = gate.state();
    serde_json::json!({ "connections": connections, "knows_revocations": !blind })
}
