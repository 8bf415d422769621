//! Appending: decides whether a frame may be appended, and which of its events are new.

use bytes::Bytes;
use spacetime_sync_proto::{ChainHash, Frame, FrameError, FrameRow, Position, Refusal, RefusalCode, Seq, StreamId};

use crate::log::{HeadRow, LogRows, StoredFrame, chain_of_held};
use crate::retention::must_look_after_append;

/// A frame that the bridge asks to append.
#[derive(Debug, Clone)]
pub struct Request {
    /// Seq of the frame's first event. Nobody has checked it.
    pub first_seq: u64,
    /// Chain hash before the frame's first event.
    pub base_chain: ChainHash,
    /// The encoded frame.
    pub frame: Bytes,
}

/// What an accepted request changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Append {
    /// The log already holds every event, so nothing changes.
    Absorbed,
    /// These events are new.
    Extend {
        /// Seq of the first new event.
        first_seq: Seq,
        /// The encoded frame of the new events alone.
        frame: Bytes,
        /// The head once they are written.
        head: Position,
        /// When the last new event was committed, in microseconds, by the authority's clock.
        last_at_us: i64,
    },
}

/// The outcome of an accepted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// The log already held every event, and nothing changed.
    Absorbed,
    /// Events were added.
    Extended {
        /// Whether the next sweep must look at the stream.
        must_look: bool,
    },
}

/// Appends the new events of a request to a stream. The first frame creates the stream.
pub fn append(rows: &mut impl LogRows, stream_id: &StreamId, request: Request) -> Result<Appended, Refusal> {
    let row = rows.head();
    let before = row.unwrap_or_else(|| HeadRow::start(stream_id));
    let decided = decide(before.head, request, |seq| chain_of_held(&*rows, before, seq))?;
    let Append::Extend {
        first_seq,
        frame,
        head,
        last_at_us,
    } = decided
    else {
        return Ok(Appended::Absorbed);
    };
    let after = HeadRow { head, ..before };
    match row {
        None => rows.create(after)?,
        Some(_) => rows.update_head(after),
    }
    rows.insert_frame(StoredFrame {
        frame: FrameRow {
            first_seq,
            last_seq: head.seq,
            base_chain: before.head.chain,
            bytes: frame,
        },
        last_at_us,
    });
    let must_look = must_look_after_append(before, head.seq);
    Ok(Appended::Extended { must_look })
}

/// Decides about a request. `held` returns the chain hash of an event, or `None` if the log no longer holds the event.
/// It is called only if the request repeats events.
pub fn decide(
    head: Position,
    request: Request,
    held: impl FnOnce(Seq) -> Option<ChainHash>,
) -> Result<Append, Refusal> {
    let bytes = request.frame.clone();
    let frame = Frame::decode(request.first_seq, request.base_chain, request.frame).map_err(invalid_frame)?;
    let (next, last_at_us) = (head.seq.next(), frame.last_at_us());
    let new_head = Position {
        seq: frame.last_seq(),
        chain: frame.last_chain(),
    };

    if frame.first_seq() > next {
        let message = format!("the frame begins at seq {}, expected {next}", frame.first_seq());
        return Err(Refusal::new(RefusalCode::SeqGap, message).at_head(head.seq.get()));
    }
    if frame.first_seq() == next {
        if frame.base_chain() != head.chain {
            let message = format!(
                "the frame follows chain hash {} at seq {}, but the log ends with {} there",
                frame.base_chain(),
                head.seq,
                head.chain
            );
            return Err(Refusal::new(RefusalCode::ChainMismatch, message).at_head(head.seq.get()));
        }
        return Ok(Append::Extend {
            first_seq: next,
            frame: bytes,
            head: new_head,
            last_at_us,
        });
    }
    // The frame repeats events of the log. If the chain hashes agree at one seq, all earlier events agree too.
    let repeated_to = frame.last_seq().min(head.seq);
    let held = if repeated_to == head.seq {
        Some(head.chain)
    } else {
        held(repeated_to)
    };
    match held {
        None => {
            let message =
                format!("the window no longer holds seq {repeated_to}, so the repeated events cannot be compared");
            Err(Refusal::new(RefusalCode::BelowWindow, message).at_head(head.seq.get()))
        }
        Some(chain) if frame.chain_at(repeated_to) != Some(chain) => {
            let message = format!(
                "up to seq {repeated_to} the frame holds other events than the log, whose chain hash there is {chain}"
            );
            Err(Refusal::new(RefusalCode::EventConflict, message).at_head(head.seq.get()))
        }
        Some(_) => Ok(match frame.encode_after(head.seq) {
            None => Append::Absorbed,
            Some(rest) => Append::Extend {
                first_seq: next,
                frame: rest,
                head: new_head,
                last_at_us,
            },
        }),
    }
}

/// The refusal of bytes that are not a frame.
pub fn invalid_frame(error: FrameError) -> Refusal {
    Refusal::new(RefusalCode::InvalidFrame, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::memory::MemoryLog;
    use crate::log::tests::{events, frame_row, head_of, held, stream};
    use spacetime_sync_proto::Event;

    /// Asks to append events `from..=to` of `log` to a stream that holds `held`, one event per frame.
    fn ask(rows: &mut MemoryLog, log: &[Event], from: usize, to: usize) -> Result<Appended, RefusalCode> {
        let row = frame_row(log, from, to);
        let request = Request {
            first_seq: row.first_seq.get(),
            base_chain: row.base_chain,
            frame: row.bytes,
        };
        append(rows, &stream(), request).map_err(|refusal| refusal.code)
    }

    /// Asks, and expects the stream to hold `log` afterwards, with a new frame that begins at `first`.
    fn extends(mut rows: MemoryLog, log: &[Event], from: usize, first: u64) {
        let before = rows.frames.len();
        let answer = ask(&mut rows, log, from, log.len());
        assert!(matches!(answer, Ok(Appended::Extended { .. })), "{answer:?}");
        assert_eq!(rows.head.unwrap().head, head_of(log));
        assert_eq!(rows.frames.len(), before + 1);
        let new = &rows.frames[before];
        assert_eq!(new.frame.first_seq.get(), first);
        let decoded = new.decode().unwrap();
        assert_eq!(decoded.last_chain(), head_of(log).chain);
        assert_eq!(new.last_at_us, log.last().unwrap().committed_at_us);
    }

    /// Asks, and expects nothing to change.
    fn leaves(log: &[Event], asked: &[Event], from: usize, to: usize, expected: Result<Appended, RefusalCode>) {
        let before = held(log);
        let mut rows = before.clone();
        assert_eq!(ask(&mut rows, asked, from, to), expected, "{from}..={to}");
        assert_eq!(rows, before, "{from}..={to}");
    }

    #[test]
    fn the_next_frame_extends_the_log_and_the_first_creates_the_stream() {
        let log = events(5, 1);
        extends(MemoryLog::default(), &log, 1, 1);
        extends(held(&log[..2]), &log, 3, 3);
    }

    #[test]
    fn a_repeated_frame_is_absorbed_whatever_its_cut() {
        let log = events(5, 1);
        for from in 1..=5 {
            for to in from..=5 {
                leaves(&log, &log, from, to, Ok(Appended::Absorbed));
            }
        }
    }

    #[test]
    fn an_overlapping_frame_adds_only_its_new_events() {
        let log = events(5, 1);
        extends(held(&log[..3]), &log, 2, 4);
        extends(held(&log[..4]), &log, 1, 5);
    }

    #[test]
    fn a_skipped_seq_is_a_gap() {
        let log = events(5, 1);
        leaves(&log[..2], &log, 4, 5, Err(RefusalCode::SeqGap));
    }

    #[test]
    fn another_event_at_a_held_seq_is_a_conflict_and_never_an_overwrite() {
        let (ours, other) = (events(5, 1), events(5, 2));
        leaves(&ours, &other, 1, 5, Err(RefusalCode::EventConflict));
        leaves(&ours, &other, 2, 3, Err(RefusalCode::EventConflict));
        leaves(&ours[..3], &other, 2, 5, Err(RefusalCode::EventConflict));
    }

    #[test]
    fn a_frame_on_another_chain_is_refused() {
        let (ours, other) = (events(5, 1), events(5, 2));
        leaves(&ours[..3], &other, 4, 5, Err(RefusalCode::ChainMismatch));
    }

    #[test]
    fn a_repeat_below_the_window_cannot_be_compared() {
        let log = events(5, 1);
        let mut rows = held(&log);
        rows.delete_frames_ending_in(Seq::ZERO..=log[2].seq);
        rows.update_head(HeadRow {
            oldest_seq: log[3].seq,
            head: head_of(&log),
        });
        for (to, expected) in [
            (2, Err(RefusalCode::BelowWindow)),
            (3, Err(RefusalCode::BelowWindow)),
            (4, Ok(Appended::Absorbed)),
        ] {
            assert_eq!(ask(&mut rows, &log, 1, to), expected, "1..={to}");
        }
    }

    #[test]
    fn a_malformed_frame_changes_nothing() {
        let mut rows = MemoryLog::default();
        let request = Request {
            first_seq: 1,
            base_chain: ChainHash::genesis(&stream()),
            frame: vec![1, 2, 3].into(),
        };
        let answer = append(&mut rows, &stream(), request).map_err(|refusal| refusal.code);
        assert_eq!(answer, Err(RefusalCode::InvalidFrame));
        assert_eq!(rows, MemoryLog::default());
    }

    #[test]
    fn a_store_that_refuses_a_stream_keeps_no_frame_of_it() {
        struct Full(MemoryLog);
        impl LogRows for Full {
            fn head(&self) -> Option<HeadRow> {
                self.0.head()
            }
            fn create(&mut self, _: HeadRow) -> Result<(), Refusal> {
                Err(Refusal::new(RefusalCode::InvalidArgument, "full"))
            }
            fn update_head(&mut self, row: HeadRow) {
                self.0.update_head(row);
            }
            fn frames_ending_in(&self, range: std::ops::RangeInclusive<Seq>) -> Vec<StoredFrame> {
                self.0.frames_ending_in(range)
            }
            fn insert_frame(&mut self, frame: StoredFrame) {
                self.0.insert_frame(frame);
            }
            fn delete_frames_ending_in(&mut self, range: std::ops::RangeInclusive<Seq>) -> u64 {
                self.0.delete_frames_ending_in(range)
            }
            fn delete_checkpoints_after(&mut self, seq: Seq) {
                self.0.delete_checkpoints_after(seq);
            }
        }
        let mut rows = Full(MemoryLog::default());
        let row = frame_row(&events(2, 1), 1, 2);
        let request = Request {
            first_seq: 1,
            base_chain: row.base_chain,
            frame: row.bytes,
        };
        let answer = append(&mut rows, &stream(), request).map_err(|refusal| refusal.code);
        assert_eq!(answer, Err(RefusalCode::InvalidArgument));
        assert_eq!(rows.0, MemoryLog::default());
    }

    #[test]
    fn an_append_to_an_empty_window_or_past_a_mark_calls_for_a_sweep() {
        let log = events(520, 1);
        let mut rows = MemoryLog::default();
        for (from, to, must_look) in [(1, 1, true), (2, 511, false), (512, 513, true), (514, 520, false)] {
            let answer = ask(&mut rows, &log, from, to);
            assert_eq!(answer, Ok(Appended::Extended { must_look }), "{from}..={to}");
        }
    }
}
