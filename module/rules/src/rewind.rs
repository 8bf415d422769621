//! Rewinding: makes a log end where the authority's log does.

use spacetime_sync_proto::{ChainHash, FrameRow, Position, Refusal, RefusalCode, Seal, Seq, StreamId};

use crate::log::{HeadRow, LogRows, StoredFrame, chain_at, next_frames, oldest_after};

/// What a step does. The log is valid after each step, so each can be a transaction of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing, because the log ends at the target.
    Done,
    /// Removes the events after this seq.
    Cut {
        /// The last event that stays.
        after: Seq,
    },
    /// Removes the oldest events, because rows are missing at the place of the cut.
    Drop,
    /// Removes all remaining events. The log continues after the target.
    Begin,
}

/// Takes the next step towards a log that ends at `target`, and returns that step and the head that it leaves. `seal` is
/// the target's: a frame that is cut there ends with it. `seen` is the head as the caller last saw it. The caller repeats
/// the call from the head that is left until the log ends at the target. Every step moves the head, except where rows are
/// missing.
pub fn step(
    rows: &mut impl LogRows,
    stream_id: &StreamId,
    target: Position,
    seal: Option<&Seal>,
    seen: Position,
    most_events: u64,
) -> Result<(Step, Position), Refusal> {
    let row = rows.head();
    let held = row.unwrap_or_else(|| HeadRow::start(stream_id));
    is_as_seen(held, seen)?;
    let there = chain_at(&*rows, held, target.seq);
    let (step, after) = match decide(held, target, there, most_events) {
        Step::Cut { after } => match cut(rows, held, after, seal.filter(|_| after == target.seq)) {
            Some(shorter) => {
                let after = shorter.head.seq;
                (Step::Cut { after }, shorter)
            }
            // Rows are missing, so nobody knows the chain hash that the log would end with.
            None => (Step::Drop, drop_oldest(rows, held, most_events)),
        },
        Step::Drop => (Step::Drop, drop_oldest(rows, held, most_events)),
        Step::Begin => {
            rows.delete_frames_ending_in(held.oldest_seq..=held.head.seq);
            (Step::Begin, HeadRow::empty_at(target))
        }
        Step::Done => (Step::Done, held),
    };
    match row {
        None => rows.create(after)?,
        Some(before) if before != after => rows.update_head(after),
        Some(_) => {}
    }
    if after.head == target {
        // A reader that was further along starts again from here: the log that it acknowledged is gone.
        rows.delete_checkpoints_after(target.seq);
    }
    Ok((step, after.head))
}

/// Refuses a step if the log does not end with the event that the caller saw: another bridge may have published since,
/// and that must stay.
fn is_as_seen(held: HeadRow, seen: Position) -> Result<(), Refusal> {
    let head = held.head;
    if head == seen {
        return Ok(());
    }
    let message = if head.seq == seen.seq {
        format!(
            "the log ends at seq {} with another event than the caller saw: look again",
            head.seq
        )
    } else {
        format!(
            "the caller saw the log end at seq {}, but it ends at seq {}: look again",
            seen.seq, head.seq
        )
    };
    Err(Refusal::new(RefusalCode::SeqGap, message).at_head(head.seq.get()))
}

/// Decides on the next step. `there` is the log's chain hash at the target's seq, as [`chain_at`] knows it.
fn decide(held: HeadRow, target: Position, there: Option<ChainHash>, most_events: u64) -> Step {
    let head = held.head.seq;
    if held.head == target {
        return Step::Done;
    }
    let reach = head.minus(most_events);
    if there == Some(target.chain) {
        return Step::Cut {
            after: target.seq.max(reach),
        };
    }
    if reach > held.held_after() {
        return Step::Cut { after: reach };
    }
    Step::Begin
}

/// Removes the events after a seq, whose seal is `seal`, and returns the new head row. A frame there that cannot be cut is
/// removed as a whole. If rows are missing there, it removes nothing and returns `None`.
fn cut(rows: &mut impl LogRows, held: HeadRow, after: Seq, seal: Option<&Seal>) -> Option<HeadRow> {
    let head = end_up_to(&*rows, held, after)?;
    let next = next_frames(&*rows, head.seq.next()).into_iter().next();
    let shortened = match next {
        // The cut goes through this frame.
        Some(stored) if stored.frame.first_seq <= head.seq => Some(shorten(stored, head.seq, seal)?),
        Some(_) | None => None,
    };
    rows.delete_frames_ending_in(head.seq.next()..=held.head.seq);
    if let Some(stored) = shortened {
        rows.insert_frame(stored);
    }
    Some(HeadRow { head, ..held })
}

/// The last position up to `to` where a log can end: `to` itself, or the one before the frame that holds `to`, if that is
/// not the frame that its row states. `None` if rows are missing there.
fn end_up_to(rows: &impl LogRows, held: HeadRow, to: Seq) -> Option<Position> {
    let at = |seq| {
        Some(Position {
            seq,
            chain: chain_at(rows, held, seq)?,
        })
    };
    at(to).or_else(|| {
        let unread = next_frames(rows, to).into_iter().next()?;
        let before = unread.frame.first_seq.previous();
        (before < to).then(|| at(before)).flatten()
    })
}

/// The part of a frame up to a seq, which the frame must hold. `seal` is that seq's.
fn shorten(stored: StoredFrame, to: Seq, seal: Option<&Seal>) -> Option<StoredFrame> {
    let bytes = stored.decode()?.encode_until(to, seal)?;
    let mut shorter = StoredFrame {
        frame: FrameRow {
            last_seq: to,
            bytes,
            ..stored.frame
        },
        last_at_us: stored.last_at_us,
    };
    shorter.last_at_us = shorter.decode()?.last_at_us();
    Some(shorter)
}

/// Removes the oldest frames, at least one, and returns the new head row.
fn drop_oldest(rows: &mut impl LogRows, held: HeadRow, most_events: u64) -> HeadRow {
    let head = held.head.seq;
    let first = next_frames(&*rows, held.oldest_seq).into_iter().next();
    let first_ends = first.map_or(held.oldest_seq, |first| first.frame.last_seq);
    let to = held.held_after().plus(most_events).max(first_ends).min(head);
    rows.delete_frames_ending_in(held.oldest_seq..=to);
    HeadRow {
        oldest_seq: oldest_after(&*rows, to, head),
        ..held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::memory::MemoryLog;
    use crate::log::tests::{events, frame_row, head_of, held, hold, stream};
    use crate::retention::{Effort, Window, sweep};
    use bytes::Bytes;
    use spacetime_sync_proto::Event;
    use spacetime_sync_proto::seal::SEAL_BYTES;

    fn seq(value: u64) -> Seq {
        Seq::new(value).unwrap()
    }

    fn one_step(rows: &mut MemoryLog, target: Position, most_events: u64) -> Step {
        let seen = rows.head.unwrap_or_else(|| HeadRow::start(&stream())).head;
        let (step, left) = step(rows, &stream(), target, None, seen, most_events).unwrap();
        assert_eq!(left, rows.head.unwrap().head);
        step
    }

    /// Rewinds until the log ends at the target, and returns every step.
    fn rewind(rows: &mut MemoryLog, target: Position, most_events: u64) -> Vec<Step> {
        let mut steps = Vec::new();
        while rows.head.is_none_or(|row| row.head != target) {
            steps.push(one_step(rows, target, most_events));
            assert!(steps.len() < 100, "the rewind never ends: {steps:?}");
        }
        steps
    }

    /// The same log, without the events before `oldest`.
    fn held_from(log: &[Event], oldest: usize) -> MemoryLog {
        let mut rows = held(log);
        let window = Window {
            events: (log.len() + 1 - oldest) as u64,
            age_us: i64::MAX,
        };
        sweep(&mut rows, window, 0, &mut Effort::default());
        assert_eq!(rows.head.unwrap().oldest_seq, seq(oldest as u64));
        rows
    }

    #[test]
    fn events_past_the_target_go_a_bounded_piece_at_a_time() {
        let log = events(50, 1);
        for (target, expected) in [
            (45, vec![Step::Cut { after: seq(45) }]),
            (35, vec![Step::Cut { after: seq(40) }, Step::Cut { after: seq(35) }]),
        ] {
            let mut rows = held(&log);
            assert_eq!(rewind(&mut rows, head_of(&log[..target]), 10), expected);
            assert_eq!(rows, held(&log[..target]));
        }
    }

    #[test]
    fn a_frame_that_the_cut_goes_through_is_rewritten() {
        let log = events(9, 1);
        let mut rows = MemoryLog::default();
        hold(&mut rows, &log, 1, 4);
        hold(&mut rows, &log, 5, 9);
        rewind(&mut rows, head_of(&log[..7]), 100);
        let mut expected = MemoryLog::default();
        hold(&mut expected, &log, 1, 4);
        hold(&mut expected, &log, 5, 7);
        assert_eq!(rows, expected);
    }

    #[test]
    fn a_frame_that_is_cut_at_the_target_ends_with_the_targets_seal() {
        let log = events(9, 1);
        let seal = Seal::from_slice(&[7; SEAL_BYTES]).unwrap();
        let seal_after = |most_events| {
            let mut rows = MemoryLog::default();
            hold(&mut rows, &log, 1, 9);
            let target = head_of(&log[..4]);
            step(&mut rows, &stream(), target, Some(&seal), head_of(&log), most_events).unwrap();
            let last = rows.frames.last().unwrap().decode().unwrap();
            (last.last_seq().get(), last.seal().copied())
        };
        assert_eq!(seal_after(9), (4, Some(seal)));
        // The seal is not for the event where this step ends.
        assert_eq!(seal_after(3), (6, None));
    }

    #[test]
    fn a_log_can_be_cut_to_just_before_its_window() {
        let log = events(9, 1);
        let mut rows = held_from(&log, 4);
        assert_eq!(
            rewind(&mut rows, head_of(&log[..3]), 4),
            [Step::Cut { after: seq(5) }, Step::Cut { after: seq(3) }]
        );
        assert_eq!(rows.head, Some(HeadRow::empty_at(head_of(&log[..3]))));
        assert_eq!(rows.frames, []);
    }

    #[test]
    fn a_log_that_is_not_the_authoritys_is_removed_and_begins_at_the_target() {
        let (log, other) = (events(25, 1), events(25, 2));
        let unknown = Position {
            seq: Seq::ZERO,
            chain: head_of(&other).chain,
        };
        for target in [unknown, head_of(&other[..20]), head_of(&other)] {
            let mut rows = held(&log);
            let steps = rewind(&mut rows, target, 10);
            assert_eq!(
                steps,
                [Step::Cut { after: seq(15) }, Step::Cut { after: seq(5) }, Step::Begin]
            );
            assert_eq!(rows.head, Some(HeadRow::empty_at(target)));
            assert_eq!(rows.frames, []);
        }
    }

    #[test]
    fn a_log_begins_at_a_target_outside_its_window() {
        let log = events(30, 1);
        for target in [3, 30] {
            let mut rows = held_from(&log[..20], 11);
            let target = head_of(&log[..target]);
            assert_eq!(
                rewind(&mut rows, target, 6),
                [Step::Cut { after: seq(14) }, Step::Begin]
            );
            assert_eq!(rows.head, Some(HeadRow::empty_at(target)));
            assert_eq!(rows.frames, []);
        }
    }

    #[test]
    fn a_stream_that_does_not_exist_begins_at_the_target() {
        let log = events(5, 1);
        let mut rows = MemoryLog::default();
        assert_eq!(rewind(&mut rows, head_of(&log), 10), [Step::Begin]);
        let mut rows = MemoryLog::default();
        assert_eq!(rewind(&mut rows, head_of(&[]), 10), [Step::Done]);
        assert_eq!(rows.head, Some(HeadRow::start(&stream())));
    }

    #[test]
    fn a_head_that_another_bridge_has_moved_is_left_alone() {
        let (log, other) = (events(9, 1), events(9, 2));
        let before = held(&log);
        // The other bridge may have removed an event, and published the rightful one in its place.
        for seen in [head_of(&log[..7]), head_of(&other)] {
            let mut rows = before.clone();
            let refused = step(&mut rows, &stream(), head_of(&log[..3]), None, seen, 100).unwrap_err();
            assert_eq!((refused.code, refused.head_seq), (RefusalCode::SeqGap, Some(9)));
            assert_eq!(rows, before);
        }
    }

    #[test]
    fn nothing_is_done_twice() {
        let log = events(7, 1);
        let mut rows = held(&log);
        assert_eq!(one_step(&mut rows, head_of(&log), 100), Step::Done);
        assert_eq!(rows, held(&log));
    }

    #[test]
    fn the_last_step_forgets_the_checkpoints_past_the_target() {
        let (log, other) = (events(9, 1), events(9, 2));
        let mut rows = held(&log);
        rows.checkpoints = [4, 6, 9].map(|at| (at, head_of(&log[..at as usize]))).into();
        let target = head_of(&other[..6]);
        assert_eq!(one_step(&mut rows, target, 5), Step::Cut { after: seq(4) });
        assert_eq!(rows.checkpoints.len(), 3);
        assert_eq!(one_step(&mut rows, target, 5), Step::Begin);
        assert_eq!(rows.checkpoints.into_keys().collect::<Vec<_>>(), [4, 6]);
    }

    /// The owner deleted frames, and more were appended. The head row still says that the log holds everything from seq
    /// 1 on.
    #[test]
    fn a_log_with_a_hole_never_ends_with_the_chain_of_another_seq() {
        let log = events(9, 1);
        for (hole, most_events) in [(0..5, 100), (0..5, 3), (3..7, 3), (4..9, 2), (0..9, 4)] {
            for target in 0..=8 {
                let mut rows = held(&log);
                rows.frames.drain(hole.clone());
                let target = head_of(&log[..target]);
                let mut steps = 0;
                while rows.head.unwrap().head != target {
                    let step = one_step(&mut rows, target, most_events);
                    let head = rows.head.unwrap().head;
                    let rightful = head_of(&log[..head.seq.get() as usize]);
                    assert_eq!(head, rightful, "after {step:?} towards {}, {hole:?}", target.seq);
                    steps += 1;
                    assert!(steps < 20, "the rewind never ends");
                }
                let past = rows.frames_after(target.seq);
                assert_eq!(past, [], "towards {}, {hole:?}", target.seq);
            }
        }
    }

    #[test]
    fn a_long_log_with_a_hole_is_dropped_from_its_beginning() {
        let (log, other) = (events(25, 1), events(25, 2));
        let mut rows = held(&log);
        rows.frames.drain(12..18);
        let steps = rewind(&mut rows, head_of(&other), 10);
        // Nobody knows the chain hash at seq 15, the place of the cut.
        assert_eq!(steps, [Step::Drop, Step::Drop, Step::Begin]);
    }

    #[test]
    fn a_log_with_a_hole_keeps_what_precedes_the_hole() {
        let log = events(30, 1);
        let mut rows = held(&log);
        rows.frames.drain(12..18);
        rewind(&mut rows, head_of(&log[..12]), 100);
        assert_eq!(rows, held(&log[..12]));
    }

    /// Replaces what the frame that ends at a seq holds.
    fn garble(rows: &mut MemoryLog, ends: u64, bytes: Bytes) {
        let mut frames = rows.frames.iter_mut();
        let of_row = frames.find(|stored| stored.frame.last_seq == seq(ends)).unwrap();
        of_row.frame.bytes = bytes;
    }

    /// A log of ten frames, three events in each.
    fn threes(log: &[Event]) -> MemoryLog {
        let mut rows = MemoryLog::default();
        (0..10).for_each(|at| hold(&mut rows, log, 3 * at + 1, 3 * at + 3));
        rows
    }

    fn cuts<const N: usize>(afters: [u64; N]) -> [Step; N] {
        afters.map(|after| Step::Cut { after: seq(after) })
    }

    #[test]
    fn a_frame_that_nobody_can_read_goes_as_a_whole_and_the_sound_part_stays() {
        let log = events(30, 1);
        let garbage = Bytes::from_static(&[1, 2, 3]);
        // A frame, but of one event, in a row that states three.
        let fewer = frame_row(&log, 10, 10).bytes;
        for (garbled, target, most_events, expected) in [
            // At the head, over several steps.
            (vec![24, 27, 30], 21, 4, vec![24, 21]),
            (vec![24, 27, 30], 21, 6, vec![24, 21]),
            (vec![24, 27, 30], 20, 4, vec![24, 20]),
            (vec![30], 27, 1, vec![27]),
            // Where a step reaches.
            (vec![27], 10, 4, vec![24, 20, 16, 12, 10]),
            // In the middle of what goes, and of what stays.
            (vec![12, 18], 6, 100, vec![6]),
            (vec![12, 18], 20, 4, vec![26, 22, 20]),
            // A step that ends with such a frame leaves it.
            (vec![27], 10, 3, vec![27, 24, 21, 18, 15, 12, 10]),
            (vec![27], 27, 100, vec![27]),
        ] {
            for bytes in [&garbage, &fewer] {
                let mut rows = threes(&log);
                garbled.iter().for_each(|ends| garble(&mut rows, *ends, bytes.clone()));
                let kept = rows.clone();
                let steps = rewind(&mut rows, head_of(&log[..target]), most_events);
                let afters = expected.iter().map(|after| Step::Cut { after: seq(*after) });
                assert_eq!(steps, afters.collect::<Vec<_>>(), "{garbled:?} to {target}");
                assert_eq!(rows.head.unwrap().oldest_seq, seq(1));
                let whole = target / 3;
                assert_eq!(rows.frames[..whole], kept.frames[..whole]);
                let cut = (target % 3 > 0).then(|| frame_row(&log, 3 * whole + 1, target));
                assert_eq!(
                    rows.frames[whole..]
                        .iter()
                        .map(|stored| &stored.frame)
                        .collect::<Vec<_>>(),
                    cut.iter().collect::<Vec<_>>()
                );
            }
        }
    }

    #[test]
    fn a_log_cannot_end_within_a_frame_that_nobody_can_read() {
        let log = events(30, 1);
        let mut rows = threes(&log);
        garble(&mut rows, 21, Bytes::from_static(&[1, 2, 3]));
        let target = head_of(&log[..20]);
        let steps = rewind(&mut rows, target, 8);
        assert_eq!(steps[..3], cuts([22, 14, 6]));
        assert_eq!(steps[3..], [Step::Begin]);
        assert_eq!(rows.head, Some(HeadRow::empty_at(target)));
        assert_eq!(rows.frames, []);
    }

    /// No frame follows that would tell where this one ended.
    #[test]
    fn a_frame_that_nobody_can_read_before_missing_rows_goes_as_a_whole() {
        let log = events(30, 1);
        let mut rows = threes(&log);
        rows.frames.drain(6..8);
        for bytes in [Bytes::from_static(&[1, 2, 3]), frame_row(&log, 16, 16).bytes] {
            let mut rows = rows.clone();
            garble(&mut rows, 18, bytes);
            // A step that reaches the missing rows themselves cannot cut.
            assert_eq!(one_step(&mut rows.clone(), head_of(&log[..6]), 10), Step::Drop);
            assert_eq!(rewind(&mut rows, head_of(&log[..6]), 12), cuts([15, 6])[..]);
        }
    }

    #[test]
    fn a_frame_that_nobody_can_read_may_be_all_that_a_log_holds() {
        let log = events(9, 1);
        let mut rows = MemoryLog::default();
        hold(&mut rows, &log, 4, 9);
        garble(&mut rows, 9, Bytes::from_static(&[1, 2, 3]));
        let before = head_of(&log[..3]);
        assert_eq!(rewind(&mut rows, before, 2), cuts([3])[..]);
        assert_eq!(rows.head, Some(HeadRow::empty_at(before)));
        assert_eq!(rows.frames, []);
    }

    #[test]
    fn a_step_drops_a_frame_that_is_longer_than_the_step() {
        let log = events(25, 1);
        let mut rows = MemoryLog::default();
        hold(&mut rows, &log, 1, 12);
        hold(&mut rows, &log, 21, 25);
        let steps = rewind(&mut rows, head_of(&events(25, 2)), 7);
        assert_eq!(steps, [Step::Drop, Step::Begin]);
    }
}
