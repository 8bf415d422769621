//! How the bridge is. This is the only place that defines health: it is red if a restart or a person must repair something,
//! and then says what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spacetime_sync_proto::StreamId;

use crate::journal::Backlog;
use crate::look::Lag;
use crate::streams::{HaltReason, Load};

/// How many halted streams the problems name. They only count the others.
const NAMED: usize = 3;

/// What this bridge does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It has not connected to the authority yet.
    Starting,
    /// It stands by while another bridge leads.
    Standby,
    /// It leads.
    Leading,
    /// It stops, and finishes what is in flight.
    Draining,
}

/// Counters since the start of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events that SpacetimeDB acknowledged as durable.
    pub published_events: u64,
    /// Frames that SpacetimeDB acknowledged as durable.
    pub published_frames: u64,
    /// Calls that the module refused.
    pub refused_calls: u64,
    /// Calls that failed without a refusal.
    pub lost_calls: u64,
    /// How often the bridge connected to SpacetimeDB.
    pub links: u64,
    /// How often the authority did not answer.
    pub authority_failures: u64,
    /// Looks for dirty streams.
    pub polls: u64,
    /// Wake-ups by writers.
    pub wakes: u64,
    /// Streams compared with SpacetimeDB.
    pub compared_streams: u64,
    /// Walks through windows of streams that clients have reported.
    pub walks: u64,
    /// Forgeries found in SpacetimeDB.
    pub forgeries: u64,
    /// Events purged from the authority's log.
    pub purged_events: u64,
    /// About how many keys of purged events the authority keeps. It goes back as well.
    pub kept_keys: u64,
}

/// Whether the authority or SpacetimeDB answers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reach {
    Here,
    Away {
        since: Duration,
        why: String,
    },
    /// It answers, but it is not the side that the configuration names.
    Wrong {
        why: String,
    },
}

impl Reach {
    fn is_here(&self) -> bool {
        matches!(self, Self::Here)
    }
}

/// The part that changes with every turn.
#[derive(Debug, Clone, Copy)]
struct Pulse {
    load: Load,
    lag: Lag,
    counters: Counters,
    journal: Backlog,
    /// When the current work began. `None` if there is no work.
    work_since: Option<Duration>,
    last_progress: Duration,
    last_turn: Duration,
}

/// The part that seldom changes.
#[derive(Debug, Clone)]
struct Condition {
    role: Role,
    link: Reach,
    authority: Reach,
    halted: BTreeMap<StreamId, HaltReason>,
    /// Streams whose published seq the authority refuses to record, with its reasons.
    unrecorded: BTreeMap<StreamId, String>,
    /// What the module says about an authority that was restored.
    restored: Option<String>,
}

/// The data behind health, readiness and metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Vitals {
    stall_after: Duration,
    pulse: Pulse,
    condition: Arc<Condition>,
}

/// What `/healthz` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// False if a restart or a person must repair something: see [`Vitals::health`].
    pub healthy: bool,
    /// True when the authority is connected, and for the leader SpacetimeDB as well.
    pub ready: bool,
    /// What this bridge does at the moment.
    pub role: Role,
    /// What is wrong, in words. Empty if nothing is.
    pub problems: Vec<String>,
    /// Halted streams, with their reasons.
    pub halted: Vec<(StreamId, HaltReason)>,
    /// Whether the authority was restored to an earlier time, so that an operator must run `spacetime-sync rewind`.
    pub authority_restored: bool,
    /// How long work has made no progress.
    pub stalled: Duration,
    /// How many events are committed and not yet published.
    pub lag: Lag,
}

impl Vitals {
    /// The vitals at the start of the process.
    pub fn new(stall_after: Duration) -> Self {
        let away = || Reach::Away {
            since: Duration::ZERO,
            why: "not connected yet".to_owned(),
        };
        Self {
            stall_after,
            pulse: Pulse {
                load: Load::default(),
                lag: Lag::default(),
                counters: Counters::default(),
                journal: Backlog::default(),
                work_since: None,
                last_progress: Duration::ZERO,
                last_turn: Duration::ZERO,
            },
            condition: Arc::new(Condition {
                role: Role::Starting,
                link: away(),
                authority: away(),
                halted: BTreeMap::new(),
                unrecorded: BTreeMap::new(),
                restored: None,
            }),
        }
    }

    fn change(&mut self) -> &mut Condition {
        Arc::make_mut(&mut self.condition)
    }

    pub(crate) fn role(&mut self, role: Role) {
        if self.condition.role != role {
            self.change().role = role;
        }
    }

    pub(crate) fn link_up(&mut self) {
        self.pulse.counters.links += 1;
        self.change().link = Reach::Here;
    }

    pub(crate) fn link_down(&mut self, now: Duration, why: String) {
        away(&mut self.change().link, now, why);
    }

    /// SpacetimeDB leads to another database.
    pub(crate) fn link_strays(&mut self, why: String) {
        self.change().link = Reach::Wrong { why };
    }

    /// The authority answers.
    pub(crate) fn authority_here(&mut self) {
        if !self.condition.authority.is_here() {
            self.change().authority = Reach::Here;
        }
    }

    /// The authority does not answer. Returns whether that, or the reason, is new.
    pub(crate) fn authority_away(&mut self, now: Duration, why: String) -> bool {
        self.pulse.counters.authority_failures += 1;
        match &self.condition.authority {
            Reach::Away { why: before, .. } if *before == why => false,
            Reach::Here | Reach::Away { .. } | Reach::Wrong { .. } => {
                away(&mut self.change().authority, now, why);
                true
            }
        }
    }

    pub(crate) fn halted(&mut self, stream_id: StreamId, reason: HaltReason) {
        self.change().halted.insert(stream_id, reason);
    }

    /// No stream is halted any more.
    pub(crate) fn none_halted(&mut self) {
        if !self.condition.halted.is_empty() {
            self.change().halted.clear();
        }
    }

    pub(crate) fn unrecorded<'a>(&mut self, streams: impl ExactSizeIterator<Item = (&'a StreamId, &'a String)>) {
        if streams.len() != self.condition.unrecorded.len() {
            self.change().unrecorded = streams
                .map(|(stream_id, why)| (stream_id.clone(), why.clone()))
                .collect();
        }
    }

    pub(crate) fn restored(&mut self, restored: Option<String>) {
        if self.condition.restored != restored {
            self.change().restored = restored;
        }
    }

    pub(crate) fn count(&mut self) -> &mut Counters {
        &mut self.pulse.counters
    }

    pub(crate) fn progress(&mut self, now: Duration, events: u64) {
        self.pulse.counters.published_events += events;
        self.pulse.counters.published_frames += 1;
        self.pulse.last_progress = now;
    }

    /// The lane has taken a turn. `load` and `lag` say how much there is to do.
    pub(crate) fn turned(&mut self, now: Duration, load: Load, lag: Lag) {
        let pulse = &mut self.pulse;
        (pulse.last_turn, pulse.load, pulse.lag) = (now, load, lag);
        // Halted streams are work for a person, not for the bridge.
        let work = load.busy_streams > 0 || lag.live_events > 0;
        match (work, pulse.work_since) {
            (true, None) => pulse.work_since = Some(now),
            (false, Some(_)) => pulse.work_since = None,
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// How it is with the journal.
    pub(crate) fn journal(&mut self, backlog: Backlog) {
        self.pulse.journal = backlog;
    }

    /// The lead is lost. The next leader reports on the lane.
    pub(crate) fn lead_lost(&mut self, now: Duration, why: &str) {
        (self.pulse.load, self.pulse.lag, self.pulse.work_since) = (Load::default(), Lag::default(), None);
        self.pulse.journal = self.pulse.journal.without_link();
        let condition = self.change();
        condition.role = Role::Standby;
        away(&mut condition.authority, now, why.to_owned());
        away(&mut condition.link, now, why.to_owned());
        condition.halted.clear();
        condition.unrecorded.clear();
        condition.restored = None;
    }

    /// This bridge has the lead, and no link yet.
    pub(crate) fn lead_begun(&mut self, now: Duration) {
        let condition = self.change();
        condition.role = Role::Leading;
        condition.link = Reach::Away {
            since: now,
            why: "not connected yet".to_owned(),
        };
    }

    /// How the bridge is. It is red, that is not healthy, in these cases:
    /// - the bridge's loop has not turned for `stall_after`,
    /// - work has made no progress for that long,
    /// - the authority has not answered for that long, in any role,
    /// - a leader has had no link to SpacetimeDB for that long,
    /// - SpacetimeDB leads to another database than the configuration names,
    /// - a stream is halted,
    /// - the authority refuses to record a published seq,
    /// - the journal has been closed or was not read, or an entry of it has waited to be kept, for longer than `stall_after`,
    /// - the authority was restored.
    pub fn health(&self, now: Duration) -> Health {
        let (pulse, condition) = (&self.pulse, &*self.condition);
        let stalled = pulse.work_since.map_or(Duration::ZERO, |since| {
            now.saturating_sub(since.max(pulse.last_progress))
        });
        let is_leading = condition.role == Role::Leading;
        let mut problems = Problems::new(now, self.stall_after);
        let still = now.saturating_sub(pulse.last_turn);
        if still > self.stall_after {
            problems.red(format!("the bridge's loop has not turned for {still:.1?}"));
        }
        if stalled > self.stall_after {
            problems.red(format!("work and no progress for {stalled:.1?}"));
        }
        problems.reach("authority", &condition.authority);
        if is_leading {
            problems.reach("spacetimedb", &condition.link);
        }
        if let Some(why) = &condition.restored {
            problems.red(why.clone());
        }
        let halted = condition
            .halted
            .iter()
            .map(|(stream_id, reason)| format!("stream {stream_id} is halted ({}): {reason}", reason.code()));
        problems.streams(halted, "halted");
        let unrecorded = condition
            .unrecorded
            .iter()
            .map(|(stream_id, why)| format!("cannot record how far stream {stream_id} is published: {why}"));
        problems.streams(unrecorded, "published but not recorded");
        if is_leading && condition.link.is_here() {
            let (closed, out_of_step) = (pulse.journal.closed(now), pulse.journal.out_of_step(now));
            if closed == Duration::ZERO && out_of_step > self.stall_after {
                problems.red(format!(
                    "the journal could not be read or compared for {out_of_step:.1?}: nobody knows whether SpacetimeDB has lost assignments or names of providers"
                ));
            }
            if closed > self.stall_after {
                problems.red(format!(
                    "assignments and the names of providers have not been brought back for {closed:.1?}: changes of them are refused"
                ));
            }
            let oldest = pulse.journal.oldest(now);
            if oldest > self.stall_after {
                let waiting = pulse.journal.waiting;
                problems.red(format!(
                    "{waiting} changes of assignments and of providers' names are not kept in the authority, one for {oldest:.1?}: a \
                     SpacetimeDB that loses its data loses them"
                ));
            }
        }
        let ready = match condition.role {
            Role::Starting | Role::Draining => false,
            Role::Standby => condition.authority.is_here(),
            Role::Leading => condition.authority.is_here() && condition.link.is_here(),
        };
        // If the restore went back less than a beat, only the streams show it.
        let mut reasons = condition.halted.values();
        let is_ahead = reasons.any(|reason| matches!(reason, HaltReason::AheadOfAuthority));
        Health {
            healthy: problems.healthy,
            ready,
            role: condition.role,
            problems: problems.words,
            halted: condition
                .halted
                .iter()
                .map(|(stream_id, reason)| (stream_id.clone(), reason.clone()))
                .collect(),
            authority_restored: condition.restored.is_some() || is_ahead,
            stalled,
            lag: pulse.lag,
        }
    }

    /// The counters.
    pub fn counters(&self) -> Counters {
        self.pulse.counters
    }

    /// How it is with the journal.
    pub fn backlog(&self) -> Backlog {
        self.pulse.journal
    }

    /// What is under way.
    pub fn load(&self) -> Load {
        self.pulse.load
    }
}

/// What is wrong, and whether health is red.
struct Problems {
    now: Duration,
    stall_after: Duration,
    healthy: bool,
    words: Vec<String>,
}

impl Problems {
    fn new(now: Duration, stall_after: Duration) -> Self {
        Self {
            now,
            stall_after,
            healthy: true,
            words: Vec::new(),
        }
    }

    fn red(&mut self, problem: String) {
        self.healthy = false;
        self.words.push(problem);
    }

    /// Names a side that is away. That is red only after a while, because mostly the side comes back by itself.
    fn reach(&mut self, whose: &str, reach: &Reach) {
        match reach {
            Reach::Here => {}
            Reach::Away { since, why } => {
                self.words.push(format!("{whose}: {why}"));
                self.healthy &= self.now.saturating_sub(*since) <= self.stall_after;
            }
            // It does not become right by itself.
            Reach::Wrong { why } => self.red(format!("{whose}: {why}")),
        }
    }

    fn streams(&mut self, problems: impl ExactSizeIterator<Item = String>, what: &str) {
        let more = problems.len().saturating_sub(NAMED);
        problems.take(NAMED).for_each(|problem| self.red(problem));
        if more > 0 {
            self.red(format!("{more} more streams are {what}"));
        }
    }
}

/// Notes that a side is away, and keeps the time at which that began.
fn away(reach: &mut Reach, now: Duration, why: String) {
    let since = match reach {
        Reach::Here | Reach::Wrong { .. } => now,
        Reach::Away { since, .. } => *since,
    };
    *reach = Reach::Away { since, why };
}

#[cfg(test)]
mod tests;
