//! The journal's rows in memory, for tests and for the simulation.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::marks::{JournalRows, Mark, State};
use super::{Document, Key};

/// What a module holds that the journal covers, and the marks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryJournal {
    /// The state.
    pub state: Option<State>,
    /// The marks, by their numbers.
    pub marks: BTreeMap<u64, Mark>,
    /// Everything that is held.
    pub things: BTreeMap<Key, Document>,
}

impl JournalRows for MemoryJournal {
    fn state(&self) -> Option<State> {
        self.state.clone()
    }

    fn set_state(&mut self, state: State) {
        self.state = Some(state);
    }

    fn mark_of(&self, key: &str) -> Option<Mark> {
        self.marks.values().find(|mark| mark.key == key).cloned()
    }

    fn marks_in(&self, range: RangeInclusive<u64>) -> Vec<Mark> {
        self.marks.range(range).map(|(_, mark)| mark.clone()).collect()
    }

    fn insert_mark(&mut self, mark: Mark) {
        self.marks.insert(mark.mark, mark);
    }

    fn delete_marks(&mut self, range: RangeInclusive<u64>) {
        self.marks.retain(|mark, _| !range.contains(mark));
    }

    fn marks(&self) -> u64 {
        self.marks.len() as u64
    }

    fn everything(&self) -> Vec<Key> {
        self.things.keys().cloned().collect()
    }

    fn document(&self, key: &Key) -> Option<Document> {
        self.things.get(key).cloned()
    }
}
