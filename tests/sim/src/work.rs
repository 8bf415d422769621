//! The journal in the authority, and what must be true of assignments and of providers' names whatever SpacetimeDB loses:
//!
//! - nothing is changed that is older than what the authority keeps, or that it knows to be gone, and nobody takes what it
//!   keeps for another user, so nothing has two winners ("A1");
//! - what the authority keeps never becomes older, and never gets another past ("A2");
//! - in the end both sides have the same, and changes are accepted ("I10").
//!
//! A SpacetimeDB that was restored shows its old states until a bridge notices it. What is decided on those may differ. An
//! authority that is restored knows no more than its backup. It gets another epoch at once, as by `spacetime-sync rewind`.

use std::collections::{BTreeMap, BTreeSet};

use spacetime_sync_lane::Failure;
use spacetime_sync_proto::journal::{JournalEntry, JournalTurn, PAGE_ENTRIES};
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_rules::journal::{Assignment, Capability, Document, Key};

use crate::agenda::{MILLISECOND, Micros};
use crate::host::{as_shown, assignment_of};
use crate::world::{Step, World, say};

/// How long a restore of the authority takes, and how many entries it forgets at once.
const RESTORE: u64 = 300 * MILLISECOND;
const FORGOTTEN_AT_ONCE: usize = 2;

/// An entry that the authority keeps.
#[derive(Debug, Clone)]
struct Entry {
    mark: u64,
    /// The number of the history in which it was kept.
    history: u64,
    /// When it was kept. 0 if that was of a SpacetimeDB that had been restored and may lack something.
    kept_at: Micros,
    document: Document,
}

/// What the authority keeps.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    entries: BTreeMap<Key, Entry>,
    newest: u64,
    turn: u64,
    /// The number of this history, and of the one in which the turn began.
    history: u64,
    turn_history: u64,
    /// The assignments that the authority was told are gone, each with the time at which it was opened.
    gone: BTreeSet<(Key, i64)>,
}

impl Kept {
    /// The authority's epoch.
    pub(crate) fn epoch(&self) -> String {
        format!("epoch {}", self.history)
    }

    pub(crate) fn begin(&mut self) -> JournalTurn {
        self.turn += 1;
        self.turn_history = self.history;
        JournalTurn {
            turn: self.turn,
            newest: self.newest,
            epoch: self.epoch(),
        }
    }

    /// A page of the entries with higher marks, in their order.
    pub(crate) fn page(&self, after: u64) -> Vec<JournalEntry> {
        let later = self.entries.iter().filter(|(_, entry)| entry.mark > after);
        let mut page: Vec<_> = later
            .map(|(key, entry)| JournalEntry {
                mark: entry.mark,
                key: key.to_text(),
                document: entry.document.to_text(),
            })
            .collect();
        page.sort_by_key(|entry| entry.mark);
        page.truncate(PAGE_ENTRIES);
        page
    }

    fn document(&self, key: &Key) -> Option<&Document> {
        self.entries.get(key).map(|entry| &entry.document)
    }

    fn assignment(&self, key: &Key) -> Option<&Assignment> {
        self.document(key).and_then(assignment_of)
    }
}

/// Whether nobody would know the assignment by now.
fn is_over(kept: &Assignment, now: i64) -> bool {
    kept.has_ended && kept.due_at <= now
}

impl World {
    /// The authority is set back to its backup, and begins another history.
    pub(crate) fn authority_is_restored(&mut self) {
        // Whatever is on its way to the authority dies with it. What a bridge sends that stands still now would not.
        if self.bridges.iter().any(|bridge| bridge.paused_until > self.now) {
            let later = self.now + RESTORE;
            if later < self.setup.until {
                self.agenda.push(later, Step::Restore);
            }
            return;
        }
        let Some(backup) = self.backup.take() else { return };
        say!(self, "authority: its journal is restored");
        self.coverage.seen("authority: journal restored");
        self.authority_away_until = self.authority_away_until.max(self.now + RESTORE);
        self.lose_lead();
        let history = self.kept.history + 1;
        self.kept = Kept { history, ..backup };
    }

    fn check_turn(&mut self, turn: u64) -> Result<(), Failure> {
        if turn == self.kept.turn {
            return Ok(());
        }
        self.coverage.seen("journal: page of an earlier turn refused");
        Err(Failure {
            class: RefusalClass::Retry,
            refusal: None,
            text: "another turn".to_owned(),
        })
    }

    /// Keeps a page, as `runtime.sync_keep_journal` does.
    pub(crate) fn keep(&mut self, turn: u64, entries: &[JournalEntry], to: u64) -> Result<(), Failure> {
        self.check_turn(turn)?;
        for entry in entries {
            let Ok(key) = Key::read(&entry.key) else { continue };
            let held = self.kept.entries.get(&key).map_or(0, |held| held.mark);
            if held >= entry.mark {
                continue;
            }
            if entry.document.is_empty() {
                self.judge_gone(&key, None);
                self.is_gone(&key, None);
                self.kept.entries.remove(&key);
                continue;
            }
            match Document::read(&key, &entry.document) {
                Ok(document) => {
                    self.judge_gone(&key, Some(&document));
                    self.judge_kept(&key, &document);
                    self.is_gone(&key, assignment_of(&document).map(|assignment| assignment.opened_at));
                    let (mark, history) = (entry.mark, self.kept.turn_history);
                    let kept = Entry {
                        mark,
                        history,
                        kept_at: if self.host.is_stale { 0 } else { self.now },
                        document,
                    };
                    self.kept.entries.insert(key, kept);
                }
                Err(refusal) => self.violate("A2", || {
                    format!("the module wrote an entry that cannot be read: {refusal}")
                }),
            }
        }
        self.kept.newest = self.kept.newest.max(to);
        self.coverage.seen("journal: page kept");
        Ok(())
    }

    /// Forgets what is of another history, as `runtime.sync_forget_journal` does.
    pub(crate) fn forget(&mut self, turn: u64) -> Result<u64, Failure> {
        self.check_turn(turn)?;
        let present = self.kept.turn_history;
        let old = self.kept.entries.iter().filter(|(_, entry)| entry.history != present);
        let old: Vec<Key> = old.map(|(key, _)| key.clone()).take(FORGOTTEN_AT_ONCE).collect();
        for key in &old {
            self.coverage.seen("authority: entry of another history forgotten");
            self.is_gone(key, None);
            self.kept.entries.remove(key);
        }
        Ok(old.len() as u64)
    }

    /// The authority is told that the assignment that it keeps is gone, unless it is the one that was opened then.
    fn is_gone(&mut self, key: &Key, opened_at: Option<i64>) {
        if let Some(kept) = self.kept.assignment(key)
            && opened_at != Some(kept.opened_at)
        {
            let gone = (key.clone(), kept.opened_at);
            self.kept.gone.insert(gone);
        }
    }

    /// What is kept goes only if the module has forgotten it, or if nobody would know it by now. `after` is what comes in its place.
    fn judge_gone(&mut self, key: &Key, after: Option<&Document>) {
        // After a restore of the authority, the backup may have what SpacetimeDB lost before it was told anew.
        let Some(kept) = self.kept.entries.get(key) else { return };
        if kept.history != self.kept.turn_history {
            return;
        }
        let now = self.now as i64;
        let may_go = match (&kept.document, after) {
            (Document::Assignment(before), Some(Document::Assignment(after)))
                if before.opened_at == after.opened_at =>
            {
                true
            }
            (Document::Assignment(before), _) => {
                let was_forgotten = self.forgotten.contains(&(key.clone(), before.opened_at));
                was_forgotten || is_over(before, now)
            }
            (Document::Capability(before), None) => before.until <= now,
            (Document::Capability(_), Some(_)) | (Document::Forgotten(_), _) => true,
        };
        if !may_go {
            let before = kept.document.clone();
            self.violate("A2", || {
                format!("{} was {before:?}, and goes without being forgotten", key.to_text())
            });
        }
    }

    /// What is kept follows from what was kept before.
    fn judge_kept(&mut self, key: &Key, document: &Document) {
        if let (Some(Document::Capability(before)), Document::Capability(after)) = (self.kept.document(key), document) {
            let is_other = if before.user_id == after.user_id {
                // A SpacetimeDB that was restored has not known how long that was.
                let kept_at = self.kept.entries.get(key).map_or(0, |entry| entry.kept_at);
                let is_known = self.restored_at.is_none_or(|at| kept_at > at);
                let is_shorter = after.until < before.until && is_known;
                after.version < before.version || is_shorter
            } else {
                true
            };
            // After that, the name is free.
            let is_older = is_other && before.until > self.now as i64;
            if is_older {
                let (before, after) = (before.clone(), after.clone());
                self.violate("A2", || format!("{} was {before:?}, and is {after:?}", key.to_text()));
            }
            return;
        }
        let (Some(before), Some(after)) = (self.kept.assignment(key), assignment_of(document)) else {
            return;
        };
        let is_same = before.opened_at == after.opened_at;
        let is_older = if is_same {
            after.version < before.version
        } else {
            after.opened_at < before.opened_at
        };
        let other_past = before.changes.iter().find(|step| {
            let now = after.changes.iter().find(|now| now.version == step.version);
            is_same && now.is_some_and(|now| now != *step)
        });
        let (before, after) = (before.version, after.version);
        if is_older {
            return self.violate("A2", || {
                format!("{} was kept at {before}, and is at {after}", key.to_text())
            });
        }
        // A change that was made on an old state counts if its version is higher. What it was made on was never kept after that.
        if let Some(other) = other_past
            && self.restored_at.is_none_or(|at| other.changed_at > at as i64)
        {
            let version = other.version;
            self.violate("A2", || {
                format!("{} has another past at version {version}", key.to_text())
            });
        }
    }

    /// A session opens an assignment.
    pub(crate) fn judge_opening(&mut self, key: &Key, opened_at: i64) {
        if self.host.is_stale {
            return;
        }
        let taken = match self.kept.document(key) {
            Some(Document::Assignment(kept))
                if !self.forgotten.contains(&(key.clone(), kept.opened_at)) && !is_over(kept, self.now as i64) =>
            {
                format!("keeps the one of {}", kept.opened_at)
            }
            Some(Document::Forgotten(kept)) if kept.until > self.now as i64 => {
                format!("keeps that its name is taken until {}", kept.until)
            }
            Some(_) | None => return,
        };
        self.violate("A1", || {
            format!("{} is opened at {opened_at}, but the authority {taken}", key.to_text())
        });
    }

    /// A session changes an assignment.
    pub(crate) fn judge_change(&mut self, key: &Key, changed: &Assignment) {
        if self.host.is_stale {
            return;
        }
        let version = changed.version;
        if self.kept.gone.contains(&(key.clone(), changed.opened_at)) {
            return self.violate("A1", || {
                format!(
                    "{} gets version {version}, but the authority knows that it is gone",
                    key.to_text()
                )
            });
        }
        if let Some(kept) = self.kept.assignment(key)
            && kept.opened_at == changed.opened_at
            && kept.version >= version
        {
            let kept = kept.version;
            self.violate("A1", || {
                format!(
                    "{} gets version {version}, but the authority keeps {kept}",
                    key.to_text()
                )
            });
        }
    }

    /// A session publishes a capability.
    pub(crate) fn judge_publication(&mut self, key: &Key, published: &Capability) {
        let Some(Document::Capability(kept)) = self.kept.document(key) else {
            return;
        };
        let is_others = kept.user_id != published.user_id;
        let is_older = !is_others && kept.version >= published.version;
        if (is_others || is_older) && kept.until > self.now as i64 && !self.host.is_stale {
            let (kept, published) = (kept.clone(), published.clone());
            self.violate("A1", || {
                format!(
                    "{} is published as {published:?}, but the authority keeps {kept:?}",
                    key.to_text()
                )
            });
        }
    }

    /// Whether the authority keeps everything as it is, and changes are accepted.
    pub(crate) fn is_kept(&self) -> bool {
        let (work, now) = (&self.host.work, self.now as i64);
        let is_same = |(key, entry): (&Key, &Entry)| {
            let held = work.things.get(key);
            held.is_some_and(|held| as_shown(held, now) == as_shown(&entry.document, now))
        };
        let same = self.kept.entries.len() == work.things.len() && self.kept.entries.iter().all(is_same);
        let is_open = work.state.as_ref().is_some_and(|state| state.is_open);
        same && work.marks.is_empty() && work.pass.is_none() && is_open
    }
}
