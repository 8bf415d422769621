//! Answers whether the bridge is healthy, and whether it is ready.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};

use super::Side;
use crate::status::health_json;

/// 503 if a restart or a person must repair something. The body says what.
pub(super) async fn healthz(State(side): State<Arc<Side>>) -> Response {
    let health = side.status.health(Instant::now());
    (code(health.healthy), Json(health_json(&health))).into_response()
}

/// 503 until the authority is connected, and for the leader SpacetimeDB as well.
pub(super) async fn readyz(State(side): State<Arc<Side>>) -> Response {
    let health = side.status.health(Instant::now());
    (code(health.ready), Json(health_json(&health))).into_response()
}

fn code(good: bool) -> StatusCode {
    if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}
