//! The marks: what has changed since the authority last kept it, and whether changes are accepted at all. It is decided here, and
//! carried out over [`JournalRows`], which the module has as tables.

use std::ops::RangeInclusive;
use std::time::Duration;

use spacetime_sync_proto::journal::{JournalEntry, JournalPage, PAGE_BYTES, PAGE_ENTRIES};
use spacetime_sync_proto::{Refusal, RefusalCode, limit};

use crate::content::invalid;

use super::pass::{Kind, Pass, Steps, go_on};
use super::{Document, Key};

/// How many ranges of marks one read looks through, each as long as a page. Most of the marks that were given are settled.
const RANGES: usize = 64;

/// The highest mark that is taken from outside, so that there are always more. No module ever gives as many.
const MOST_MARKS: u64 = i64::MAX.unsigned_abs() / 2;

/// Stands for a mark that comes later than every other one.
pub const NOT_YET: u64 = u64::MAX;

/// The state of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// False until the bridge has brought back what the authority keeps.
    pub is_open: bool,
    /// The authority's epoch when the bridge last opened the journal. Empty before that.
    pub epoch: String,
    /// The authority keeps everything up to this mark.
    pub settled: u64,
    /// The next change gets this mark.
    pub next_mark: u64,
    /// The last mark that was given when everything was marked anew for another history of the authority. 0 if it never was, and
    /// [`NOT_YET`] while it is done.
    pub whole_at: u64,
}

/// A thing that has changed since the authority last kept it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The newest change's mark.
    pub mark: u64,
    /// The thing's key.
    pub key: String,
    /// Since when the authority has not had it as it is, in microseconds.
    pub since_us: i64,
}

/// The rows of the journal, and of what it is about.
pub trait JournalRows {
    /// The state. `None` in a database that has never met a bridge that keeps the journal.
    fn state(&self) -> Option<State>;

    /// Writes the state.
    fn set_state(&mut self, state: State);

    /// The mark of a thing.
    fn mark_of(&self, key: &str) -> Option<Mark>;

    /// The marks in a range, in their order.
    fn marks_in(&self, range: RangeInclusive<u64>) -> Vec<Mark>;

    /// Adds a mark. Its thing has none.
    fn insert_mark(&mut self, mark: Mark);

    /// Deletes the marks in a range.
    fn delete_marks(&mut self, range: RangeInclusive<u64>);

    /// How many marks there are.
    fn marks(&self) -> u64;

    /// How far everything has been marked anew. `None` if that is not under way.
    fn pass(&self) -> Option<Pass>;

    /// Writes it.
    fn set_pass(&mut self, pass: Option<Pass>);

    /// How many things of a kind are held.
    fn held(&self, kind: Kind) -> u64;

    /// The things of a kind that are due in this range of times, in microseconds. A thing that does not change is always due at the
    /// same time.
    fn due(&self, kind: Kind, range: RangeInclusive<i64>) -> Vec<Key>;

    /// How a thing is. `None` if it is held no longer.
    fn document(&self, key: &Key) -> Option<Document>;
}

/// Refuses a call that changes what the bridge may still bring back.
pub fn check_open(rows: &impl JournalRows) -> Result<(), Refusal> {
    if rows.state().is_some_and(|state| state.is_open) {
        return Ok(());
    }
    let message = "assignments and the names of providers are being brought back: try again";
    Err(Refusal::new(RefusalCode::BeingBroughtBack, message))
}

/// The same for a call that makes something new.
pub fn check_room(rows: &impl JournalRows) -> Result<(), Refusal> {
    check_open(rows)?;
    let waiting = rows.marks();
    if waiting < limit::JOURNAL_WAITING {
        return Ok(());
    }
    let message = format!(
        "{waiting} changes wait for the authority to keep them, the most allowed: the bridge is away or cannot follow; try again \
         later"
    );
    Err(Refusal::new(RefusalCode::RateLimited, message))
}

/// The state. If there is none, the database is new, or older than the journal: then everything that it holds is to be marked.
fn state(rows: &mut impl JournalRows, now_us: i64) -> State {
    if let Some(state) = rows.state() {
        return state;
    }
    let state = State {
        is_open: false,
        epoch: String::new(),
        settled: 0,
        next_mark: 1,
        whole_at: 0,
    };
    rows.set_state(state.clone());
    rows.set_pass(Some(Pass::new(now_us, false)));
    state
}

/// Notes that something has changed.
pub fn mark(rows: &mut impl JournalRows, key: &Key, now_us: i64) {
    let mut state = state(rows, now_us);
    place(rows, &mut state, key.to_text(), now_us);
    rows.set_state(state);
}

/// Gives the next mark. What waits already waits no shorter for it.
pub(super) fn place(rows: &mut impl JournalRows, state: &mut State, key: String, now_us: i64) {
    let held = rows.mark_of(&key);
    if let Some(held) = &held {
        rows.delete_marks(held.mark..=held.mark);
    }
    rows.insert_mark(Mark {
        mark: state.next_mark,
        key,
        since_us: held.map_or(now_us, |held| held.since_us),
    });
    state.next_mark += 1;
}

/// The oldest marks with what they are about, as it is: about `most` and as many as fit into a page. If everything is to be marked,
/// some more of it is marked first.
pub fn page(rows: &mut impl JournalRows, most: u64, steps: &Steps, now_us: i64) -> JournalPage {
    let mut state = state(rows, now_us);
    let unmarked = go_on(rows, &mut state, steps, now_us);
    let most = most.clamp(1, PAGE_ENTRIES as u64);
    let newest = state.next_mark - 1;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    let (mut to, mut oldest_us) = (state.settled, now_us);
    'ranges: for _ in 0..RANGES {
        if to >= newest || entries.len() as u64 >= most {
            break;
        }
        let last = newest.min(to + most);
        for mark in rows.marks_in(to + 1..=last) {
            let document = Key::read(&mark.key).ok().and_then(|key| rows.document(&key));
            let document = document.map_or_else(String::new, |document| document.to_text());
            bytes += document.len();
            if bytes > PAGE_BYTES && !entries.is_empty() {
                to = mark.mark - 1;
                break 'ranges;
            }
            oldest_us = oldest_us.min(mark.since_us);
            entries.push(JournalEntry {
                mark: mark.mark,
                key: mark.key,
                document,
            });
        }
        to = last;
    }
    JournalPage {
        is_open: state.is_open,
        epoch: state.epoch,
        settled: state.settled,
        whole_at: state.whole_at,
        newest,
        waiting: rows.marks() + unmarked,
        oldest: Duration::from_micros((now_us - oldest_us).unsigned_abs()),
        to,
        entries,
    }
}

/// The authority keeps everything up to `to`. What has changed since it was read has a later mark. A repeat changes nothing.
pub fn settle(rows: &mut impl JournalRows, to: u64, now_us: i64) -> Result<(), Refusal> {
    let state = state(rows, now_us);
    if to >= state.next_mark {
        let newest = state.next_mark - 1;
        return Err(invalid(format!(
            "to: expected a mark that was given, found {to}, and the newest is {newest}: read the journal again"
        )));
    }
    if to > state.settled {
        rows.delete_marks(0..=to);
        rows.set_state(State { settled: to, ..state });
    }
    Ok(())
}

/// Has calls refused until the journal is open again. `settled` is up to where the bridge has found it settled: if that has
/// changed since, another bridge is at work.
pub fn close(rows: &mut impl JournalRows, settled: u64, now_us: i64) -> Result<(), Refusal> {
    let state = state(rows, now_us);
    if state.settled != settled {
        return Err(invalid(format!(
            "settled: expected {}, found {settled}: read the journal again",
            state.settled
        )));
    }
    rows.set_state(State {
        is_open: false,
        ..state
    });
    Ok(())
}

/// Whether anything may be brought back. Once the journal is open nothing may: what is lacking then was given up.
pub fn check_closed(rows: &mut impl JournalRows, now_us: i64) -> Result<(), Refusal> {
    if state(rows, now_us).is_open {
        let message = "the journal is open, and the module lacks something newer: close it first";
        return Err(Refusal::new(RefusalCode::Lacking, message));
    }
    Ok(())
}

/// Has calls accepted. `newest` is the newest mark that the authority was ever given. An authority that may lack anything is told
/// everything anew: as its pages are read, everything is marked.
pub fn open(rows: &mut impl JournalRows, epoch: String, newest: u64, now_us: i64) -> Result<(), Refusal> {
    if epoch.is_empty() || epoch.len() > limit::NAME_BYTES {
        let (most, found) = (limit::NAME_BYTES, epoch.len());
        return Err(invalid(format!("epoch: expected 1 to {most} bytes, found {found}")));
    }
    if newest > MOST_MARKS {
        return Err(invalid(format!("newest: {newest}, at most {MOST_MARKS} is possible")));
    }
    let mut state = state(rows, now_us);
    // An authority of another history, or one that has lost marks, may lack anything.
    let is_another = !state.epoch.is_empty() && state.epoch != epoch;
    let lacks = is_another || state.settled > newest;
    if state.settled < newest {
        // What has been marked here meanwhile is newer than all that the authority has, and stays to be read.
        state.settled = newest;
        state.next_mark = state.next_mark.max(newest + 1);
        for mark in rows.marks_in(0..=newest) {
            place(rows, &mut state, mark.key, now_us);
        }
    }
    if lacks {
        rows.set_pass(Some(Pass::new(now_us, true)));
        state.whole_at = NOT_YET;
    }
    state.is_open = true;
    state.epoch = epoch;
    rows.set_state(state);
    Ok(())
}

#[cfg(test)]
mod tests;
