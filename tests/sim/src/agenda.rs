//! Virtual time: the steps that are still to be taken.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Microseconds since the start of a run.
pub type Micros = u64;
pub(crate) const MILLISECOND: Micros = 1_000;
pub(crate) const SECOND: Micros = 1_000_000;

/// Steps by their time. Steps at the same time keep the order in which they were planned.
#[derive(Debug)]
pub(crate) struct Agenda<S> {
    heap: BinaryHeap<Reverse<Entry<S>>>,
    planned: u64,
}

#[derive(Debug)]
struct Entry<S> {
    at: Micros,
    nth: u64,
    step: S,
}

impl<S> Agenda<S> {
    pub(crate) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            planned: 0,
        }
    }

    pub(crate) fn push(&mut self, at: Micros, step: S) {
        self.planned += 1;
        self.heap.push(Reverse(Entry {
            at,
            nth: self.planned,
            step,
        }));
    }

    pub(crate) fn pop(&mut self) -> Option<(Micros, S)> {
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.step))
    }
}

impl<S> PartialEq for Entry<S> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.nth) == (other.at, other.nth)
    }
}

impl<S> Eq for Entry<S> {}

impl<S> PartialOrd for Entry<S> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<S> Ord for Entry<S> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.nth).cmp(&(other.at, other.nth))
    }
}
