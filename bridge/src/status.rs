//! The vitals of the lane ([`spacetime_sync_lane::health`]), where `/healthz`, `/readyz` and the metrics can read them.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use spacetime_sync_lane::health::{Counters, Health, Role, Vitals};
use spacetime_sync_lane::{Backlog, Load};

/// Shared between the lane's runner and the HTTP side.
#[derive(Debug)]
pub struct Status {
    /// When the lane's clock was at zero.
    started: Instant,
    vitals: Mutex<Vitals>,
}

impl Status {
    /// The status at the start of the process.
    pub fn new(stall_after: Duration) -> Self {
        Self {
            started: Instant::now(),
            vitals: Mutex::new(Vitals::new(stall_after)),
        }
    }

    /// When the lane's clock was at zero.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    pub(crate) fn publish(&self, vitals: &Vitals) {
        let mut shared = self.vitals.lock().unwrap_or_else(PoisonError::into_inner);
        shared.clone_from(vitals);
    }

    fn look<T>(&self, look: impl FnOnce(&Vitals) -> T) -> T {
        // After a panic elsewhere the last vitals still hold.
        look(&self.vitals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How the bridge is.
    pub fn health(&self, now: Instant) -> Health {
        self.look(|vitals| vitals.health(now.saturating_duration_since(self.started)))
    }

    /// How it is with the journal, and the lane's time.
    pub fn journal(&self, now: Instant) -> (Backlog, Duration) {
        let now = now.saturating_duration_since(self.started);
        self.look(|vitals| (vitals.backlog(), now))
    }

    /// The counters, and what is under way.
    pub fn snapshot(&self) -> (Counters, Load) {
        self.look(|vitals| (vitals.counters(), vitals.load()))
    }
}

/// What `/healthz` answers.
pub(crate) fn health_json(health: &Health) -> Value {
    let halted = health.halted.iter().map(|(stream_id, reason)| {
        json!({
            "stream_id": stream_id.as_str(),
            "code": reason.code(),
            "reason": reason.to_string(),
        })
    });
    json!({
        "healthy": health.healthy,
        "ready": health.ready,
        "role": match health.role {
            Role::Starting => "starting",
            Role::Standby => "standby",
            Role::Leading => "leading",
            Role::Draining => "draining",
        },
        "problems": health.problems,
        "halted": halted.collect::<Vec<_>>(),
        "authority_restored": health.authority_restored,
        "stalled_ms": u64::try_from(health.stalled.as_millis()).unwrap_or(u64::MAX),
        "lag_events": health.lag.live_events.saturating_add(health.lag.halted_events),
        "halted_lag_events": health.lag.halted_events,
    })
}

/// The counters, for the metrics.
pub(crate) fn counters_json(counters: &Counters) -> Value {
    json!({
        "published_events": counters.published_events,
        "published_frames": counters.published_frames,
        "refused_calls": counters.refused_calls,
        "lost_calls": counters.lost_calls,
        "links": counters.links,
        "authority_failures": counters.authority_failures,
        "polls": counters.polls,
        "wakes": counters.wakes,
        "compared_streams": counters.compared_streams,
        "walks": counters.walks,
        "forgeries": counters.forgeries,
        "purged_events": counters.purged_events,
        "kept_keys": counters.kept_keys,
    })
}

/// How it is with the journal, for the metrics.
pub(crate) fn journal_json((journal, now): (Backlog, Duration)) -> Value {
    json!({
        "closed_ms": u64::try_from(journal.closed(now).as_millis()).unwrap_or(u64::MAX),
        "waiting": journal.waiting,
        "oldest_ms": u64::try_from(journal.oldest(now).as_millis()).unwrap_or(u64::MAX),
        "lag_ms": u64::try_from(journal.lag.as_millis()).unwrap_or(u64::MAX),
        "kept": journal.kept,
        "brought_back": journal.brought_back,
    })
}
