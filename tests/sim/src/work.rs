//! The journal in the authority, and what must be true of assignments whatever SpacetimeDB loses:
//!
//! - nothing is changed that is older than what the authority keeps, so nothing has two winners ("A1");
//! - what the authority keeps never becomes older, and never gets another past ("A2");
//! - in the end both sides have the same, and changes are accepted ("I10").
//!
//! A SpacetimeDB that was restored shows its old states until a bridge notices it. What is decided on those may differ.

use std::collections::BTreeMap;

use spacetime_sync_lane::Failure;
use spacetime_sync_proto::journal::{JournalEntry, JournalTurn, PAGE_ENTRIES};
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_rules::journal::{Assignment, Document, Key};

use crate::host::assignment_of;
use crate::world::World;

/// The authority's epoch.
pub(crate) const EPOCH: &str = "the only one";

/// What the authority keeps.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    entries: BTreeMap<Key, (u64, Document)>,
    newest: u64,
    turn: u64,
}

impl Kept {
    pub(crate) fn begin(&mut self) -> JournalTurn {
        self.turn += 1;
        JournalTurn {
            turn: self.turn,
            newest: self.newest,
            epoch: EPOCH.to_owned(),
        }
    }

    /// A page of the entries with higher marks, in their order.
    pub(crate) fn page(&self, after: u64) -> Vec<JournalEntry> {
        let later = self.entries.iter().filter(|(_, (mark, _))| *mark > after);
        let mut page: Vec<_> = later
            .map(|(key, (mark, document))| JournalEntry {
                mark: *mark,
                key: key.to_text(),
                document: document.to_text(),
            })
            .collect();
        page.sort_by_key(|entry| entry.mark);
        page.truncate(PAGE_ENTRIES);
        page
    }

    fn assignment(&self, key: &Key) -> Option<&Assignment> {
        self.entries.get(key).and_then(|(_, document)| assignment_of(document))
    }
}

impl World {
    /// Keeps a page, as `runtime.sync_keep_journal` does.
    pub(crate) fn keep(&mut self, turn: u64, entries: &[JournalEntry], to: u64) -> Result<(), Failure> {
        if turn != self.kept.turn {
            self.coverage.seen("journal: page of an earlier turn refused");
            return Err(Failure {
                class: RefusalClass::Retry,
                refusal: None,
                text: "another turn".to_owned(),
            });
        }
        for entry in entries {
            let Ok(key) = Key::read(&entry.key) else { continue };
            let held = self.kept.entries.get(&key).map_or(0, |(mark, _)| *mark);
            if held >= entry.mark {
                continue;
            }
            if entry.document.is_empty() {
                self.kept.entries.remove(&key);
                continue;
            }
            match Document::read(&key, &entry.document) {
                Ok(document) => {
                    self.judge_kept(&key, &document);
                    self.kept.entries.insert(key, (entry.mark, document));
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

    /// What is kept of an assignment follows from what was kept before.
    fn judge_kept(&mut self, key: &Key, document: &Document) {
        let (Some(before), Some(after)) = (self.kept.assignment(key), assignment_of(document)) else {
            return;
        };
        let is_older = if before.opened_at == after.opened_at {
            after.version < before.version
        } else {
            after.opened_at < before.opened_at
        };
        let is_same = before.opened_at == after.opened_at;
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
        if let Some(other) = other_past
            && !self.was_restored
        {
            let version = other.version;
            self.violate("A2", || {
                format!("{} has another past at version {version}", key.to_text())
            });
        }
    }

    /// A session opens an assignment.
    pub(crate) fn judge_opening(&mut self, key: &Key, opened: &Assignment) {
        let Some(kept) = self.kept.assignment(key) else { return };
        let was_forgotten = self.forgotten.contains(&(key.clone(), kept.opened_at));
        if !was_forgotten && !self.host.is_stale {
            let (before, at) = (kept.opened_at, opened.opened_at);
            self.violate("A1", || {
                format!(
                    "{} is opened at {at}, but the authority keeps the one of {before}",
                    key.to_text()
                )
            });
        }
    }

    /// A session changes an assignment.
    pub(crate) fn judge_change(&mut self, key: &Key, changed: &Assignment) {
        let Some(kept) = self.kept.assignment(key) else { return };
        if kept.opened_at == changed.opened_at && kept.version >= changed.version && !self.host.is_stale {
            let (kept, changed) = (kept.version, changed.version);
            self.violate("A1", || {
                format!(
                    "{} gets version {changed}, but the authority keeps {kept}",
                    key.to_text()
                )
            });
        }
    }

    /// Whether the authority keeps everything as it is, and changes are accepted.
    pub(crate) fn is_kept(&self) -> bool {
        let work = &self.host.work;
        // What came back with an old SpacetimeDB, and was forgotten before, is nobody's any more.
        let is_remembered = |key: &&Key| {
            let opened_at = work.things.get(*key).and_then(assignment_of).map(|held| held.opened_at);
            !self.was_restored || opened_at.is_none_or(|at| !self.forgotten.contains(&((*key).clone(), at)))
        };
        let held: Vec<&Key> = work.things.keys().filter(is_remembered).collect();
        let kept = |key: &Key| self.kept.entries.get(key).map(|(_, document)| document);
        let same = self.kept.entries.keys().all(|key| work.things.contains_key(key))
            && held.iter().all(|key| kept(key) == work.things.get(*key));
        same && work.marks.is_empty() && work.state.as_ref().is_some_and(|state| state.is_open)
    }
}
