//! A stream's log in memory. Tests, the simulation and fake servers use it where the module has tables.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use spacetime_sync_proto::{Position, Refusal, Seq};

use super::{HeadRow, LogRows, StoredFrame};

/// The rows of one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryLog {
    /// The head row. `None` if the stream does not exist.
    pub head: Option<HeadRow>,
    /// The frames, in the order of their last events.
    pub frames: Vec<StoredFrame>,
    /// What each reader has acknowledged.
    pub checkpoints: BTreeMap<u64, Position>,
}

impl MemoryLog {
    /// The frames that hold events after a seq, in order. The first may begin before it.
    pub fn frames_after(&self, seq: Seq) -> &[StoredFrame] {
        &self.frames[self.ending_before(seq.next())..]
    }

    /// How many frames end before a seq.
    fn ending_before(&self, seq: Seq) -> usize {
        self.frames.partition_point(|stored| stored.frame.last_seq < seq)
    }

    fn indices(&self, range: &RangeInclusive<Seq>) -> std::ops::Range<usize> {
        let start = self.ending_before(*range.start());
        start..self.ending_before(range.end().next()).max(start)
    }
}

impl LogRows for MemoryLog {
    fn head(&self) -> Option<HeadRow> {
        self.head
    }

    fn create(&mut self, row: HeadRow) -> Result<(), Refusal> {
        debug_assert!(self.head.is_none(), "the stream exists");
        self.head = Some(row);
        Ok(())
    }

    fn update_head(&mut self, row: HeadRow) {
        debug_assert!(self.head.is_some(), "the stream does not exist");
        debug_assert_ne!(self.head, Some(row), "the row says so already");
        self.head = Some(row);
    }

    fn frames_ending_in(&self, range: RangeInclusive<Seq>) -> Vec<StoredFrame> {
        self.frames[self.indices(&range)].to_vec()
    }

    fn insert_frame(&mut self, frame: StoredFrame) {
        let at = self.ending_before(frame.frame.last_seq);
        self.frames.insert(at, frame);
    }

    fn delete_frames_ending_in(&mut self, range: RangeInclusive<Seq>) -> u64 {
        self.frames.drain(self.indices(&range)).count() as u64
    }

    fn delete_checkpoints_after(&mut self, seq: Seq) {
        self.checkpoints.retain(|_, checkpoint| checkpoint.seq <= seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::{events, hold};

    #[test]
    fn the_frames_after_a_seq_begin_with_the_one_that_holds_the_next_event() {
        let log = events(9, 1);
        let mut rows = MemoryLog::default();
        hold(&mut rows, &log, 4, 6);
        hold(&mut rows, &log, 7, 9);
        for (after, skipped) in [(0, 0), (3, 0), (5, 0), (6, 1), (8, 1), (9, 2), (20, 2)] {
            let found = rows.frames_after(Seq::new(after).unwrap());
            assert_eq!(found, &rows.frames[skipped..], "{after}");
        }
    }
}
