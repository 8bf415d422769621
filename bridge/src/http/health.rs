//! Answers whether the bridge is healthy, and whether it is ready.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use spacetime_sync_lane::health::Health;

use super::Side;
use super::admin::SeesAll;
use crate::status::health_json;

/// 503 if a restart or a person must repair something. An admin is told what.
pub(super) async fn healthz(State(side): State<Arc<Side>>, Extension(sees): Extension<SeesAll>) -> Response {
    let health = side.status.health(Instant::now());
    let word = if health.healthy { "healthy" } else { "unhealthy" };
    answer(health.healthy, word, &health, sees)
}

/// 503 until the authority is connected, and for the leader SpacetimeDB as well.
pub(super) async fn readyz(State(side): State<Arc<Side>>, Extension(sees): Extension<SeesAll>) -> Response {
    let health = side.status.health(Instant::now());
    let word = if health.ready { "ready" } else { "unready" };
    answer(health.ready, word, &health, sees)
}

/// Only the operator may read the names of streams, the reasons and the addresses.
fn answer(good: bool, word: &'static str, health: &Health, SeesAll(sees): SeesAll) -> Response {
    let status = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    if sees {
        (status, Json(health_json(health))).into_response()
    } else {
        (status, word).into_response()
    }
}
