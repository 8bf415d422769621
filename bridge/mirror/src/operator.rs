//! What the operator sees: health and metrics. The names of relays are shown, and nothing that is published.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde_json::json;

use crate::status::{Role, Snapshot, Status};

/// The routes.
pub fn router(status: Arc<Status>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(status)
}

async fn metrics(State(status): State<Arc<Status>>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text(&status.get())).into_response()
}

fn text(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let mut last = "";
    for (name, kind, labels, help, value) in snapshot.lines() {
        // Writing into a string cannot fail.
        if name != last {
            let _ = writeln!(text, "# HELP spacetime_sync_mirror_{name} {help}");
            let _ = writeln!(text, "# TYPE spacetime_sync_mirror_{name} {kind}");
            last = name;
        }
        let _ = writeln!(text, "spacetime_sync_mirror_{name}{labels} {value}");
    }
    text
}

/// The process lives. It needs no restart, whatever it waits for.
async fn healthz(State(status): State<Arc<Status>>) -> Response {
    Json(health(&status.get())).into_response()
}

/// 503 while it stands by, or the authority is away.
async fn readyz(State(status): State<Arc<Status>>) -> Response {
    let snapshot = status.get();
    let code = if snapshot.is_ready(Instant::now()) {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, Json(health(&snapshot))).into_response()
}

fn health(snapshot: &Snapshot) -> serde_json::Value {
    let role = match snapshot.role {
        Role::StandingBy => "standby",
        Role::Leading => "leading",
    };
    let failures: serde_json::Map<_, _> = snapshot
        .depth
        .failures
        .iter()
        .map(|(kind, count)| (kind.clone(), json!(count)))
        .collect();
    json!({
        "role": role,
        "outbox": {
            "depth": snapshot.depth.pending,
            "oldest_seconds": snapshot.depth.oldest_s,
            "parked": snapshot.depth.parked,
            "failures": failures,
        },
        "relays": snapshot.shown_relays(),
        "bad_policies": snapshot.bad_policies,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_is_explained_once() {
        let snapshot = Snapshot {
            relays: [
                ("wss://a/\"b".to_owned(), true),
                ("wss://me:hunter2@c".to_owned(), true),
                ("wss://you:hunter3@c".to_owned(), false),
                ("wss://d/?token=hunter2".to_owned(), true),
            ]
            .into(),
            ..Snapshot::default()
        };
        let text = text(&snapshot);
        let explained: Vec<_> = text.lines().filter(|line| line.starts_with("# HELP")).collect();
        let mut names: Vec<_> = explained.iter().map(|line| line.split(' ').nth(2)).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), explained.len(), "{text}");
        for shown in ["wss://a/%22b\"} 1", "wss://…@c\"} 0", "wss://d/?…\"} 1"] {
            let line = format!("spacetime_sync_mirror_relay_reached{{relay=\"{shown}");
            assert!(text.contains(&line), "{shown}: {text}");
        }
        assert!(
            !text.contains("hunter") && !health(&snapshot).to_string().contains("hunter"),
            "{text}"
        );
        assert!(
            text.contains("spacetime_sync_mirror_failures_total{kind=\"forgotten\"} 0"),
            "{text}"
        );
    }
}
