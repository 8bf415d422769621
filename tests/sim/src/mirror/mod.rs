//! The mirror, beside the lane: what it decides and the module's outbox rules, as shipped, against models of everything else.
//!
//! **Shipped code**: what is published ([`receipt`], [`adopted`]), the key's signatures, what a relay is given and what its answers
//! mean ([`Courier`]), what SpacetimeDB is told and what its answers mean ([`steps`], [`told`]), what becomes of what others
//! enqueue ([`Waiting`]), and the module's [`enqueue`] and [`mark`].
//!
//! **Models**: the authority's log, and its tables of the mirror with the statements over them; two mirrors and their lead;
//! relays; SpacetimeDB's outbox; others who put events into it; an operator who retries what is parked.
//!
//! **Injected**: every [`Strike`]. A mirror dies between any two steps, and what it has sent arrives all the same. One that has lost
//! the lead goes on beside the next for a while, and both settle. Answers of SpacetimeDB are lost after the call is done.
//!
//! **Not injected**: advertisements and announcements (their rules have tests of their own), another key, events that are purged,
//! a relay that loses later what it has shown, a person who drops an entry.
//!
//! [`receipt`]: spacetime_sync_mirror::things::receipt
//! [`adopted`]: spacetime_sync_mirror::things::adopted
//! [`Courier`]: spacetime_sync_mirror::courier::Courier
//! [`steps`]: spacetime_sync_mirror::reflection::steps
//! [`told`]: spacetime_sync_mirror::reflection::told
//! [`Waiting`]: spacetime_sync_mirror::adoption::Waiting
//! [`enqueue`]: spacetime_sync_rules::outbox::enqueue
//! [`mark`]: spacetime_sync_rules::outbox::mark

mod authority;
mod oracle;
mod outbox;
mod process;
mod relay;
mod session;
mod setup;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use rand::Rng as _;
use rand::rngs::StdRng;
use spacetime_sync_authority::{Delivery, Entry, MirrorSource, Outcome};
use spacetime_sync_mirror::key::MirrorKey;
use spacetime_sync_proto::{Kind, PayloadHash, Secret, Seq};

use crate::agenda::{Agenda, MILLISECOND, Micros, SECOND};
use crate::coverage::Coverage;
use crate::world::{Ended, Violation};
use authority::Tables;
use outbox::Outbox;
use process::Process;
use relay::{Flight, Relay};
use session::Attending;
pub use setup::{MirrorSetup, Strike, Struck};

/// How long mirrors without further faults may take until every relay has everything.
const HEALS_WITHIN: Micros = 120 * SECOND;
/// How often the operator has what is parked published again, once nothing strikes any more.
const OPERATOR_EVERY: Micros = 3 * SECOND;
/// A run with more steps than this is considered stuck in a loop.
const MOST_STEPS: u64 = 100_000;
/// How often a mirror that stands by asks for the lead.
const STANDBY: Micros = 300 * MILLISECOND;
/// When a run begins, in seconds since 1970.
const BEGINS_S: u64 = 1_700_000_000;
/// The number of story lines that are kept, from the end.
const STORY_LINES: usize = 400;
/// The private key of the mirrors.
const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";

#[derive(Debug)]
enum Step {
    Write,
    Other,
    Strike(usize),
    /// A mirror asks for the lead.
    Asks {
        at: usize,
        life: u32,
    },
    /// A mirror that is dead comes back.
    Starts {
        at: usize,
    },
    /// A mirror notices that it leads no more.
    Notices {
        at: usize,
        life: u32,
    },
    Turn {
        at: usize,
        life: u32,
    },
    /// Entries are written, together with the cursor behind them.
    Journal {
        at: usize,
        life: u32,
        policy: usize,
        stream: usize,
        to: u64,
        from: u64,
        entries: Vec<Entry>,
    },
    /// A relay is given what was due.
    Give {
        at: usize,
        life: u32,
        relay: usize,
        due: Vec<Delivery>,
    },
    Settle {
        at: usize,
        life: u32,
        relay: usize,
        outcomes: Vec<Outcome>,
    },
    Attend {
        at: usize,
        life: u32,
        step: Attending,
    },
    /// An event reaches a relay, whatever has become of who sent it.
    Arrives {
        flight: u64,
        nth: usize,
    },
    ReadBack {
        flight: u64,
    },
    Answered {
        flight: u64,
    },
    Quiet,
    Operator,
}

struct World {
    setup: MirrorSetup,
    now: Micros,
    agenda: Agenda<Step>,
    dice: StdRng,
    key: MirrorKey,
    author: String,
    /// The last seq of each stream. What an event says follows from stream and seq.
    heads: Vec<u64>,
    tables: Tables,
    authority_away_until: Micros,
    outbox: Outbox,
    relays: Vec<Relay>,
    mirrors: Vec<Process>,
    lead: Option<usize>,
    flights: BTreeMap<u64, Flight>,
    flown: u64,
    /// The id as which each thing was ever sent to a relay.
    sent_as: BTreeMap<String, String>,
    /// Entries that were forgotten while a relay was still to have them.
    forgotten: BTreeSet<String>,
    quiet: bool,
    coverage: Coverage,
    steps: u64,
    violation: Option<Violation>,
    trace: DefaultHasher,
    story: Option<VecDeque<String>>,
}

/// Runs the mirror of a setup to its end. Keeps a story if `tell` is set.
pub fn run_mirror(setup: &MirrorSetup, tell: bool) -> Ended {
    crate::run::caught(|| World::new(setup, tell).run())
}

/// The same setup with as few faults as break the same invariant. `None` if it breaks none.
pub fn shrink_mirror(setup: &MirrorSetup) -> Option<(MirrorSetup, Ended)> {
    let invariant = run_mirror(setup, false).violation?.invariant;
    let fails = |setup: &MirrorSetup| {
        let violation = run_mirror(setup, false).violation;
        violation.is_some_and(|violation| violation.invariant == invariant)
    };
    let mut best = setup.clone();
    let mut at = 0;
    while at < best.plan.len() {
        let mut fewer = best.clone();
        fewer.plan.remove(at);
        if fails(&fewer) {
            best = fewer;
        } else {
            at += 1;
        }
    }
    let ended = run_mirror(&best, true);
    Some((best, ended))
}

impl World {
    fn new(setup: &MirrorSetup, tell: bool) -> Self {
        // Infallible: it is a key.
        let key = MirrorKey::read(&Secret::from(KEY.to_owned())).expect("a key");
        let mut world = Self {
            now: 0,
            agenda: Agenda::new(),
            dice: setup.rng(),
            author: key.public(),
            key,
            heads: vec![0; setup.streams.len()],
            tables: Tables::default(),
            authority_away_until: 0,
            outbox: Outbox::of(setup.room),
            relays: setup.relays.iter().map(|address| Relay::of(address)).collect(),
            mirrors: (0..2).map(|nth| Process::new(setup, nth)).collect(),
            lead: None,
            flights: BTreeMap::new(),
            flown: 0,
            sent_as: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            quiet: false,
            coverage: Coverage::default(),
            steps: 0,
            violation: None,
            trace: DefaultHasher::new(),
            story: tell.then(VecDeque::new),
            setup: setup.clone(),
        };
        for at in 0..world.mirrors.len() {
            let when = world.dice.random_range(0..SECOND);
            world.agenda.push(when, Step::Starts { at });
        }
        for _ in 0..setup.writes {
            let when = world.dice.random_range(0..setup.until);
            world.agenda.push(when, Step::Write);
        }
        for _ in 0..setup.others {
            let when = world.dice.random_range(0..setup.until);
            world.agenda.push(when, Step::Other);
        }
        for (nth, struck) in setup.plan.iter().enumerate() {
            world.agenda.push(struck.at, Step::Strike(nth));
        }
        world.agenda.push(setup.until, Step::Quiet);
        world
    }

    fn run(mut self) -> Ended {
        while self.violation.is_none() {
            // There is always a mirror that asks for the lead.
            let Some((at, step)) = self.agenda.pop() else { break };
            self.now = at;
            self.steps += 1;
            (at, std::mem::discriminant(&step)).hash(&mut self.trace);
            self.take(step);
            self.check();
            if self.quiet {
                if self.is_healed() {
                    break;
                }
                if self.now > self.setup.until + HEALS_WITHIN || self.steps > MOST_STEPS {
                    let what = self.missing();
                    self.violate("M3", || format!("it is not published in the end: {what}"));
                }
            }
        }
        if self.violation.is_none() {
            self.check_whole();
        }
        Ended {
            healed_after: self.now.saturating_sub(self.setup.until),
            violation: self.violation,
            coverage: self.coverage,
            steps: self.steps,
            trace: self.trace.finish(),
            story: self.story.into_iter().flatten().collect(),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Write => self.write(),
            Step::Other => self.others_enqueue(),
            Step::Strike(nth) => self.strike(self.setup.plan[nth]),
            Step::Starts { at } => self.starts(at),
            Step::Arrives { flight, nth } => self.arrives(flight, nth),
            Step::ReadBack { flight } => self.reads_back(flight),
            Step::Answered { flight } => self.answered(flight),
            Step::Quiet => self.fall_quiet(),
            Step::Operator => self.operate(),
            Step::Asks { at, life } if self.lives(at, life) => self.asks(at),
            Step::Notices { at, life } if self.lives(at, life) => self.loses_lead(at),
            Step::Turn { at, life } if self.leads(at, life) => self.turn(at),
            Step::Journal {
                at,
                life,
                policy,
                stream,
                from,
                to,
                entries,
            } if self.leads(at, life) => {
                self.journal(policy, Some((stream, from, to)), &entries);
            }
            Step::Give { at, life, relay, due } if self.leads(at, life) => self.give(at, relay, due),
            Step::Settle {
                at,
                life,
                relay,
                outcomes,
            } if self.leads(at, life) => self.settle(at, relay, &outcomes),
            Step::Attend { at, life, step } if self.leads(at, life) => self.attend(at, step),
            // Of a mirror that is dead, or leads no more.
            Step::Asks { .. }
            | Step::Notices { .. }
            | Step::Turn { .. }
            | Step::Journal { .. }
            | Step::Give { .. }
            | Step::Settle { .. }
            | Step::Attend { .. } => {}
        }
    }

    fn write(&mut self) {
        if self.dice.random_bool(0.5) {
            self.outbox.save();
        }
        let stream = self.dice.random_range(0..self.heads.len());
        self.heads[stream] += self.dice.random_range(1..4);
    }

    fn fall_quiet(&mut self) {
        self.say(|| "-- no more faults".to_owned());
        self.quiet = true;
        for relay in &mut self.relays {
            relay.treats = relay::Treats::Honestly;
            relay.odd_until = 0;
        }
        (self.outbox.away_until, self.authority_away_until) = (0, 0);
        self.agenda.push(self.now + OPERATOR_EVERY, Step::Operator);
    }

    /// The operator has what is parked published again.
    fn operate(&mut self) {
        self.agenda.push(self.now + OPERATOR_EVERY, Step::Operator);
        if self.tables.retry(self.now) > 0 {
            self.coverage.seen("mirror: parked entry retried");
        }
    }

    fn strike(&mut self, struck: Struck) {
        let Struck {
            strike, party, lasts, ..
        } = struck;
        let (mirror, relay) = (party % self.mirrors.len(), party % self.relays.len());
        self.say(|| format!("FAULT {} (party {party}, {} ms)", strike.name(), lasts / MILLISECOND));
        self.coverage.seen(strike.name());
        match strike {
            Strike::MirrorKilled => {
                self.dies(mirror);
                self.agenda.push(self.now + lasts, Step::Starts { at: mirror });
            }
            Strike::LeadLost => {
                // It goes on until it notices.
                if let Some(at) = self.lead.take() {
                    let life = self.mirrors[at].life;
                    self.agenda.push(self.now + lasts, Step::Notices { at, life });
                }
            }
            Strike::AuthorityAway => self.authority_away_until = self.now + lasts,
            Strike::HostAway => self.outbox.away_until = self.now + lasts,
            Strike::HostWiped => self.outbox.wipe(),
            Strike::HostRestored => self.outbox.restore(),
            Strike::RelayIs(treats) => {
                let relay = &mut self.relays[relay];
                (relay.treats, relay.odd_until) = (treats, self.now + lasts);
                relay.was_odd = true;
            }
        }
    }

    /// What an event of the log is, as the mirror reads it.
    fn event(&self, seq: u64) -> spacetime_sync_authority::MirroredEvent {
        spacetime_sync_authority::MirroredEvent {
            // Infallible: small numbers and a name.
            seq: Seq::new(seq).expect("a seq"),
            kind: Kind::new("step").expect("a kind"),
            payload_hash: PayloadHash::of(&seq.to_be_bytes()),
            committed_at_us: (BEGINS_S * SECOND + seq * SECOND) as i64,
        }
    }

    fn now_s(&self) -> u64 {
        BEGINS_S + self.now / SECOND
    }

    fn is_authority_away(&self) -> bool {
        self.now < self.authority_away_until
    }

    /// Some milliseconds: another process may come between.
    fn soon(&mut self) -> Micros {
        self.now + self.dice.random_range(1..15 * MILLISECOND)
    }

    fn journal(&mut self, policy: usize, moved: Option<(usize, u64, u64)>, entries: &[Entry]) {
        if self.is_authority_away() {
            return;
        }
        let policy = &self.setup.policies[policy];
        if let Some((stream, from, to)) = moved {
            let cursor = (policy.policy_id.clone(), stream);
            if !self.tables.moves(cursor, from, to) {
                return self.coverage.seen("mirror: another one has moved the cursor");
            }
        }
        let source = match policy.source {
            MirrorSource::Events(_) => authority::Source::Events,
            MirrorSource::Capabilities | MirrorSource::Enqueued => authority::Source::Enqueued,
        };
        let reopened = self.tables.insert(source, Ok(policy), entries, self.now);
        self.coverage
            .seen_times("mirror: entry shared by two policies", reopened);
    }

    fn violate(&mut self, invariant: &'static str, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let what = what();
            self.say(|| format!("VIOLATED {invariant}: {what}"));
            self.violation = Some(Violation {
                invariant,
                what,
                step: self.steps,
                at: self.now,
            });
        }
    }

    fn say(&mut self, line: impl FnOnce() -> String) {
        let now = self.now as f64 / SECOND as f64;
        if let Some(story) = &mut self.story {
            if story.len() == STORY_LINES {
                story.pop_front();
            }
            story.push_back(format!("{now:>11.6}  {}", line()));
        }
    }
}
