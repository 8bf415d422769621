//! The bridge's HTTP side: how it is, and what it counts.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde_json::json;

use crate::status::Status;

/// The routes.
pub fn router(status: Arc<Status>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/internal/v1/spacetime/sync/metrics", get(metrics_json))
        .with_state(status)
}

/// 503 when there is work and no progress.
async fn healthz(State(status): State<Arc<Status>>) -> Response {
    let health = status.health();
    (code(health.healthy), Json(health)).into_response()
}

/// 503 until both sides are connected.
async fn readyz(State(status): State<Arc<Status>>) -> Response {
    let health = status.health();
    (code(health.ready), Json(health)).into_response()
}

fn code(good: bool) -> StatusCode {
    if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// In the text format of Prometheus.
async fn metrics(State(status): State<Arc<Status>>) -> Response {
    let (counters, load) = status.snapshot();
    let health = status.health();
    let mut text = String::new();
    for (name, kind, help, value) in [
        (
            "published_events_total",
            "counter",
            "Events acknowledged as durable.",
            counters.published_events,
        ),
        (
            "published_frames_total",
            "counter",
            "Frames acknowledged as durable.",
            counters.published_frames,
        ),
        (
            "refused_calls_total",
            "counter",
            "Calls refused by the module.",
            counters.refused_calls,
        ),
        (
            "lost_calls_total",
            "counter",
            "Calls that failed otherwise.",
            counters.lost_calls,
        ),
        (
            "links_total",
            "counter",
            "Times the link to SpacetimeDB was made.",
            counters.links,
        ),
        (
            "authority_failures_total",
            "counter",
            "Looks at the authority that failed.",
            counters.authority_failures,
        ),
        ("polls_total", "counter", "Looks for dirty streams.", counters.polls),
        ("wakes_total", "counter", "Wake-ups by the authority.", counters.wakes),
        (
            "lag_events",
            "gauge",
            "Events committed and not yet published.",
            health.lag_events,
        ),
        (
            "calls_in_flight",
            "gauge",
            "Calls not yet acknowledged.",
            load.calls as u64,
        ),
        (
            "bytes_under_way",
            "gauge",
            "Bytes read and not yet acknowledged.",
            load.bytes as u64,
        ),
        (
            "busy_streams",
            "gauge",
            "Streams with something to do.",
            load.busy_streams as u64,
        ),
        (
            "halted_streams",
            "gauge",
            "Streams that go no further until a person looks.",
            health.halted.len() as u64,
        ),
        (
            "healthy",
            "gauge",
            "1 unless there is work and no progress.",
            u64::from(health.healthy),
        ),
        (
            "ready",
            "gauge",
            "1 when both sides are connected.",
            u64::from(health.ready),
        ),
    ] {
        text += &format!("# HELP spacetime_sync_{name} {help}\n# TYPE spacetime_sync_{name} {kind}\n");
        text += &format!("spacetime_sync_{name} {value}\n");
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// The same for people and scripts.
async fn metrics_json(State(status): State<Arc<Status>>) -> Response {
    let (counters, load) = status.snapshot();
    let health = status.health();
    let bridge = json!({
        "calls_in_flight": load.calls,
        "bytes_under_way": load.bytes,
        "busy_streams": load.busy_streams,
    });
    Json(json!({ "transport": "spacetime_ws", "counters": counters, "bridge": bridge, "health": health }))
        .into_response()
}
