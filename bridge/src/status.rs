//! What the bridge says about itself: to `/healthz`, to `/readyz`, to metrics. Written by the pump, read by HTTP. Time is an
//! argument.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;
use spacetime_sync_proto::StreamId;

use spacetime_sync_lane::{HaltReason, Load};

/// What this bridge is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Not connected to the authority yet.
    Starting,
    /// Another bridge leads.
    Standby,
    /// This one carries.
    Leading,
    /// Finishing what is in flight.
    Draining,
}

/// Counters, from the start of the process.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Counters {
    /// Events acknowledged as durable.
    pub published_events: u64,
    /// Frames acknowledged as durable.
    pub published_frames: u64,
    /// Calls that were refused with a code of ours.
    pub refused_calls: u64,
    /// Calls that failed for another reason.
    pub lost_calls: u64,
    /// Times the link to SpacetimeDB was made.
    pub links: u64,
    /// Times a look at the authority failed.
    pub authority_failures: u64,
    /// Looks for dirty streams.
    pub polls: u64,
    /// Wake-ups that came.
    pub wakes: u64,
    /// Events that were removed from the authority's log.
    pub purged_events: u64,
}

#[derive(Debug)]
struct State {
    role: Role,
    link: Result<(), String>,
    authority: Result<(), String>,
    load: Load,
    lag: u64,
    halted: BTreeMap<StreamId, HaltReason>,
    /// Why the authority cannot be the one whose events were carried before.
    restored: Option<String>,
    counters: Counters,
    /// Since when there has been work, none if there is none.
    work_since: Option<Instant>,
    last_progress: Instant,
    last_beat: Instant,
}

/// Shared between the pump and the HTTP side.
#[derive(Debug)]
pub struct Status {
    stall_after: Duration,
    state: Mutex<State>,
}

/// What `/healthz` answers.
#[derive(Debug, Serialize)]
pub struct Health {
    /// False when there is work and no progress, or when the pump itself has stopped turning.
    pub healthy: bool,
    /// False until the authority and, for who leads, SpacetimeDB are connected.
    pub ready: bool,
    /// What this bridge is at the moment.
    pub role: Role,
    /// What is wrong, in words; empty when nothing is.
    pub problems: Vec<String>,
    /// Streams that go no further.
    pub halted: Vec<Halted>,
    /// Whether the authority is behind what was carried before: it was restored, and needs `spacetime-sync rewind`.
    pub authority_restored: bool,
    /// How long there has been work without progress.
    pub stalled_ms: u64,
    /// Events committed and not yet published.
    pub lag_events: u64,
}

/// A halted stream.
#[derive(Debug, Clone, Serialize)]
pub struct Halted {
    /// The stream.
    pub stream_id: String,
    /// The machine's part of the reason.
    pub code: &'static str,
    /// The person's part.
    pub reason: String,
}

impl Status {
    /// At the start of the process.
    pub fn new(stall_after: Duration) -> Self {
        let now = Instant::now();
        let state = State {
            role: Role::Starting,
            link: Err("not connected yet".to_owned()),
            authority: Err("not connected yet".to_owned()),
            load: Load::default(),
            lag: 0,
            halted: BTreeMap::new(),
            restored: None,
            counters: Counters::default(),
            work_since: None,
            last_progress: now,
            last_beat: now,
        };
        Self {
            stall_after,
            state: Mutex::new(state),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        // A poisoned lock means a panic while counting: what was counted is still true.
        change(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(crate) fn role(&self, role: Role) {
        self.with(|state| state.role = role);
    }

    pub(crate) fn link(&self, link: Result<(), String>) {
        self.with(|state| {
            if link.is_ok() {
                state.counters.links += 1;
            }
            state.link = link;
        });
    }

    pub(crate) fn authority(&self, authority: Result<(), String>) {
        self.with(|state| {
            if authority.is_err() {
                state.counters.authority_failures += 1;
            }
            state.authority = authority;
        });
    }

    pub(crate) fn halted(&self, stream_id: StreamId, reason: HaltReason) {
        self.with(|state| state.halted.insert(stream_id, reason));
    }

    /// Nothing is halted any more: every stream is looked at anew.
    pub(crate) fn none_halted(&self) {
        self.with(|state| state.halted.clear());
    }

    pub(crate) fn restored(&self, restored: Option<String>) {
        self.with(|state| state.restored = restored);
    }

    /// Whether the authority was found to be behind what was carried before.
    pub fn is_restored(&self) -> bool {
        self.with(|state| state.restored.is_some())
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Counters)) {
        self.with(|state| change(&mut state.counters));
    }

    pub(crate) fn progress(&self, now: Instant, events: u64) {
        self.with(|state| {
            state.counters.published_events += events;
            state.counters.published_frames += 1;
            state.last_progress = now;
        });
    }

    /// Once a turn of the pump: it turns, and this is what there is to do. `lag` is what a look at the authority
    /// found, none if it did not look.
    pub(crate) fn beat(&self, now: Instant, load: Load, lag: Option<u64>) {
        self.with(|state| {
            state.last_beat = now;
            state.load = load;
            if let Some(lag) = lag {
                state.lag = lag;
            }
            // While the authority cannot be asked, there may be work: silence is no sign of health.
            let work = load.busy_streams > 0 || state.lag > 0 || state.authority.is_err();
            match (work, state.work_since) {
                (true, None) => state.work_since = Some(now),
                (false, Some(_)) => state.work_since = None,
                (true, Some(_)) | (false, None) => {}
            }
        });
    }

    /// The connection that held the lead is gone, and the link was given up with it. Whether the authority is there is
    /// found out by asking for the lead anew; how the lane is, is for the next leader to say.
    pub(crate) fn lead_lost(&self) {
        self.with(|state| {
            let why = "the connection that held the lead is gone".to_owned();
            state.role = Role::Standby;
            state.authority = Err(why.clone());
            state.link = Err(why);
            state.load = Load::default();
            state.lag = 0;
            state.halted.clear();
            state.restored = None;
        });
    }

    /// A turn of the loop of a standby, which has no work.
    pub(crate) fn idle_beat(&self, now: Instant) {
        self.with(|state| {
            state.last_beat = now;
            state.work_since = None;
        });
    }

    /// How things are.
    pub fn health(&self, now: Instant) -> Health {
        self.with(|state| {
            let stalled = state
                .work_since
                .map_or(Duration::ZERO, |since| now - since.max(state.last_progress));
            let mut problems = Vec::new();
            let stuck = now - state.last_beat > self.stall_after;
            if stuck {
                problems.push(format!(
                    "the bridge's loop has not turned for {:?}",
                    now - state.last_beat
                ));
            }
            if stalled > self.stall_after {
                problems.push(format!("work and no progress for {stalled:?}"));
            }
            if let Some(why) = &state.restored {
                problems.push(why.clone());
            }
            if let Err(why) = &state.authority {
                problems.push(format!("authority: {why}"));
            }
            if let (Err(why), Role::Leading) = (&state.link, state.role) {
                problems.push(format!("spacetimedb: {why}"));
            }
            let ready = match state.role {
                Role::Starting | Role::Draining => false,
                Role::Standby => state.authority.is_ok(),
                Role::Leading => state.authority.is_ok() && state.link.is_ok(),
            };
            let halted = state.halted.iter().map(|(stream_id, reason)| Halted {
                stream_id: stream_id.to_string(),
                code: reason.code(),
                reason: reason.to_string(),
            });
            Health {
                healthy: !stuck && stalled <= self.stall_after,
                ready,
                role: state.role,
                problems,
                halted: halted.collect(),
                authority_restored: state.restored.is_some(),
                stalled_ms: u64::try_from(stalled.as_millis()).unwrap_or(u64::MAX),
                lag_events: state.lag,
            }
        })
    }

    /// The counters, and what is under way.
    pub fn snapshot(&self) -> (Counters, Load) {
        self.with(|state| (state.counters, state.load))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(streams: usize) -> Load {
        Load {
            busy_streams: streams,
            ..Load::default()
        }
    }

    const LIMIT: Duration = Duration::from_secs(10);
    const MOMENT: Duration = Duration::from_millis(1);

    /// Of a leader whose authority answers, and when it was made.
    fn leading() -> (Status, Instant) {
        let status = Status::new(LIMIT);
        status.role(Role::Leading);
        status.authority(Ok(()));
        status.link(Ok(()));
        (status, Instant::now())
    }

    #[test]
    fn work_without_progress_turns_red_and_progress_turns_green() {
        let (status, start) = leading();
        let healthy_at = |now, load| {
            status.beat(now, load, Some(0));
            status.health(now).healthy
        };
        assert!(healthy_at(start, busy(1)));
        assert!(healthy_at(start + LIMIT, busy(1)));
        assert!(!healthy_at(start + LIMIT + MOMENT, busy(1)));
        status.progress(start + 2 * LIMIT, 1);
        assert!(healthy_at(start + 3 * LIMIT, busy(1)));
        assert!(!healthy_at(start + 3 * LIMIT + MOMENT, busy(1)));
        assert!(healthy_at(start + 4 * LIMIT, busy(0)), "no work, no reason to worry");
    }

    #[test]
    fn an_authority_that_cannot_be_asked_counts_as_work() {
        let (status, start) = leading();
        status.authority(Err("refused".to_owned()));
        for (after, healthy) in [(Duration::ZERO, true), (LIMIT, true), (LIMIT + MOMENT, false)] {
            status.beat(start + after, busy(0), None);
            assert_eq!(status.health(start + after).healthy, healthy, "{after:?}");
        }
    }

    #[test]
    fn who_lost_the_lead_is_not_ready_before_the_authority_answers_again() {
        let (status, now) = leading();
        assert!(status.health(now).ready);
        status.lead_lost();
        assert!(!status.health(now).ready);
        status.authority(Ok(()));
        assert!(status.health(now).ready, "as a standby");
        status.role(Role::Leading);
        assert!(!status.health(now).ready, "the link of before is gone");
    }

    #[test]
    fn who_lost_the_lead_says_nothing_of_the_lane_any_more() {
        let (status, now) = leading();
        status.beat(now, busy(1), Some(7));
        status.halted(StreamId::new("a").unwrap(), HaltReason::AheadOfAuthority);
        status.restored(Some("behind".to_owned()));
        status.lead_lost();
        status.authority(Ok(()));
        let health = status.health(now);
        assert!(health.halted.is_empty() && !health.authority_restored && health.problems.is_empty());
        assert_eq!(health.lag_events, 0);
    }

    #[test]
    fn a_loop_that_stands_still_is_red_even_without_work() {
        let (status, start) = leading();
        status.beat(start, busy(0), Some(0));
        assert!(status.health(start + LIMIT).healthy);
        assert!(!status.health(start + LIMIT + MOMENT).healthy);
    }
}
