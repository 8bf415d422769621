//! How the bridge is. This is the only place that defines health: it is red if a restart or a person must repair something,
//! and then says what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spacetime_sync_proto::StreamId;

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
    /// Forgeries found in SpacetimeDB.
    pub forgeries: u64,
    /// Events purged from the authority's log.
    pub purged_events: u64,
}

/// Whether the authority or SpacetimeDB answers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reach {
    Here,
    Away { since: Duration, why: String },
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
            Reach::Here | Reach::Away { .. } => {
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

    /// The lead is lost. The next leader reports on the lane.
    pub(crate) fn lead_lost(&mut self, now: Duration, why: &str) {
        (self.pulse.load, self.pulse.lag, self.pulse.work_since) = (Load::default(), Lag::default(), None);
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
    /// - a stream is halted,
    /// - the authority refuses to record a published seq,
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
        if let Reach::Away { since, why } = reach {
            self.words.push(format!("{whose}: {why}"));
            self.healthy &= self.now.saturating_sub(*since) <= self.stall_after;
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
        Reach::Here => now,
        Reach::Away { since, .. } => *since,
    };
    *reach = Reach::Away { since, why };
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);
    const MOMENT: Duration = Duration::from_millis(1);
    const START: Duration = Duration::from_secs(100);

    fn busy(streams: usize) -> Load {
        Load {
            busy_streams: streams,
            ..Load::default()
        }
    }

    /// The vitals of a leader when authority and SpacetimeDB answer.
    fn leading() -> Vitals {
        let mut vitals = Vitals::new(LIMIT);
        vitals.lead_begun(START);
        vitals.authority_here();
        vitals.link_up();
        vitals.turned(START, busy(0), Lag::default());
        vitals
    }

    fn healthy_at(vitals: &mut Vitals, now: Duration, load: Load) -> bool {
        vitals.turned(now, load, Lag::default());
        vitals.health(now).healthy
    }

    #[test]
    fn work_without_progress_turns_red_and_progress_turns_green() {
        let mut vitals = leading();
        assert!(healthy_at(&mut vitals, START, busy(1)));
        assert!(healthy_at(&mut vitals, START + LIMIT, busy(1)));
        assert!(!healthy_at(&mut vitals, START + LIMIT + MOMENT, busy(1)));
        vitals.progress(START + 2 * LIMIT, 1);
        assert!(healthy_at(&mut vitals, START + 3 * LIMIT, busy(1)));
        assert!(!healthy_at(&mut vitals, START + 3 * LIMIT + MOMENT, busy(1)));
        assert!(
            healthy_at(&mut vitals, START + 4 * LIMIT, busy(0)),
            "without work nothing stalls"
        );
    }

    #[test]
    fn an_authority_that_does_not_answer_is_red_for_a_leader_and_for_a_standby() {
        for role in [Role::Leading, Role::Standby] {
            let mut vitals = leading();
            vitals.role(role);
            assert!(vitals.authority_away(START, "refused".to_owned()), "the first is new");
            assert!(healthy_at(&mut vitals, START + LIMIT, busy(0)), "{role:?}");
            assert!(
                !vitals.authority_away(START + LIMIT, "refused".to_owned()),
                "the same reason is not new"
            );
            assert!(
                vitals.authority_away(START + LIMIT, "denied".to_owned()),
                "another one is"
            );
            assert!(!healthy_at(&mut vitals, START + LIMIT + MOMENT, busy(0)), "{role:?}");
            vitals.authority_here();
            assert!(healthy_at(&mut vitals, START + 2 * LIMIT, busy(0)), "{role:?}");
        }
    }

    #[test]
    fn a_leader_that_loses_the_lead_with_its_authority_stays_red() {
        let mut vitals = leading();
        vitals.authority_away(START, "refused".to_owned());
        vitals.lead_lost(START + LIMIT / 2, "the lead is lost");
        assert!(!healthy_at(&mut vitals, START + LIMIT + MOMENT, busy(0)));
    }

    #[test]
    fn a_leader_without_a_link_turns_red_after_a_while_and_a_standby_does_not() {
        let mut vitals = leading();
        vitals.link_down(START, "closed".to_owned());
        vitals.link_down(START + LIMIT / 2, "refused".to_owned());
        assert!(healthy_at(&mut vitals, START + LIMIT, busy(0)));
        assert!(!healthy_at(&mut vitals, START + LIMIT + MOMENT, busy(0)));
        vitals.role(Role::Standby);
        assert!(healthy_at(&mut vitals, START + LIMIT + MOMENT, busy(0)));
    }

    #[test]
    fn an_authority_that_lacks_events_was_restored_even_if_its_beat_does_not_show_it() {
        let mut vitals = leading();
        let stream_id = StreamId::new("s").unwrap();
        vitals.halted(stream_id.clone(), HaltReason::BrokenLog("seq 3 is missing".to_owned()));
        assert!(!vitals.health(START).authority_restored);
        vitals.halted(stream_id, HaltReason::AheadOfAuthority);
        assert!(vitals.health(START).authority_restored);
    }

    #[test]
    fn a_halted_stream_is_red_with_its_reason_until_streams_are_forgotten() {
        let mut vitals = leading();
        let stream = |at: usize| StreamId::new(&format!("s.{at}")).unwrap();
        vitals.halted(stream(0), HaltReason::AheadOfAuthority);
        let health = vitals.health(START);
        assert!(!health.healthy && health.problems[0].contains("s.0 is halted (ahead_of_authority)"));
        assert_eq!(health.halted, [(stream(0), HaltReason::AheadOfAuthority)]);
        (1..2_000).for_each(|at| vitals.halted(stream(at), HaltReason::AheadOfAuthority));
        let problems = vitals.health(START).problems;
        assert_eq!(problems.len(), NAMED + 1);
        assert_eq!(problems[NAMED], format!("{} more streams are halted", 2_000 - NAMED));
        vitals.none_halted();
        assert!(vitals.health(START).healthy);
    }

    #[test]
    fn a_restored_authority_is_red_until_an_operator_has_rewound() {
        let mut vitals = leading();
        vitals.restored(Some("behind".to_owned()));
        let health = vitals.health(START);
        assert!(!health.healthy && health.authority_restored && health.problems == ["behind"]);
        vitals.restored(None);
        assert!(vitals.health(START).healthy);
    }

    #[test]
    fn the_lag_of_streams_that_are_not_halted_is_work_and_that_of_others_is_only_shown() {
        let mut vitals = leading();
        let lag = Lag {
            live_events: 0,
            halted_events: 7,
        };
        vitals.turned(START, busy(0), lag);
        vitals.turned(START + 2 * LIMIT, busy(0), lag);
        let health = vitals.health(START + 2 * LIMIT);
        assert!(health.healthy && health.stalled == Duration::ZERO);
        assert_eq!(health.lag, lag);
        let lag = Lag { live_events: 1, ..lag };
        vitals.turned(START, busy(0), lag);
        assert_eq!(vitals.health(START + LIMIT).stalled, LIMIT);
    }

    #[test]
    fn a_bridge_that_lost_the_lead_is_ready_when_the_authority_answers_again() {
        let mut vitals = leading();
        assert!(vitals.health(START).ready);
        vitals.lead_lost(START, "the lead is lost");
        assert!(!vitals.health(START).ready);
        vitals.authority_here();
        assert!(vitals.health(START).ready, "as a standby");
        vitals.lead_begun(START);
        assert!(!vitals.health(START).ready, "a new leader has no link yet");
    }

    #[test]
    fn a_bridge_that_lost_the_lead_no_longer_reports_on_the_lane() {
        let mut vitals = leading();
        let lag = Lag {
            live_events: 7,
            halted_events: 1,
        };
        vitals.turned(START, busy(1), lag);
        vitals.halted(StreamId::new("a").unwrap(), HaltReason::AheadOfAuthority);
        vitals.restored(Some("behind".to_owned()));
        vitals.lead_lost(START, "the lead is lost");
        vitals.authority_here();
        let health = vitals.health(START);
        assert!(health.halted.is_empty() && !health.authority_restored && health.problems.is_empty());
        assert_eq!(health.lag, Lag::default());
    }

    #[test]
    fn a_published_seq_that_is_not_recorded_is_red_with_its_reason_until_it_is() {
        let mut vitals = leading();
        let unrecorded = BTreeMap::from([(StreamId::new("a").unwrap(), "denied".to_owned())]);
        vitals.unrecorded(unrecorded.iter());
        let health = vitals.health(START);
        assert!(!health.healthy);
        assert_eq!(health.problems, ["cannot record how far stream a is published: denied"]);
        vitals.unrecorded(BTreeMap::new().iter());
        assert!(vitals.health(START).healthy);
    }

    #[test]
    fn what_happens_is_counted_and_what_is_under_way_is_shown() {
        let mut vitals = leading();
        vitals.authority_away(START, "refused".to_owned());
        vitals.authority_away(START, "refused".to_owned());
        vitals.link_up();
        vitals.progress(START, 3);
        vitals.progress(START, 4);
        vitals.count().wakes = 5;
        vitals.turned(START, busy(6), Lag::default());
        let expected = Counters {
            published_events: 7,
            published_frames: 2,
            links: 2,
            authority_failures: 2,
            wakes: 5,
            ..Counters::default()
        };
        assert_eq!((vitals.counters(), vitals.load()), (expected, busy(6)));
    }

    #[test]
    fn a_loop_that_does_not_turn_is_red_even_without_work() {
        let vitals = leading();
        assert!(vitals.health(START + LIMIT).healthy);
        assert!(!vitals.health(START + LIMIT + MOMENT).healthy);
    }
}
