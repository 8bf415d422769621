//! What only this module decides is journalled: the bridge has the authority keep it, and brings it back if SpacetimeDB has
//! lost it. Every change marks what it has changed, in the same transaction.
//!
//! Until the bridge has brought everything back, the module refuses to change any of it ([`check_open`]). Otherwise a late
//! repeat of a call would be a second one, and what one provider has would go to another.

use std::ops::RangeInclusive;

use spacetime_sync_proto::journal::{ENTRY_BYTES, JournalPage as Page, PAGE_BYTES, PAGE_ENTRIES};
use spacetime_sync_rules::journal::marks::{self, JournalRows, Mark, State};
use spacetime_sync_rules::journal::pass::{Kind, Pass};
use spacetime_sync_rules::journal::{Document, Key, read_entry};
use spacetimedb::{ReducerContext, SpacetimeType, Table, Timestamp};

use crate::refuse::{Refused, invalid_argument, refused};
use crate::tables::{
    JournalMark, JournalPass, JournalState, assignment_party, capability_claim, forgotten_assignment, journal_mark,
    journal_pass, journal_state,
};
use crate::{assignments, capabilities};

/// Something that the journal holds.
#[derive(SpacetimeType)]
pub struct JournalEntry {
    /// The change's mark.
    pub mark: u64,
    pub key: String,
    /// A JSON object. Empty if the module holds it no longer.
    pub document: String,
}

/// How it is with the journal, and its oldest entries that are not settled.
#[derive(SpacetimeType)]
pub struct JournalPage {
    pub is_open: bool,
    pub epoch: String,
    pub settled: u64,
    pub whole_at: u64,
    /// The newest mark.
    pub newest: u64,
    /// How many entries are not settled.
    pub waiting: u64,
    /// How long one of these entries has waited at most, in microseconds.
    pub oldest_us: u64,
    /// These entries are all after `settled` up to this mark.
    pub to: u64,
    pub entries: Vec<JournalEntry>,
}

impl From<Page> for JournalPage {
    fn from(page: Page) -> Self {
        let entries = page.entries.into_iter().map(|entry| JournalEntry {
            mark: entry.mark,
            key: entry.key,
            document: entry.document,
        });
        Self {
            is_open: page.is_open,
            epoch: page.epoch,
            settled: page.settled,
            whole_at: page.whole_at,
            newest: page.newest,
            waiting: page.waiting,
            oldest_us: u64::try_from(page.oldest.as_micros()).unwrap_or(u64::MAX),
            to: page.to,
            entries: entries.collect(),
        }
    }
}

/// The journal's tables, in the form in which the rules work on them.
pub struct Rows<'a>(pub &'a ReducerContext);

impl JournalRows for Rows<'_> {
    fn state(&self) -> Option<State> {
        let row = self.0.db.journal_state().id().find(0)?;
        Some(State {
            is_open: row.is_open,
            epoch: row.epoch,
            settled: row.settled,
            next_mark: row.next_mark,
            whole_at: row.whole_at,
        })
    }

    fn set_state(&mut self, state: State) {
        let states = self.0.db.journal_state();
        let row = JournalState {
            id: 0,
            is_open: state.is_open,
            epoch: state.epoch,
            settled: state.settled,
            next_mark: state.next_mark,
            whole_at: state.whole_at,
        };
        if states.count() == 0 {
            states.insert(row);
        } else {
            states.id().update(row);
        }
    }

    fn mark_of(&self, key: &str) -> Option<Mark> {
        self.0.db.journal_mark().key().find(key.to_owned()).map(Mark::from)
    }

    fn marks_in(&self, range: RangeInclusive<u64>) -> Vec<Mark> {
        let marks = self.0.db.journal_mark().by_mark();
        marks.filter(range).map(Mark::from).collect()
    }

    fn insert_mark(&mut self, mark: Mark) {
        self.0.db.journal_mark().insert(JournalMark {
            mark: mark.mark,
            key: mark.key,
            since: Timestamp::from_micros_since_unix_epoch(mark.since_us),
        });
    }

    fn delete_marks(&mut self, range: RangeInclusive<u64>) {
        self.0.db.journal_mark().by_mark().delete(range);
    }

    fn marks(&self) -> u64 {
        self.0.db.journal_mark().count()
    }

    fn pass(&self) -> Option<Pass> {
        let row = self.0.db.journal_pass().id().find(0)?;
        Some(Pass {
            kinds: row.kinds,
            from_us: row.from_us,
            begun_us: row.begun_us,
            is_for_another_history: row.is_for_another_history,
        })
    }

    fn set_pass(&mut self, pass: Option<Pass>) {
        let passes = self.0.db.journal_pass();
        passes.id().delete(0);
        if let Some(pass) = pass {
            passes.insert(JournalPass {
                id: 0,
                kinds: pass.kinds,
                from_us: pass.from_us,
                begun_us: pass.begun_us,
                is_for_another_history: pass.is_for_another_history,
            });
        }
    }

    fn held(&self, kind: Kind) -> u64 {
        let db = &self.0.db;
        match kind {
            Kind::Assignment => db.assignment_party().count(),
            Kind::Forgotten => db.forgotten_assignment().count(),
            Kind::Capability => db.capability_claim().count(),
        }
    }

    fn due(&self, kind: Kind, range: RangeInclusive<i64>) -> Vec<Key> {
        let at = Timestamp::from_micros_since_unix_epoch;
        let (db, range) = (&self.0.db, at(*range.start())..=at(*range.end()));
        match kind {
            Kind::Assignment => {
                let due = db.assignment_party().due_at().filter(range);
                due.map(|party| Key::Assignment(party.request_id)).collect()
            }
            Kind::Forgotten => {
                let due = db.forgotten_assignment().until().filter(range);
                due.map(|row| Key::Assignment(row.request_id)).collect()
            }
            Kind::Capability => {
                let due = db.capability_claim().until().filter(range);
                due.map(|claim| Key::Capability {
                    provider_id: claim.provider_id,
                    capability: claim.capability,
                })
                .collect()
            }
        }
    }

    fn document(&self, key: &Key) -> Option<Document> {
        match key {
            Key::Assignment(request_id) => assignments::document(self.0, request_id),
            Key::Capability {
                provider_id,
                capability,
            } => capabilities::document(self.0, provider_id, capability).map(Document::Capability),
        }
    }
}

impl From<JournalMark> for Mark {
    fn from(row: JournalMark) -> Self {
        Self {
            mark: row.mark,
            key: row.key,
            since_us: row.since.to_micros_since_unix_epoch(),
        }
    }
}

/// Refuses a call that changes what the bridge may still bring back.
pub fn check_open(ctx: &ReducerContext) -> Result<(), Refused> {
    marks::check_open(&Rows(ctx)).map_err(refused)
}

/// The same for a call that makes something new.
pub fn check_room(ctx: &ReducerContext) -> Result<(), Refused> {
    marks::check_room(&Rows(ctx)).map_err(refused)
}

/// Notes that something has changed.
pub fn mark(ctx: &ReducerContext, key: &Key) {
    marks::mark(&mut Rows(ctx), key, now_us(ctx));
}

/// The time of the call, in microseconds.
pub fn now_us(ctx: &ReducerContext) -> i64 {
    ctx.timestamp.to_micros_since_unix_epoch()
}

/// Refuses to bring something back once the journal is open.
pub fn check_closed(ctx: &ReducerContext) -> Result<(), Refused> {
    marks::check_closed(&mut Rows(ctx), now_us(ctx)).map_err(refused)
}

/// Writes what is newer than what is held. While the journal is open, nothing may be newer: the page is refused for that first,
/// whatever else is wrong with it.
pub fn bring_back(ctx: &ReducerContext, entries: Vec<JournalEntry>) -> Result<(), Refused> {
    let bytes: usize = entries.iter().map(|entry| entry.document.len()).sum();
    if entries.len() > PAGE_ENTRIES || bytes > PAGE_BYTES + ENTRY_BYTES {
        return Err(invalid_argument(format!(
            "{} entries with {bytes} bytes, at most {PAGE_ENTRIES} with {} are allowed: bring back fewer at once",
            entries.len(),
            PAGE_BYTES + ENTRY_BYTES
        )));
    }
    let mut unread = None;
    for entry in entries {
        let read = match read_entry(&entry.key, &entry.document) {
            Ok(read) => read,
            Err(refusal) => {
                unread.get_or_insert(refusal);
                continue;
            }
        };
        match read {
            Some((
                Key::Capability {
                    provider_id,
                    capability,
                },
                Document::Capability(kept),
            )) => capabilities::bring_back(ctx, provider_id, capability, kept)?,
            Some((Key::Assignment(request_id), document)) => assignments::bring_back(ctx, request_id, document)?,
            // `read_entry` refuses these.
            Some((Key::Capability { .. }, Document::Assignment(_) | Document::Forgotten(_))) => {}
            None => spacetimedb::log::warn!("the entry {} is of a later release, and is not brought back", entry.key),
        }
    }
    unread.map_or(Ok(()), |refusal| Err(refused(refusal)))
}
