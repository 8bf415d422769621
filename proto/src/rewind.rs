//! A rewind under way. It makes SpacetimeDB's log end earlier, step by step, because one transaction may only remove so much. Each
//! step answers with the head that it left, and the next one begins only there: what somebody else appended in between stays.

use crate::limit::REWIND_STEPS_IN_PLACE;
use crate::position::Position;

/// Where a rewind has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewind {
    to: Position,
    seen: Position,
    in_place: u32,
}

/// What the answer to a step means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The log ends where it is to end.
    Done,
    /// Another step is needed.
    Next,
    /// No step leaves such a head, or steps remove nothing.
    Unexpected,
}

impl Rewind {
    /// A rewind of a log whose head was at `seen`.
    pub fn new(seen: Position, to: Position) -> Self {
        let in_place = 0;
        Self { to, seen, in_place }
    }

    /// Where the log is to end.
    pub fn to(&self) -> Position {
        self.to
    }

    /// The head that the next step must find.
    pub fn seen(&self) -> Position {
        self.seen
    }

    /// A step has answered with the head that it left.
    pub fn left(&mut self, head: Position) -> Step {
        if head == self.to {
            Step::Done
        } else if head.seq < self.seen.seq {
            (self.seen, self.in_place) = (head, 0);
            Step::Next
        } else if head == self.seen && self.in_place < REWIND_STEPS_IN_PLACE {
            // The step dropped the oldest events of a broken log.
            self.in_place += 1;
            Step::Next
        } else {
            Step::Unexpected
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::ChainHash;
    use crate::id::Seq;

    fn at(seq: u64, chain: u8) -> Position {
        Position {
            seq: Seq::new(seq).unwrap(),
            chain: ChainHash::from_bytes([chain; 32]),
        }
    }

    #[test]
    fn each_step_begins_at_the_head_that_the_one_before_left() {
        let mut rewind = Rewind::new(at(9, 9), at(2, 2));
        assert_eq!(rewind.left(at(5, 5)), Step::Next);
        assert_eq!(rewind.seen(), at(5, 5));
        assert_eq!(rewind.left(at(2, 2)), Step::Done);
        assert_eq!(rewind.to(), at(2, 2));
    }

    #[test]
    fn a_head_that_no_step_leaves_is_unexpected() {
        for head in [at(9, 8), at(10, 10)] {
            let mut rewind = Rewind::new(at(9, 9), at(2, 2));
            assert_eq!(rewind.left(head), Step::Unexpected, "{head:?}");
        }
    }

    #[test]
    fn steps_that_leave_the_head_in_place_end_some_time_and_start_anew_when_it_moves() {
        let mut rewind = Rewind::new(at(9, 9), at(2, 2));
        let in_place =
            |rewind: &mut Rewind| (0..REWIND_STEPS_IN_PLACE).all(|_| rewind.left(rewind.seen()) == Step::Next);
        assert!(in_place(&mut rewind));
        assert_eq!(rewind.left(at(8, 8)), Step::Next);
        assert!(in_place(&mut rewind));
        assert_eq!(rewind.left(at(8, 8)), Step::Unexpected);
    }
}
