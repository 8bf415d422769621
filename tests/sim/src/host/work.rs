//! Assignments and capabilities in the module's tables, with the shipped rules: who may change what, what the clock does, what
//! is marked, and what comes back.

use rand::Rng as _;
use spacetime_sync_lane::RequestId;
use spacetime_sync_proto::journal::{JournalEntry, JournalPage};
use spacetime_sync_proto::{AssignmentSide, AssignmentState, Refusal, RefusalCode, limit};
use spacetime_sync_rules::assignment::{self, Held, Next, Part, Provider, known_until};
use spacetime_sync_rules::capability::{self, HeldCapability, Published, claimed_until};
use spacetime_sync_rules::journal::memory::MemoryJournal;
use spacetime_sync_rules::journal::pass::Steps;
use spacetime_sync_rules::journal::{
    Assignment, Capability, Change, Document, Forgotten, HeldClaim, HeldName, Key, Standing, assignment_comes_back,
    assignment_is_over, capability_comes_back, capability_is_over, marks, read_entry,
};

use super::Undo;
use crate::agenda::{MILLISECOND, Micros};
use crate::net::{ConnId, FromHost};
use crate::world::{World, say};

/// The names under which assignments are opened, and the providers that take them.
const NAMES: usize = 4;
const PROVIDERS: usize = 3;
/// How often the module does what the clock says.
pub(crate) const SWEEP: Micros = 250 * MILLISECOND;
/// How long what has ended is remembered, and the deadlines of assignments. The shipped times are days.
const REMEMBERED: i64 = 800_000;
const DEADLINES: std::ops::Range<i64> = 300_000..8_000_000;
/// The steps of a pass, of which the shipped ones are larger than all that is held here.
const STEPS: Steps = Steps {
    look_us: 2_000_000,
    looks: 1,
    few: 1,
    most: 2,
    horizon_us: 10_000_000,
};

/// What a bridge calls about the journal.
#[derive(Debug)]
pub(crate) enum JournalCall {
    Read,
    Settle(u64),
    Close(u64),
    BringBack(Vec<JournalEntry>),
    Open { epoch: String, newest: u64 },
}

/// The answer to such a call.
#[derive(Debug)]
pub(crate) enum JournalAnswer {
    Page(JournalPage),
    Told(Result<(), Refusal>),
}

/// The assignment in a document.
pub(crate) fn assignment_of(document: &Document) -> Option<&Assignment> {
    match document {
        Document::Assignment(assignment) => Some(assignment),
        Document::Forgotten(_) | Document::Capability(_) => None,
    }
}

/// How a thing is at this time. That a capability has ended is not marked.
pub(crate) fn as_shown(document: &Document, now: i64) -> Document {
    match document {
        Document::Capability(capability) if capability.ends_at <= now => Document::Capability(Capability {
            stands: None,
            ..capability.clone()
        }),
        document => document.clone(),
    }
}

impl World {
    pub(super) fn host_journals(&mut self, conn: ConnId, ask: RequestId, call: JournalCall) {
        let (before, now) = (self.host.work.clone(), self.now as i64);
        let was_open = before.state.as_ref().is_some_and(|state| state.is_open);
        let work = &mut self.host.work;
        // A bridge opens or settles the journal only once nothing is lacking.
        let ends_staleness = matches!(call, JournalCall::Open { .. } | JournalCall::Settle(_));
        let mut is_comparison = false;
        let told = match call {
            JournalCall::Read => {
                let most = self.setup.journal_page;
                let answer = JournalAnswer::Page(marks::page(work, most, &STEPS, now));
                self.work_is_done(before);
                return self.answer_soon(conn, FromHost::Journal { ask, answer });
            }
            JournalCall::Settle(to) => marks::settle(work, to, now),
            JournalCall::Close(settled) => marks::close(work, settled, now),
            JournalCall::BringBack(entries) => {
                is_comparison = was_open;
                bring_back(work, &entries, now).map(|over| self.forgotten.extend(over))
            }
            JournalCall::Open { epoch, newest } => {
                let opened = marks::open(work, epoch, newest, now);
                if work.pass.is_some_and(|pass| pass.is_for_another_history) {
                    self.coverage.seen("journal: told everything anew");
                }
                opened
            }
        };
        match &told {
            Ok(()) if is_comparison => self.coverage.seen("journal: open, and nothing is lacking"),
            Ok(()) if before == self.host.work => self.coverage.seen("journal: repeat absorbed"),
            Ok(()) => self.coverage.seen("journal: changed by the bridge"),
            Err(_) if is_comparison => self.coverage.seen("journal: open, and something is lacking"),
            Err(_) => self.coverage.seen("journal: call of the bridge refused"),
        }
        if told.is_err() {
            self.host.work = before;
        } else {
            self.host.is_stale &= !ends_staleness;
            self.work_is_done(before);
        }
        let answer = JournalAnswer::Told(told);
        self.answer_soon(conn, FromHost::Journal { ask, answer });
    }

    fn work_is_done(&mut self, before: MemoryJournal) {
        if before != self.host.work {
            self.commit(Undo::Work(Box::new(before)));
        }
    }

    /// A session opens an assignment, changes one, or publishes a capability, as it sees fit.
    pub(crate) fn sessions_work(&mut self) {
        if !self.host.up {
            return;
        }
        let before = self.host.work.clone();
        let done = if self.dice.labour.random_bool(0.25) {
            self.publish()
        } else {
            let key = Key::Assignment(format!("r{}", self.dice.labour.random_range(0..NAMES)));
            self.change(&key)
        };
        if let Err(refusal) = done {
            match refusal.code {
                RefusalCode::BeingBroughtBack => self.coverage.seen("module: being brought back"),
                RefusalCode::CapabilityConflict => self.coverage.seen("module: capability of another user refused"),
                _ => {}
            }
            self.host.work = before;
            return;
        }
        self.work_is_done(before);
    }

    fn change(&mut self, key: &Key) -> Result<(), Refusal> {
        let now = self.now as i64;
        marks::check_open(&self.host.work)?;
        let held = match self.host.work.things.get(key).cloned() {
            Some(Document::Assignment(held)) => held,
            // A late repeat of the call that opened it.
            Some(_) => return Ok(()),
            None => {
                let opened_as = self.dice.labour.random_range(7..=8);
                let opened = opened(now, now + self.dice.labour.random_range(DEADLINES), opened_as);
                self.judge_opening(key, now);
                self.put(key, opened);
                self.coverage.seen("module: assignment opened");
                return Ok(());
            }
        };
        if held.has_ended {
            if self.dice.labour.random_bool(0.3) {
                self.coverage.seen("module: assignment forgotten early");
                self.forget_all_but_its_name(key, &held, 0);
            }
            return Ok(());
        }
        let user = self.dice.labour.random_range(0..PROVIDERS);
        let (status, names) = match held.status.as_str() {
            "open" => ("accepted", true),
            "accepted" if self.dice.labour.random_bool(0.3) => ("open", false),
            "accepted" => ("running", false),
            _ => ("succeeded", false),
        };
        let provider = format!("p{user}");
        let named = if names { provider.as_str() } else { "" };
        let Key::Assignment(name) = key else { return Ok(()) };
        let update = format!("{}-{provider}", held.version);
        let change = assignment::change(name, &update, held.version, status, named, "")?;
        let part = Part {
            is_requester: false,
            is_provider: held.provider == provider,
            may_provide: true,
        };
        let next = assignment::decide(&rule(&held)?, &change, part, now)?;
        let changed = changed(held, next, provider, &update, now);
        self.judge_change(key, &changed);
        self.put(key, changed);
        self.coverage.seen("module: assignment changed");
        Ok(())
    }

    fn publish(&mut self) -> Result<(), Refusal> {
        let now = self.now as i64;
        marks::check_open(&self.host.work)?;
        let provider_id = format!("p{}", self.dice.labour.random_range(0..PROVIDERS));
        let user_id = format!("user{}", self.dice.labour.random_range(0..PROVIDERS));
        let key = Key::Capability {
            provider_id: provider_id.clone(),
            capability: "gpu".to_owned(),
        };
        let held = match self.host.work.things.get(&key) {
            Some(Document::Capability(held)) => Some(held.clone()),
            _ => None,
        };
        let newer = self.dice.labour.random_range(0..3);
        let version = held.as_ref().map_or(0, |held| held.version) + newer.max(u64::from(held.is_none()));
        let ttl = self.dice.labour.random_range(0..3);
        let publication = capability::publication([&provider_id, "gpu"], version, 21, "eu", "{}", ttl)?;
        let of_provider: Vec<_> = held.iter().map(|held| held_capability(held, &user_id)).collect();
        let Published::Placed { ends_at_us, .. } = capability::publish(&publication, &of_provider, &[], now)? else {
            return Ok(());
        };
        let stands = (ttl > 0).then(|| Standing {
            price_hint_sats: 21,
            region: "eu".to_owned(),
            document: "{}".to_owned(),
            published_at: now,
        });
        let published = Capability {
            user_id,
            version,
            content: publication.content,
            ends_at: ends_at_us,
            until: claimed_until(ends_at_us + REMEMBERED, held.map(|held| held.until)),
            stands,
        };
        self.judge_publication(&key, &published);
        self.coverage.seen("module: capability published");
        say!(self, "module: {} is {published:?}", key.to_text());
        self.host
            .work
            .things
            .insert(key.clone(), Document::Capability(published));
        marks::mark(&mut self.host.work, &key, now);
        Ok(())
    }

    fn put(&mut self, key: &Key, assignment: Assignment) {
        let (version, status) = (assignment.version, assignment.status.clone());
        say!(self, "module: {} is {status} at version {version}", key.to_text());
        let work = &mut self.host.work;
        work.things.insert(key.clone(), Document::Assignment(assignment));
        marks::mark(work, key, self.now as i64);
    }

    /// Forgets an assignment that has ended, but not that it was opened, unless its name is free by then.
    fn forget_all_but_its_name(&mut self, key: &Key, held: &Assignment, free_by: i64) {
        say!(self, "module: {} is forgotten", key.to_text());
        self.forgotten.insert((key.clone(), held.opened_at));
        let work = &mut self.host.work;
        work.things.remove(key);
        let remembered = self.now as i64 + REMEMBERED;
        let lingering = work
            .things
            .values()
            .filter(|thing| matches!(thing, Document::Forgotten(known) if known.until > remembered));
        let until = known_until(held.due_at, held.deadline_at, lingering.count());
        if until > free_by {
            if until > held.due_at {
                self.coverage.seen("module: name kept until the deadline");
            }
            let forgotten = Forgotten {
                requester: held.requester.clone(),
                opened_as: held.opened_as,
                until,
                opened_at: held.opened_at,
            };
            work.things.insert(key.clone(), Document::Forgotten(forgotten));
        }
        marks::mark(work, key, self.now as i64);
    }

    /// The module expires and forgets what is due.
    pub(super) fn host_sweeps_work(&mut self) {
        let (before, now) = (self.host.work.clone(), self.now as i64);
        for (key, thing) in &before.things {
            match thing {
                Document::Assignment(held) if held.due_at <= now && held.has_ended => {
                    self.coverage.seen("module: assignment forgotten at its time");
                    self.forget_all_but_its_name(key, held, now);
                }
                Document::Assignment(held) if held.due_at <= now => {
                    self.coverage.seen("module: assignment expired");
                    let next = rule(held).ok().and_then(|rule| assignment::expire(&rule));
                    // Infallible: every state that is not final expires.
                    let next = next.expect("it can expire");
                    self.put(key, changed(held.clone(), next, String::new(), "", now));
                }
                Document::Forgotten(held) if held.until <= now => {
                    self.coverage.seen("module: name free again");
                    self.host.work.things.remove(key);
                    marks::mark(&mut self.host.work, key, now);
                }
                Document::Capability(held) if held.until <= now => {
                    self.coverage.seen("module: capability forgotten");
                    self.host.work.things.remove(key);
                    marks::mark(&mut self.host.work, key, now);
                }
                Document::Capability(_) => {
                    self.host.work.things.insert(key.clone(), as_shown(thing, now));
                }
                Document::Assignment(_) | Document::Forgotten(_) => {}
            }
        }
        self.work_is_done(before);
    }
}

fn opened(now: i64, deadline_at: i64, opened_as: u8) -> Assignment {
    let mut assignment = Assignment {
        requester: "asker".to_owned(),
        provider: String::new(),
        opened_as: [opened_as; 32],
        has_ended: false,
        due_at: deadline_at,
        version: 1,
        status: AssignmentState::Open.as_str().to_owned(),
        provider_id: String::new(),
        to_all: true,
        assignment: "{}".to_owned(),
        report: String::new(),
        opened_at: now,
        changed_at: now,
        deadline_at,
        changes: Vec::new(),
        updates: Vec::new(),
    };
    let first = step(&assignment, AssignmentSide::Requester, "");
    assignment.changes.push(first);
    assignment
}

/// What the rules decide by.
fn rule(held: &Assignment) -> Result<Held, Refusal> {
    Ok(Held {
        state: assignment::state(&held.status)?,
        version: held.version,
        provider_id: (!held.provider_id.is_empty()).then(|| held.provider_id.clone()),
        to_all: held.to_all,
        deadline_us: held.deadline_at,
    })
}

fn changed(held: Assignment, next: Next, provider: String, update: &str, now: i64) -> Assignment {
    let mut changed = held;
    match next.provider {
        Provider::Same => {}
        Provider::Nobody => {
            changed.provider_id.clear();
            changed.provider.clear();
        }
        Provider::Chosen(named) | Provider::Own(named) => {
            changed.provider_id = named.as_str().to_owned();
            changed.provider = provider;
        }
    }
    changed.status = next.state.as_str().to_owned();
    (changed.version, changed.to_all, changed.changed_at) = (next.version, next.to_all, now);
    if assignment::is_final(next.state) {
        (changed.has_ended, changed.due_at) = (true, now + REMEMBERED);
    }
    changed.changes.push(step(&changed, next.by.side(), update));
    let most = usize::try_from(limit::ASSIGNMENT_CHANGES).unwrap_or(usize::MAX);
    let old = changed.changes.len().saturating_sub(most);
    changed.changes.drain(..old);
    changed
}

fn step(after: &Assignment, by: AssignmentSide, update: &str) -> Change {
    Change {
        version: after.version,
        status: after.status.clone(),
        provider_id: after.provider_id.clone(),
        changed_by: by.as_str().to_owned(),
        update_id: update.to_owned(),
        changed_at: after.changed_at,
    }
}

fn held_capability(held: &Capability, user_id: &str) -> HeldCapability {
    HeldCapability {
        capability_id: 1,
        is_own: held.user_id == user_id,
        capability: "gpu".to_owned(),
        version: held.version,
        content: held.content,
        ends_at_us: held.ends_at,
    }
}

/// As the module does it: a call that is refused changes nothing. Returns the assignments of which only the authority still knew,
/// each with the time at which it was opened: they are over.
fn bring_back(work: &mut MemoryJournal, entries: &[JournalEntry], now: i64) -> Result<Vec<(Key, i64)>, Refusal> {
    let mut over = Vec::new();
    for entry in entries {
        let Some((key, kept)) = read_entry(&entry.key, &entry.document)? else {
            continue;
        };
        let held = work.things.get(&key);
        let comes_back = match (held, &kept) {
            (Some(Document::Capability(held)), Document::Capability(kept)) => {
                let claim = HeldClaim {
                    is_same_user: held.user_id == kept.user_id,
                    version: held.version,
                    content: held.content,
                    until: held.until,
                };
                capability_comes_back(Some(claim), kept, now)
            }
            (None, Document::Capability(kept)) => {
                if capability_is_over(None, kept, now) {
                    marks::mark(work, &key, now);
                }
                capability_comes_back(None, kept, now)
            }
            (held, kept) => {
                let held = held.map_or(HeldName::Nothing, held_name);
                if assignment_is_over(held, kept, now) {
                    marks::mark(work, &key, now);
                    over.extend(assignment_of(kept).map(|kept| (key.clone(), kept.opened_at)));
                }
                assignment_comes_back(held, kept, now)
            }
        };
        if !comes_back {
            continue;
        }
        marks::check_closed(work, now)?;
        // The module forgets a capability, and marks it, before it writes another one in its place.
        if let Some(Document::Capability(_)) = work.things.get(&key) {
            marks::mark(work, &key, now);
        }
        work.things.insert(key, as_shown(&kept, now));
    }
    Ok(over)
}

fn held_name(held: &Document) -> HeldName {
    match held {
        Document::Assignment(held) => HeldName::Assignment {
            opened_as: held.opened_as,
            opened_at: held.opened_at,
            version: held.version,
            changed_at: held.changed_at,
        },
        Document::Forgotten(held) => HeldName::Forgotten {
            opened_as: held.opened_as,
            opened_at: held.opened_at,
        },
        Document::Capability(_) => HeldName::Nothing,
    }
}
