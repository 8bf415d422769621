//! One run: the models, the shipped machines among them, and the virtual time that they share. Every step is taken
//! here. After each step the [oracle](crate::oracle) checks the whole state.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use bytes::Bytes;
use rand::Rng as _;
use rand::rngs::StdRng;
use spacetime_sync_client::session::stream::Counters;
use spacetime_sync_proto::{IdempotencyKey, Position, Seq};
use spacetime_sync_rules::journal::Key;

use crate::agenda::{Agenda, MILLISECOND, Micros, SECOND};
use crate::authority::{Log, NewEvent};
use crate::bridge::{Bridge, BridgeStep};
use crate::client::{Client, ClientStep};
use crate::coverage::Coverage;
use crate::fault::{Fault, Planned};
use crate::host::{Host, HostStep, SWEEP};
use crate::net::{Conn, ConnId, FromHost, Party, ToHost};
use crate::setup::Setup;
use crate::work::Kept;

/// How long a lane without further faults may take until everybody holds everything. It covers several bounded waits of
/// up to 30 s each, one after another, and a host that goes on keeping events back for a minute.
const HEALS_WITHIN: Micros = 240 * SECOND;
/// How often the operator looks for parties that have stopped.
const OPERATOR_EVERY: Micros = 3 * SECOND;
/// A run with more steps than this is considered stuck in a loop.
const MOST_STEPS: u64 = 400_000;

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The invariant.
    pub invariant: &'static str,
    /// What the oracle found.
    pub what: String,
    /// The step after which it was found.
    pub step: u64,
    /// The virtual time of that step.
    pub at: Micros,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at as f64 / SECOND as f64;
        write!(f, "{} at {at:.6} s, step {}: {}", self.invariant, self.step, self.what)
    }
}

#[derive(Debug)]
pub(crate) enum Step {
    Write { stream: usize },
    Work,
    BackUp,
    Restore,
    WriteAgain { stream: usize, event: NewEvent },
    Strike(usize),
    Bridge { at: usize, life: u32, step: BridgeStep },
    BridgeStarts { at: usize },
    Client { at: usize, life: u32, step: ClientStep },
    ClientStarts { at: usize },
    Up { conn: ConnId, message: ToHost },
    Down { conn: ConnId, message: FromHost },
    Broken { conn: ConnId },
    Host { life: u32, step: HostStep },
    HostStarts,
    Granted { client: usize, stream: usize },
    Quiet,
    Operator,
}

/// A fault that waits for an opportunity to strike.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Armed {
    pub(crate) planned: Planned,
}

/// What the oracle tolerates on one stream because a fault caused it.
#[derive(Debug, Default)]
pub(crate) struct Excuses {
    /// SpacetimeDB lost durable events, and held the stream up to here before. Until it is refilled, `published_seq`
    /// and clients may be ahead of it.
    pub(crate) set_back_from: Option<Seq>,
    /// Whether SpacetimeDB has ever lost durable events.
    pub(crate) was_set_back: bool,
    /// A rewind removed durable events up to this seq. Clients may have received them before, and may be ahead of SpacetimeDB
    /// until the bridge publishes them again.
    pub(crate) rewound_from: Option<Seq>,
    /// Where the log last ended durably with an event of the authority.
    durable: Seq,
    /// Where logs end with what is of another origin, each with the seq after which that begins. The bridge removes it, and
    /// it returns if SpacetimeDB is restored.
    pub(crate) foreign: Vec<(Seq, Position)>,
    /// The reasons for which a bridge may halt the stream.
    pub(crate) halts: BTreeSet<&'static str>,
}

impl Excuses {
    /// Whether a log that ends there ends with what is of another origin.
    pub(crate) fn is_foreign(&self, end: Position) -> bool {
        self.foreign.iter().any(|(_, at)| *at == end)
    }

    /// The log ends here now, and that is durable.
    pub(crate) fn becomes_durable(&mut self, end: Position) {
        if self.is_foreign(end) {
            return;
        }
        if end.seq < self.durable {
            self.rewound_from = self.rewound_from.max(Some(self.durable));
        }
        self.rewound_from = self.rewound_from.filter(|from| *from > end.seq);
        self.durable = end.seq;
    }

    /// After which seq what is of another origin begins in a log that ends at `to`.
    pub(crate) fn foreign_after(&self, to: Seq) -> Seq {
        let ending = self.foreign.iter().filter(|(_, at)| at.seq == to);
        ending.map(|(after, _)| *after).max().unwrap_or(to.previous())
    }
}

#[derive(Debug)]
pub(crate) struct Dice {
    pub(crate) net: StdRng,
    pub(crate) work: StdRng,
    pub(crate) write: StdRng,
    pub(crate) labour: StdRng,
}

pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) now: Micros,
    pub(crate) agenda: Agenda<Step>,
    pub(crate) dice: Dice,
    pub(crate) logs: Vec<Log>,
    pub(crate) authority_away_until: Micros,
    pub(crate) authority_clock_us: i64,
    /// Whether writers wake the bridges that listen.
    pub(crate) writers_wake: bool,
    pub(crate) lead: Option<(usize, u32)>,
    pub(crate) host: Host,
    pub(crate) conns: Vec<Conn>,
    pub(crate) bridges: Vec<Bridge>,
    pub(crate) clients: Vec<Client>,
    pub(crate) armed: Vec<Armed>,
    pub(crate) excuses: Vec<Excuses>,
    /// What the authority keeps of assignments and of providers' names, and a backup of that.
    pub(crate) kept: Kept,
    pub(crate) backup: Option<Kept>,
    /// The assignments that the module has forgotten, each with the time at which it was opened.
    pub(crate) forgotten: BTreeSet<(Key, i64)>,
    /// When SpacetimeDB was last restored.
    pub(crate) restored_at: Option<Micros>,
    pub(crate) quiet: bool,
    pub(crate) coverage: Coverage,
    pub(crate) steps: u64,
    pub(crate) violation: Option<Violation>,
    written: u64,
    trace: DefaultHasher,
    story: Option<VecDeque<String>>,
}

/// The number of story lines that are kept, from the end.
const STORY_LINES: usize = 4_000;

/// Adds a line to the story, if the run keeps one.
macro_rules! say {
    ($world:expr, $($format:tt)*) => {
        if $world.is_telling() {
            $world.tell(format!($($format)*));
        }
    };
}
pub(crate) use say;

/// The result of a run.
#[derive(Debug)]
pub struct Ended {
    /// The broken invariant, if there is one.
    pub violation: Option<Violation>,
    /// What happened, counted.
    pub coverage: Coverage,
    /// Number of steps.
    pub steps: u64,
    /// A hash of every step and its result.
    pub trace: u64,
    /// How long after the last fault everybody held everything.
    pub healed_after: Micros,
    /// The end of the story, if the caller asked for one.
    pub story: Vec<String>,
}

impl World {
    pub(crate) fn new(setup: &Setup, tell: bool) -> Self {
        let logs: Vec<_> = (0..setup.streams).map(Log::new).collect();
        let starts = || logs.iter().map(|log| (log.id.clone(), log.start));
        let clients = (0..setup.clients).map(|_| Client::new(setup, starts())).collect();
        let bridges = (0..setup.bridges).map(|_| Bridge::new(setup.lane())).collect();
        let host = Host::new(setup, logs.iter().map(|log| log.id.clone()));
        let mut world = Self {
            now: 0,
            agenda: Agenda::new(),
            dice: Dice {
                net: setup.rng(1),
                work: setup.rng(2),
                write: setup.rng(3),
                labour: setup.rng(4),
            },
            excuses: logs.iter().map(|_| Excuses::default()).collect(),
            logs,
            authority_away_until: 0,
            authority_clock_us: 1_000_000,
            writers_wake: false,
            lead: None,
            host,
            conns: Vec::new(),
            bridges,
            clients,
            armed: Vec::new(),
            kept: Kept::default(),
            backup: None,
            forgotten: BTreeSet::new(),
            restored_at: None,
            quiet: false,
            coverage: Coverage::default(),
            steps: 0,
            violation: None,
            written: 0,
            trace: DefaultHasher::new(),
            story: tell.then(VecDeque::new),
            setup: setup.clone(),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for at in 0..self.setup.bridges {
            let when = self.dice.work.random_range(0..50 * MILLISECOND);
            self.agenda.push(when, Step::BridgeStarts { at });
        }
        for at in 0..self.setup.clients {
            let when = self.dice.work.random_range(0..SECOND);
            self.agenda.push(when, Step::ClientStarts { at });
        }
        for _ in 0..self.setup.writes {
            let when = self.dice.write.random_range(0..self.setup.until);
            let stream = self.dice.write.random_range(0..self.setup.streams);
            self.agenda.push(when, Step::Write { stream });
        }
        for _ in 0..self.setup.works {
            let when = self.dice.labour.random_range(0..self.setup.until);
            self.agenda.push(when, Step::Work);
        }
        if let Some((made, restored)) = self.setup.restored {
            self.agenda.push(made, Step::BackUp);
            self.agenda.push(restored, Step::Restore);
        }
        for (nth, planned) in self.setup.plan.iter().enumerate() {
            self.agenda.push(planned.at, Step::Strike(nth));
        }
        self.host_step_in(0, SECOND, HostStep::Snapshot);
        self.host_step_in(0, SWEEP, HostStep::Sweep);
        self.agenda.push(self.setup.until, Step::Quiet);
    }

    /// Runs to the end: until the lane has healed, or an invariant is broken.
    pub(crate) fn run(mut self) -> Ended {
        while self.violation.is_none() {
            let Some((at, step)) = self.agenda.pop() else {
                self.violate("I10", || "nothing is left to happen".to_owned());
                break;
            };
            self.now = at;
            self.steps += 1;
            self.note(&step);
            self.take(step);
            self.check();
            if self.quiet {
                if self.is_healed() {
                    break;
                }
                if self.now > self.setup.until + HEALS_WITHIN || self.steps > MOST_STEPS {
                    let lag = self.lag();
                    self.violate("I10", || format!("the lag does not return to zero: {lag}"));
                }
            }
        }
        if self.violation.is_none() {
            self.check_whole();
        }
        self.count_the_clients();
        Ended {
            healed_after: self.now.saturating_sub(self.setup.until),
            violation: self.violation,
            coverage: self.coverage,
            steps: self.steps,
            trace: self.trace.finish(),
            story: self.story.into_iter().flatten().collect(),
        }
    }

    /// Hashes a step. Two runs with the same trace have taken the same steps.
    fn note(&mut self, step: &Step) {
        self.now.hash(&mut self.trace);
        std::mem::discriminant(step).hash(&mut self.trace);
        match step {
            Step::Bridge { at, step, .. } => (at, std::mem::discriminant(step)).hash(&mut self.trace),
            Step::Client { at, step, .. } => (at, std::mem::discriminant(step)).hash(&mut self.trace),
            Step::Up { conn, message } => (conn, std::mem::discriminant(message)).hash(&mut self.trace),
            Step::Down { conn, message } => (conn, std::mem::discriminant(message)).hash(&mut self.trace),
            Step::Host { step, .. } => std::mem::discriminant(step).hash(&mut self.trace),
            Step::Write { stream } | Step::WriteAgain { stream, .. } => stream.hash(&mut self.trace),
            Step::Strike(nth) => nth.hash(&mut self.trace),
            Step::BridgeStarts { at } | Step::ClientStarts { at } => at.hash(&mut self.trace),
            Step::Broken { conn } => conn.hash(&mut self.trace),
            Step::Granted { client, stream } => (client, stream).hash(&mut self.trace),
            Step::HostStarts | Step::Quiet | Step::Operator | Step::Work | Step::BackUp | Step::Restore => {}
        }
        (self.host.committed, self.host.durable).hash(&mut self.trace);
        for log in &self.logs {
            (log.events.len(), log.published.get()).hash(&mut self.trace);
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Write { stream } => self.write(stream),
            Step::Work => self.sessions_work(),
            Step::BackUp => self.backup = Some(self.kept.clone()),
            Step::Restore => self.authority_is_restored(),
            Step::WriteAgain { stream, event } => self.append(stream, event),
            Step::Strike(nth) => self.strike(self.setup.plan[nth]),
            Step::Bridge { at, life, step } => {
                let bridge = &self.bridges[at];
                if bridge.life != life {
                    return;
                }
                if bridge.paused_until > self.now {
                    return self.agenda.push(bridge.paused_until, Step::Bridge { at, life, step });
                }
                self.bridge_takes(at, step);
            }
            Step::BridgeStarts { at } => self.bridge_starts(at),
            Step::Client { at, life, step } => {
                let client = &self.clients[at];
                if client.life != life {
                    return;
                }
                if client.paused_until > self.now {
                    return self.agenda.push(client.paused_until, Step::Client { at, life, step });
                }
                self.client_takes(at, step);
            }
            Step::ClientStarts { at } => self.client_starts(at),
            Step::Up { conn, message } => self.host_hears(conn, message),
            Step::Down { conn, message } => match self.conns[conn.0].party {
                Party::Bridge(at) if self.bridges[at].paused_until > self.now => {
                    let until = self.bridges[at].paused_until;
                    self.agenda.push(until, Step::Down { conn, message });
                }
                Party::Client(at) if self.clients[at].paused_until > self.now => {
                    let until = self.clients[at].paused_until;
                    self.agenda.push(until, Step::Down { conn, message });
                }
                Party::Bridge(at) => self.bridge_hears(at, conn, message),
                Party::Client(at) => self.client_hears(at, conn, message),
            },
            Step::Broken { conn } => match self.conns[conn.0].party {
                Party::Bridge(at) => self.bridge_conn_broken(at, conn),
                Party::Client(at) => self.client_conn_broken(at, conn),
            },
            Step::Host { life, step } => {
                if self.host.life == life {
                    self.host_takes(step);
                }
            }
            Step::HostStarts => self.host_starts(),
            Step::Granted { client, stream } => self.grant(client, stream),
            Step::Quiet => self.fall_quiet(),
            Step::Operator => self.look_after(),
        }
    }

    fn write(&mut self, stream: usize) {
        let count = self.dice.write.random_range(1..6);
        for _ in 0..count {
            self.written += 1;
            let length = self.dice.write.random_range(1..400);
            let key = IdempotencyKey::new(&format!("key-{}", self.written)).expect("a key");
            let payload: Vec<u8> = (0..length).map(|at| (self.written as usize + at) as u8).collect();
            let event = NewEvent {
                key,
                payload: Bytes::from(payload),
            };
            self.append(stream, event);
        }
    }

    fn append(&mut self, stream: usize, event: NewEvent) {
        if self.now < self.authority_away_until {
            let again = self.authority_away_until + self.dice.write.random_range(0..SECOND);
            return self.agenda.push(again, Step::WriteAgain { stream, event });
        }
        let clock_us = self.authority_clock_us + self.now as i64;
        let log = &mut self.logs[stream];
        let (seq, new) = log.append(&event, clock_us);
        say!(
            self,
            "authority: {} {} seq {seq}",
            event.key,
            if new { "is" } else { "was already" }
        );
        if !new {
            self.coverage.seen("authority: repeat returns the first seq");
        }
        if new && self.writers_wake {
            self.wake_bridges();
        }
        if new && self.strikes(Fault::WriterUnknown, None, Some(stream)) {
            let again = self.now + self.dice.write.random_range(1..SECOND);
            self.agenda.push(again, Step::WriteAgain { stream, event });
        }
    }

    fn fall_quiet(&mut self) {
        say!(self, "-- no more faults");
        self.quiet = true;
        self.armed.clear();
        for stream in 0..self.setup.streams {
            // The other streams get no more events: what they lost must heal without a new one.
            if self.logs[stream].events.is_empty() || self.dice.write.random_bool(0.5) {
                let when = self.now + self.dice.write.random_range(0..SECOND);
                self.agenda.push(when, Step::Write { stream });
            }
        }
        self.agenda.push(self.now + OPERATOR_EVERY, Step::Operator);
        for client in 0..self.setup.clients {
            for stream in 0..self.setup.streams {
                if !self.host.entitled[client][stream] {
                    self.grant(client, stream);
                }
            }
        }
    }

    /// The operator restarts what stopped for a reason that no longer exists.
    fn look_after(&mut self) {
        self.agenda.push(self.now + OPERATOR_EVERY, Step::Operator);
        let sound: Vec<usize> = (0..self.setup.streams).filter(|at| !self.is_poisoned(*at)).collect();
        for at in 0..self.bridges.len() {
            let lane = &self.bridges[at].lane;
            if self.bridges[at].running && sound.iter().any(|stream| lane.is_halted(&self.logs[*stream].id)) {
                say!(self, "operator: restarts bridge {at}");
                self.coverage.seen("operator: bridge restarted");
                self.bridge_dies(at, SECOND);
            }
        }
        for at in 0..self.clients.len() {
            let client = &self.clients[at];
            let stopped = |stream: &usize| client.is_stopped(*stream) && !client.is_below_window(*stream);
            if client.running && sound.iter().any(stopped) {
                say!(self, "operator: restarts client {at}");
                self.coverage.seen("operator: client restarted");
                self.client_dies(at, SECOND);
            }
        }
    }

    fn count_the_clients(&mut self) {
        let mut sum = Counters::default();
        for client in &self.clients {
            let counters = client.all_counters();
            sum.holes_paged += counters.holes_paged;
            sum.duplicates_dropped += counters.duplicates_dropped;
            sum.overruns += counters.overruns;
            sum.resubscriptions += counters.resubscriptions;
            sum.reconnects += counters.reconnects;
            sum.refreshes += counters.refreshes;
            sum.connections_overfull += counters.connections_overfull;
            sum.acks_refused += counters.acks_refused;
            sum.events_applied += counters.events_applied;
        }
        self.coverage.seen_times("client: hole paged", sum.holes_paged);
        self.coverage
            .seen_times("client: duplicate dropped", sum.duplicates_dropped);
        self.coverage.seen_times("client: overrun", sum.overruns);
        self.coverage.seen_times("client: resubscribed", sum.resubscriptions);
        self.coverage.seen_times("client: reconnected", sum.reconnects);
        self.coverage
            .seen_times("client: connection handed over", sum.refreshes);
        self.coverage
            .seen_times("client: connection overfull", sum.connections_overfull);
        self.coverage
            .seen_times("client: acknowledgement refused", sum.acks_refused);
        self.coverage.seen_times("client: event applied", sum.events_applied);
        let committed = self.logs.iter().map(|log| log.events.len() as u64).sum();
        self.coverage.seen_times("authority: event committed", committed);
    }

    /// Whether an armed fault strikes here. Each fault strikes once.
    pub(crate) fn strikes(&mut self, fault: Fault, party: Option<usize>, stream: Option<usize>) -> bool {
        if self.armed.is_empty() {
            return false;
        }
        let of = match fault {
            Fault::BridgeSilentOnceUp | Fault::BridgeStray | Fault::AppendTraps | Fault::AppendUnknown => {
                self.setup.bridges
            }
            _ => self.setup.clients,
        };
        let streams = self.setup.streams;
        let hit = self.armed.iter().position(|Armed { planned }| {
            planned.fault == fault
                && party.is_none_or(|party| planned.party % of == party)
                && stream.is_none_or(|stream| planned.stream % streams == stream)
        });
        let Some(hit) = hit else { return false };
        let Armed { planned } = self.armed.remove(hit);
        say!(self, "FAULT {}", planned.fault.name());
        self.coverage.struck(fault);
        true
    }

    pub(crate) fn violate(&mut self, invariant: &'static str, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let what = what();
            say!(self, "VIOLATED {invariant}: {what}");
            self.violation = Some(Violation {
                invariant,
                what,
                step: self.steps,
                at: self.now,
            });
        }
    }

    pub(crate) fn is_telling(&self) -> bool {
        self.story.is_some()
    }

    pub(crate) fn tell(&mut self, line: String) {
        let now = self.now as f64 / SECOND as f64;
        if let Some(story) = &mut self.story {
            if story.len() == STORY_LINES {
                story.pop_front();
            }
            story.push_back(format!("{now:>11.6}  {line}"));
        }
    }

    pub(crate) fn stream_at(&self, id: &spacetime_sync_proto::StreamId) -> usize {
        // Infallible: a bridge names only streams of this world.
        self.logs.iter().position(|log| log.id == *id).expect("a stream")
    }

    /// Whether a stream cannot be expected to continue, because its log, or what SpacetimeDB holds of it, is corrupt.
    pub(crate) fn is_poisoned(&self, stream: usize) -> bool {
        self.logs[stream].tampered.is_some() || self.logs[stream].corrupt.is_some()
    }
}
