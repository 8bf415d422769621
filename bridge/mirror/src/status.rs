//! How the mirror is, for whoever asks over HTTP.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use spacetime_sync_authority::{Depth, shown_relay};

use crate::verdict::Failure;

/// Whether this mirror works, or stands by for the one that does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// Another one has the lead, or the authority is away.
    #[default]
    StandingBy,
    /// It works.
    Leading,
}

/// What the mirror has counted since it started. It only grows.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// Entries written to the outbox.
    pub enqueued: u64,
    /// Entries that as many relays have as their policy asks for.
    pub published: u64,
    /// Entries that were parked.
    pub parked: u64,
    /// Parked entries that were forgotten, because there were too many.
    pub parked_forgotten: u64,
    /// Events that were purged before they were read.
    pub missed: u64,
    /// Attempts at relays that failed, by kind.
    pub failures: BTreeMap<&'static str, u64>,
    /// How often a relay could not be reached.
    pub unreached: u64,
    /// Advertisements written to the outbox.
    pub advertised: u64,
    /// Capabilities that came in from relays and were published here.
    pub heard: u64,
    /// Announcements of relays that had no effect.
    pub unheard: u64,
    /// How often SpacetimeDB's outbox had no room.
    pub no_room: u64,
    /// How often the authority did not answer.
    pub authority_failures: u64,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// See there.
    pub role: Role,
    /// How full the outbox is.
    pub depth: Depth,
    /// See there.
    pub counters: Counters,
    /// Whether each relay was reached the last time that something was to be said to it: of those alone that are talked to.
    pub relays: BTreeMap<String, bool>,
    /// Policies that cannot be used.
    pub bad_policies: usize,
    /// Relays that have to wait, because there are too many.
    pub relays_left: usize,
    /// When the authority last answered.
    pub answered_at: Option<Instant>,
}

/// A snapshot that is kept up to date.
#[derive(Debug, Default)]
pub struct Status(Mutex<Snapshot>);

impl Status {
    /// The present state.
    pub fn get(&self) -> Snapshot {
        self.lock().clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.lock());
    }

    pub(crate) fn failed(&self, failure: &'static str) {
        *self.lock().counters.failures.entry(failure).or_default() += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        // Nothing panics while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mirror is ready if the authority has answered within this time.
const READY_WITHIN: Duration = Duration::from_secs(30);

impl Snapshot {
    /// Whether the mirror can work. Relays that are away are no reason against it: it waits for them.
    pub fn is_ready(&self, now: Instant) -> bool {
        let fresh = |at: Instant| now.saturating_duration_since(at) < READY_WITHIN;
        self.role == Role::Leading && self.answered_at.is_some_and(fresh)
    }

    /// The metrics, each with its kind, its labels and what it means.
    pub fn lines(&self) -> Vec<(&'static str, &'static str, String, &'static str, u64)> {
        let (counters, depth) = (&self.counters, &self.depth);
        let plain = String::new;
        let mut lines = vec![
            (
                "leading",
                "gauge",
                plain(),
                "1 if this mirror works, 0 if it stands by.",
                u64::from(self.role == Role::Leading),
            ),
            (
                "outbox_depth",
                "gauge",
                plain(),
                "Entries that are to be published.",
                depth.pending,
            ),
            (
                "outbox_oldest_seconds",
                "gauge",
                plain(),
                "Age of the oldest entry that is to be published. Alert if it rises for 10 minutes.",
                depth.oldest_s,
            ),
            (
                "outbox_parked",
                "gauge",
                plain(),
                "Entries that wait for a person: spacetime-sync outbox list --parked.",
                depth.parked,
            ),
            (
                "outbox_sent",
                "gauge",
                plain(),
                "Published entries that are remembered.",
                depth.sent,
            ),
            (
                "bad_policies",
                "gauge",
                plain(),
                "Policies that cannot be used; the log names them.",
                self.bad_policies as u64,
            ),
            (
                "relays_left",
                "gauge",
                plain(),
                "Relays that hear nothing, because 64 others are talked to.",
                self.relays_left as u64,
            ),
            (
                "enqueued_total",
                "counter",
                plain(),
                "Entries written to the outbox.",
                counters.enqueued,
            ),
            (
                "published_total",
                "counter",
                plain(),
                "Entries that enough relays have.",
                counters.published,
            ),
            (
                "parked_total",
                "counter",
                plain(),
                "Entries that were parked.",
                counters.parked,
            ),
            (
                "parked_forgotten_total",
                "counter",
                plain(),
                "Parked entries that were forgotten, because there were too many.",
                counters.parked_forgotten,
            ),
            (
                "missed_events_total",
                "counter",
                plain(),
                "Events that were purged before they were mirrored.",
                counters.missed,
            ),
            (
                "unreached_total",
                "counter",
                plain(),
                "How often a relay could not be reached.",
                counters.unreached,
            ),
            (
                "advertised_total",
                "counter",
                plain(),
                "Advertisements of providers written to the outbox.",
                counters.advertised,
            ),
            (
                "heard_capabilities_total",
                "counter",
                plain(),
                "Capabilities of trusted keys that were published in SpacetimeDB.",
                counters.heard,
            ),
            (
                "unheard_announcements_total",
                "counter",
                plain(),
                "Announcements of relays that had no effect.",
                counters.unheard,
            ),
            (
                "spacetimedb_outbox_full_total",
                "counter",
                plain(),
                "How often SpacetimeDB's outbox had no room.",
                counters.no_room,
            ),
            (
                "authority_failures_total",
                "counter",
                plain(),
                "How often the authority did not answer.",
                counters.authority_failures,
            ),
        ];
        for failure in Failure::ALL {
            let kind = failure.as_str();
            lines.push((
                "failures_total",
                "counter",
                format!("{{kind=\"{kind}\"}}"),
                "Attempts at relays that failed.",
                counters.failures.get(kind).copied().unwrap_or_default(),
            ));
        }
        for failure in Failure::ALL {
            let kind = failure.as_str();
            let found = depth.failures.iter().find(|(found, _)| found == kind);
            lines.push((
                "outbox_failing",
                "gauge",
                format!("{{kind=\"{kind}\"}}"),
                "Deliveries that have failed and not succeeded since.",
                found.map_or(0, |(_, count)| *count),
            ));
        }
        for (relay, reached) in self.shown_relays() {
            lines.push((
                "relay_reached",
                "gauge",
                format!("{{relay=\"{}\"}}", relay.replace(['\\', '"', '\n'], "_")),
                "1 if the relay was reached the last time.",
                u64::from(reached),
            ));
        }
        lines
    }

    /// The relays by what of their addresses may be shown. Those that look alike count as reached if all of them are.
    pub fn shown_relays(&self) -> BTreeMap<String, bool> {
        let mut shown: BTreeMap<String, bool> = BTreeMap::new();
        for (relay, reached) in &self.relays {
            *shown.entry(shown_relay(relay)).or_insert(true) &= reached;
        }
        shown
    }
}
