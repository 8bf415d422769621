//! How a held log is made to end where the authority's does.

use spacetime_sync_proto::{ChainHash, Position, Refusal, RefusalCode, Seq};

/// The log that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The position before its first event.
    pub floor: Seq,
    /// Its end.
    pub head: Position,
}

/// The next step. Each leaves a log whose every part follows the chain, so that the steps can be transactions of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It ends there.
    Done,
    /// The events after this position go. What is before them is the authority's, or goes with the next step.
    Cut {
        /// The last event that stays.
        after: Seq,
    },
    /// Nothing is held any more, and the log begins anew after the target.
    Begin,
}

/// Whoever moves a log's end says what he saw of it: another bridge may have moved it since, and its work is not undone.
pub fn is_as_seen(held: Extent, seen: Seq) -> Result<(), Refusal> {
    if held.head.seq == seen {
        return Ok(());
    }
    let message = format!("the log ends at seq {}, it was thought to end at {seen}", held.head.seq);
    Err(Refusal::new(RefusalCode::SeqGap, message).at_head(held.head.seq.get()))
}

/// Decides. `there` is the chain hash that is held at the target, if it is held: the position before the first event has
/// one, too.
pub fn decide(held: Extent, target: Position, there: Option<ChainHash>, most: u64) -> Step {
    if held.head == target {
        return Step::Done;
    }
    let keeps = target.seq >= held.floor && target.seq < held.head.seq && there == Some(target.chain);
    let floor = if keeps { target.seq } else { held.floor };
    if held.head.seq == floor {
        return Step::Begin;
    }
    let reach = Seq::new(held.head.seq.get().saturating_sub(most)).unwrap_or(Seq::ZERO);
    Step::Cut {
        after: floor.max(reach),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(value: u64) -> Seq {
        Seq::new(value).unwrap()
    }

    fn chain(value: u8) -> ChainHash {
        ChainHash::from_bytes([value; 32])
    }

    fn step(floor: u64, head: u64, target: u64, there: Option<u8>) -> Step {
        let held = Extent {
            floor: seq(floor),
            head: Position {
                seq: seq(head),
                chain: chain(1),
            },
        };
        let target = Position {
            seq: seq(target),
            chain: chain(2),
        };
        decide(held, target, there.map(chain), 100)
    }

    #[test]
    fn what_is_held_past_the_target_goes_a_bounded_piece_at_a_time() {
        assert_eq!(step(0, 500, 450, Some(2)), Step::Cut { after: seq(450) });
        assert_eq!(step(0, 500, 10, Some(2)), Step::Cut { after: seq(400) });
        assert_eq!(step(0, 110, 10, Some(2)), Step::Cut { after: seq(10) });
    }

    #[test]
    fn another_log_goes_altogether_and_begins_anew() {
        assert_eq!(step(0, 500, 450, Some(3)), Step::Cut { after: seq(400) });
        assert_eq!(step(0, 50, 40, Some(3)), Step::Cut { after: seq(0) });
        assert_eq!(step(40, 40, 40, Some(3)), Step::Begin);
    }

    #[test]
    fn a_target_outside_of_what_is_held_is_where_the_log_begins() {
        assert_eq!(step(40, 90, 30, None), Step::Cut { after: seq(40) });
        assert_eq!(step(40, 90, 100, None), Step::Cut { after: seq(40) });
        assert_eq!(step(40, 40, 100, None), Step::Begin);
    }

    #[test]
    fn what_another_has_moved_since_is_left_alone() {
        let held = |head| Extent {
            floor: seq(0),
            head: Position {
                seq: seq(head),
                chain: chain(1),
            },
        };
        assert_eq!(is_as_seen(held(7), seq(7)), Ok(()));
        let refused = is_as_seen(held(9), seq(7)).unwrap_err();
        assert_eq!((refused.code, refused.head_seq), (RefusalCode::SeqGap, Some(9)));
    }

    #[test]
    fn nothing_is_done_twice() {
        let end = Position {
            seq: seq(7),
            chain: chain(1),
        };
        let held = Extent {
            floor: seq(2),
            head: end,
        };
        assert_eq!(decide(held, end, None, 100), Step::Done);
    }
}
