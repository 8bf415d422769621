//! The journal's rows in memory, for tests and for the simulation.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::marks::{JournalRows, Mark, State};
use super::pass::{Kind, Pass};
use super::{Document, Key};

/// What a module holds that the journal covers, and the marks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryJournal {
    /// The state.
    pub state: Option<State>,
    /// The marks, by their numbers.
    pub marks: BTreeMap<u64, Mark>,
    /// How far everything has been marked anew.
    pub pass: Option<Pass>,
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

    fn pass(&self) -> Option<Pass> {
        self.pass
    }

    fn set_pass(&mut self, pass: Option<Pass>) {
        self.pass = pass;
    }

    fn held(&self, kind: Kind) -> u64 {
        self.things.values().filter(|thing| Kind::of(thing) == kind).count() as u64
    }

    fn due(&self, kind: Kind, range: RangeInclusive<i64>) -> Vec<Key> {
        let due = self
            .things
            .iter()
            .filter(|(_, thing)| Kind::of(thing) == kind && range.contains(&thing.due_us()));
        due.map(|(key, _)| key.clone()).collect()
    }

    fn document(&self, key: &Key) -> Option<Document> {
        self.things.get(key).cloned()
    }
}
