//! The sections of a stream, by which clients subscribe.

use std::fmt;

use crate::Seq;
use crate::limit::{FRAME_EVENTS, SECTION_EVENTS};

/// So many consecutive seqs of a stream: its key, and which section of the stream it is. A frame belongs to the section
/// in which it begins.
///
/// SpacetimeDB finds the rows of a subscription by one value of one column, and reads every row with that value: with
/// the stream's key alone, each subscription would read the whole stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Section(u128);

impl Section {
    /// The section in which a frame begins.
    pub fn of(stream_key: u64, first_seq: Seq) -> Self {
        Self(u128::from(stream_key) << 64 | u128::from(first_seq.get() / SECTION_EVENTS))
    }

    /// The sections of the frames that end after one seq and begin no later than another.
    pub fn between(stream_key: u64, after: Seq, to: Seq) -> impl Iterator<Item = Self> {
        // A frame that holds the next event may begin before it.
        let first = after.get().saturating_sub(FRAME_EVENTS as u64 - 2) / SECTION_EVENTS;
        let last = to.get() / SECTION_EVENTS;
        (first..=last).map(move |number| Self(u128::from(stream_key) << 64 | u128::from(number)))
    }

    /// The key of the stream.
    pub fn stream_key(self) -> u64 {
        (self.0 >> 64) as u64
    }

    /// The section as a column has it.
    pub fn get(self) -> u128 {
        self.0
    }
}

impl From<u128> for Section {
    fn from(column: u128) -> Self {
        Self(column)
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: u64 = u64::MAX - 7;

    fn seq(seq: u64) -> Seq {
        Seq::new(seq).unwrap()
    }

    fn numbers(after: u64, to: u64) -> Vec<u64> {
        Section::between(KEY, seq(after), seq(to))
            .map(|section| {
                assert_eq!(section.stream_key(), KEY);
                assert_eq!(section.to_string(), section.get().to_string());
                section.get() as u64
            })
            .collect()
    }

    #[test]
    fn sections_of_a_range_hold_every_frame_of_it_and_are_as_few_as_that_takes() {
        let (most, of_one) = (FRAME_EVENTS as u64, SECTION_EVENTS);
        let ranges = [
            0,
            1,
            997,
            998,
            999,
            of_one - 1,
            of_one,
            of_one + 998,
            of_one + 999,
            5 * of_one,
        ]
        .into_iter()
        .flat_map(|after| [1, 2, 500, of_one, 2 * of_one].map(|length| (after, after + length)));
        for (after, to) in ranges {
            // The frame with the next event begins at most so far before it.
            let first = (after + 2).saturating_sub(most).max(1);
            let mut needed: Vec<_> = (first..=to)
                .map(|first_seq| Section::of(KEY, seq(first_seq)).get() as u64)
                .collect();
            needed.dedup();
            assert_eq!(numbers(after, to), needed, "after {after} to {to}");
        }
    }

    #[test]
    fn no_two_streams_share_a_section() {
        let ends = [Section::of(0, Seq::MAX), Section::of(1, seq(1))];
        assert!(ends[0] < ends[1]);
        assert_eq!(ends.map(Section::stream_key), [0, 1]);
    }
}
