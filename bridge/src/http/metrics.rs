//! The metrics, as text for Prometheus and as JSON.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Json, Response};
use serde_json::json;
use spacetime_sync_issuer::AuthCounters;
use spacetime_sync_issuer::history::Delivery;
use spacetime_sync_lane::health::{Counters, Health};
use spacetime_sync_lane::{Backlog, Load};

use super::Side;
use crate::status::{counters_json, health_json, journal_json};

type Line = (&'static str, &'static str, &'static str, u64);

/// The metrics in the text format of Prometheus.
pub(super) async fn text(State(side): State<Arc<Side>>) -> Response {
    let (counters, load) = side.status.snapshot();
    let mut lines = lane(counters, load, &side.status.health(Instant::now()));
    lines.extend(journal(side.status.journal(Instant::now())));
    if let Some(desk) = &side.desk {
        lines.extend(tokens(desk.issuer.counters()));
        lines.extend(history(desk.histories.delivery()));
    }
    let mut text = String::new();
    for (name, kind, help, value) in lines {
        text += &format!("# HELP spacetime_sync_{name} {help}\n# TYPE spacetime_sync_{name} {kind}\n");
        text += &format!("spacetime_sync_{name} {value}\n");
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// The metrics as JSON.
pub(super) async fn json(State(side): State<Arc<Side>>) -> Response {
    let (counters, load) = side.status.snapshot();
    let health = side.status.health(Instant::now());
    let bridge = json!({
        "calls_in_flight": load.calls,
        "bytes_under_way": load.bytes,
        "busy_streams": load.busy_streams,
    });
    let desk = side.desk.as_ref();
    let delivery = desk.map(|desk| desk.histories.delivery()).unwrap_or_default();
    let tokens = desk.map(|desk| desk.issuer.counters()).unwrap_or_default();
    Json(json!({
        "transport": "spacetime_ws",
        "counters": counters_json(&counters),
        "bridge": bridge,
        "health": health_json(&health),
        "journal": journal_json(side.status.journal(Instant::now())),
        "minted_total": tokens.minted_total,
        "rate_limited_total": tokens.rate_limited_total,
        "auth_failures": tokens.auth_failures,
        "delivery": delivery,
    }))
    .into_response()
}

fn lane(counters: Counters, load: Load, health: &Health) -> Vec<Line> {
    vec![
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
            "Calls that failed without a refusal.",
            counters.lost_calls,
        ),
        (
            "links_total",
            "counter",
            "How often the bridge connected to SpacetimeDB.",
            counters.links,
        ),
        (
            "authority_failures_total",
            "counter",
            "How often the authority did not answer.",
            counters.authority_failures,
        ),
        ("polls_total", "counter", "Looks for dirty streams.", counters.polls),
        (
            "compared_streams_total",
            "counter",
            "Streams compared with SpacetimeDB, on new links and in rounds.",
            counters.compared_streams,
        ),
        (
            "walks_total",
            "counter",
            "Walks through windows of streams about which clients report that SpacetimeDB contradicts the authority.",
            counters.walks,
        ),
        (
            "forgeries_total",
            "counter",
            "Streams in which somebody else than the bridge had written. Alert on any.",
            counters.forgeries,
        ),
        ("wakes_total", "counter", "Wake-ups by writers.", counters.wakes),
        (
            "purged_events_total",
            "counter",
            "Events purged from the authority's log.",
            counters.purged_events,
        ),
        (
            "kept_keys",
            "gauge",
            "About how many keys of purged events the authority keeps.",
            counters.kept_keys,
        ),
        (
            "authority_restored",
            "gauge",
            "1 when the authority was restored to an earlier time.",
            u64::from(health.authority_restored),
        ),
        (
            "lag_events",
            "gauge",
            "Events committed and not yet published, including those of halted streams.",
            health.lag.live_events.saturating_add(health.lag.halted_events),
        ),
        (
            "halted_lag_events",
            "gauge",
            "Events of halted streams that are committed and not yet published.",
            health.lag.halted_events,
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
            "Streams on which the bridge is working.",
            load.busy_streams as u64,
        ),
        (
            "halted_streams",
            "gauge",
            "Streams that are halted until a person repairs them.",
            health.halted.len() as u64,
        ),
        (
            "healthy",
            "gauge",
            "0 if a restart or a person must repair something; the body of /healthz says what.",
            u64::from(health.healthy),
        ),
        (
            "ready",
            "gauge",
            "1 when both sides are connected.",
            u64::from(health.ready),
        ),
    ]
}

fn journal((journal, now): (Backlog, Duration)) -> Vec<Line> {
    vec![
        (
            "journal_waiting",
            "gauge",
            "Assignments and providers' names whose last change the authority does not keep yet.",
            journal.waiting,
        ),
        (
            "journal_oldest_ms",
            "gauge",
            "No such change has waited for longer, in milliseconds. So much is lost with SpacetimeDB.",
            u64::try_from(journal.oldest(now).as_millis()).unwrap_or(u64::MAX),
        ),
        (
            "journal_lag_ms",
            "gauge",
            "How long the change that had waited longest had waited when the authority last kept some, in milliseconds.",
            u64::try_from(journal.lag.as_millis()).unwrap_or(u64::MAX),
        ),
        (
            "journal_closed_ms",
            "gauge",
            "How long changes of assignments have been refused, in milliseconds, because not everything is brought back yet.",
            u64::try_from(journal.closed(now).as_millis()).unwrap_or(u64::MAX),
        ),
        (
            "journal_kept_total",
            "counter",
            "Changes of assignments and providers' names that the authority has kept.",
            journal.kept,
        ),
        (
            "journal_brought_back_total",
            "counter",
            "Assignments and providers' names that were given back to SpacetimeDB.",
            journal.brought_back,
        ),
    ]
}

fn tokens(counters: AuthCounters) -> Vec<Line> {
    let failures = counters.auth_failures;
    [
        ("minted_total", "Tokens signed for clients.", counters.minted_total),
        (
            "rate_limited_total",
            "Requests refused because they came too often.",
            counters.rate_limited_total,
        ),
        (
            "auth_failures_unauthorized_total",
            "Requests without a credential, or with one of another scheme.",
            failures.unauthorized_total,
        ),
        (
            "auth_failures_forbidden_total",
            "Requests whose credential does not allow what they asked for.",
            failures.forbidden_total,
        ),
        (
            "auth_failures_invalid_token_total",
            "Requests with a malformed or foreign credential.",
            failures.invalid_token_total,
        ),
        (
            "auth_failures_token_expired_total",
            "Requests with an expired credential.",
            failures.token_expired_total,
        ),
        (
            "auth_failures_token_not_yet_valid_total",
            "Requests with a credential that is not valid yet.",
            failures.token_not_yet_valid_total,
        ),
        (
            "auth_failures_token_revoked_total",
            "Requests of revoked sessions.",
            failures.token_revoked_total,
        ),
    ]
    .into_iter()
    .map(|(name, help, value)| (name, "counter", help, value))
    .collect()
}

fn history(delivery: Delivery) -> Vec<Line> {
    vec![
        (
            "history_served_messages_total",
            "counter",
            "Events read from the authority for clients.",
            delivery.served_messages,
        ),
        (
            "history_served_documents_total",
            "counter",
            "Documents read from the authority for clients.",
            delivery.served_documents,
        ),
        (
            "history_polls_total",
            "counter",
            "Requests for pages, snapshots and documents.",
            delivery.total_polls,
        ),
        (
            "stale_cursor_events_total",
            "counter",
            "Requests whose cursor does not fit the log.",
            delivery.stale_cursor_events_total,
        ),
        (
            "history_broken_log_total",
            "counter",
            "Requests that found a log or a document with wrong hashes.",
            delivery.broken_log_total,
        ),
        (
            "history_max_replay_lag",
            "gauge",
            "How many events the slowest client was behind within the last two minutes.",
            delivery.max_replay_lag,
        ),
        (
            "history_active_consumers",
            "gauge",
            "Sessions that asked within the last minute.",
            delivery.active_consumers,
        ),
    ]
}
