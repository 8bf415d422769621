//! Assignments in the module's tables, with the shipped rules: who may change what, what is marked, and what comes back.

use rand::Rng as _;
use spacetime_sync_lane::RequestId;
use spacetime_sync_proto::journal::{JournalEntry, JournalPage};
use spacetime_sync_proto::{AssignmentSide, AssignmentState, Refusal, RefusalCode, limit};
use spacetime_sync_rules::assignment::{self, Held, Part, Provider};
use spacetime_sync_rules::journal::memory::MemoryJournal;
use spacetime_sync_rules::journal::{Assignment, Change, Document, HeldName, Key, assignment_comes_back, marks};

use super::Undo;
use crate::net::{ConnId, FromHost};
use crate::world::{World, say};

/// The names under which assignments are opened, and the providers that take them.
const NAMES: usize = 4;
const PROVIDERS: usize = 3;

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

impl World {
    pub(super) fn host_journals(&mut self, conn: ConnId, ask: RequestId, call: JournalCall) {
        let (before, now) = (self.host.work.clone(), self.now as i64);
        let work = &mut self.host.work;
        let answer = match call {
            JournalCall::Read => {
                let most = self.setup.journal_page;
                JournalAnswer::Page(marks::page(work, most, now))
            }
            JournalCall::Settle(to) => JournalAnswer::Told(marks::settle(work, to, now)),
            JournalCall::Close(settled) => JournalAnswer::Told(marks::close(work, settled, now)),
            JournalCall::BringBack(entries) => JournalAnswer::Told(bring_back(work, &entries, now)),
            JournalCall::Open { epoch, newest } => {
                let opened = marks::open(work, epoch, newest, now);
                if opened.is_ok() {
                    self.host.is_stale = false;
                }
                JournalAnswer::Told(opened)
            }
        };
        match &answer {
            JournalAnswer::Page(_) => {}
            JournalAnswer::Told(Ok(())) if before == self.host.work => self.coverage.seen("journal: repeat absorbed"),
            JournalAnswer::Told(Ok(())) => self.coverage.seen("journal: changed by the bridge"),
            JournalAnswer::Told(Err(_)) => self.coverage.seen("journal: call of the bridge refused"),
        }
        self.work_is_done(before);
        self.answer_soon(conn, FromHost::Journal { ask, answer });
    }

    fn work_is_done(&mut self, before: MemoryJournal) {
        if before != self.host.work {
            self.commit(Undo::Work(Box::new(before)));
        }
    }

    /// A session opens an assignment, or changes one, as it sees fit.
    pub(crate) fn sessions_work(&mut self) {
        if !self.host.up {
            return;
        }
        let key = Key::Assignment(format!("r{}", self.dice.labour.random_range(0..NAMES)));
        let before = self.host.work.clone();
        if let Err(refusal) = self.change(&key) {
            if refusal.code == RefusalCode::BeingBroughtBack {
                self.coverage.seen("module: being brought back");
            }
            self.host.work = before;
            return;
        }
        self.work_is_done(before);
    }

    fn change(&mut self, key: &Key) -> Result<(), Refusal> {
        let now = self.now as i64;
        marks::check_open(&self.host.work)?;
        let held = self.host.work.things.get(key).cloned();
        let Some(held) = held.as_ref().and_then(assignment_of) else {
            let opened = opened(now);
            self.judge_opening(key, &opened);
            self.put(key, opened);
            self.coverage.seen("module: assignment opened");
            return Ok(());
        };
        if held.has_ended {
            self.host.work.things.remove(key);
            self.forgotten.insert((key.clone(), held.opened_at));
            marks::mark(&mut self.host.work, key, now);
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
        let rule = Held {
            state: assignment::state(&held.status)?,
            version: held.version,
            provider_id: (!held.provider_id.is_empty()).then(|| held.provider_id.clone()),
            to_all: held.to_all,
            deadline_us: held.deadline_at,
        };
        let next = assignment::decide(&rule, &change, part, now)?;
        let mut changed = held.clone();
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
        changed.has_ended = assignment::is_final(next.state);
        changed.changes.push(step(&changed, next.by.side(), &update));
        let most = usize::try_from(limit::ASSIGNMENT_CHANGES).unwrap_or(usize::MAX);
        let old = changed.changes.len().saturating_sub(most);
        changed.changes.drain(..old);
        self.judge_change(key, &changed);
        self.put(key, changed);
        self.coverage.seen("module: assignment changed");
        Ok(())
    }

    fn put(&mut self, key: &Key, assignment: Assignment) {
        let (version, status) = (assignment.version, assignment.status.clone());
        say!(self, "module: {} is {status} at version {version}", key.to_text());
        let work = &mut self.host.work;
        work.things.insert(key.clone(), Document::Assignment(assignment));
        marks::mark(work, key, self.now as i64);
    }
}

fn opened(now: i64) -> Assignment {
    let mut assignment = Assignment {
        requester: "asker".to_owned(),
        provider: String::new(),
        opened_as: [7; 32],
        has_ended: false,
        due_at: i64::MAX,
        version: 1,
        status: AssignmentState::Open.as_str().to_owned(),
        provider_id: String::new(),
        to_all: true,
        assignment: "{}".to_owned(),
        report: String::new(),
        opened_at: now,
        changed_at: now,
        deadline_at: i64::MAX,
        changes: Vec::new(),
        updates: Vec::new(),
    };
    let first = step(&assignment, AssignmentSide::Requester, "");
    assignment.changes.push(first);
    assignment
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

/// As the module does it.
fn bring_back(work: &mut MemoryJournal, entries: &[JournalEntry], now: i64) -> Result<(), Refusal> {
    marks::check_closed(work, now)?;
    for entry in entries {
        let key = Key::read(&entry.key)?;
        let kept = Document::read(&key, &entry.document)?;
        let held = match work.things.get(&key).and_then(assignment_of) {
            None => HeldName::Nothing,
            Some(held) => HeldName::Assignment {
                opened_as: held.opened_as,
                opened_at: held.opened_at,
                version: held.version,
                changed_at: held.changed_at,
            },
        };
        if assignment_comes_back(held, &kept) {
            work.things.insert(key, kept);
        }
    }
    Ok(())
}
