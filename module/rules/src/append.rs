//! Appending: decides whether a frame may be appended, and which of its events are new.
//!
//! A frame that continues the log is taken as its caller states it, without a look into it: that costs the same for one
//! event as for a thousand. Who delivers a frame need not be believed, because clients check it against the bridge's seal
//! (docs/adr/0019). A frame that the module itself must cut is decoded, and checked in whole.

use bytes::Bytes;
use spacetime_sync_proto::{
    ChainHash, Frame, FrameError, FrameRow, Position, Refusal, RefusalCode, Seq, StreamId, limit,
};

use crate::log::{HeadRow, LogRows, StoredFrame, chain_of_held};
use crate::retention::must_look_after_append;

/// A frame that the bridge asks to append, and what the bridge states about it. Nobody has checked any of it.
#[derive(Debug, Clone)]
pub struct Request {
    /// Seq of the frame's first event.
    pub first_seq: u64,
    /// Seq of its last event.
    pub last_seq: u64,
    /// Chain hash before its first event.
    pub base_chain: ChainHash,
    /// Chain hash of its last event.
    pub last_chain: ChainHash,
    /// When its last event was committed, in microseconds, by the authority's clock.
    pub last_at_us: i64,
    /// The encoded frame.
    pub frame: Bytes,
}

impl Request {
    /// The request for a frame of which only the beginning is stated. The rest is read from the frame, which is thereby
    /// checked in whole.
    pub fn of_frame(first_seq: u64, base_chain: ChainHash, frame: Bytes) -> Result<Self, Refusal> {
        let read = Frame::decode(first_seq, base_chain, frame.clone()).map_err(invalid_frame)?;
        Ok(Self {
            first_seq,
            last_seq: read.last_seq().get(),
            base_chain,
            last_chain: read.last_chain(),
            last_at_us: read.last_at_us(),
            frame,
        })
    }

    /// The seqs of the first and the last event, if a frame of this length can have them.
    fn extent(&self) -> Result<(Seq, Seq), FrameError> {
        let found = self.frame.len();
        if found > limit::FRAME_BYTES {
            return Err(FrameError::TooLarge { found });
        }
        let seq = |value| Seq::new(value).filter(|seq| *seq > Seq::ZERO && *seq < Seq::MAX);
        let first = seq(self.first_seq).ok_or(FrameError::FirstSeq { found: self.first_seq })?;
        let last = seq(self.last_seq).ok_or(FrameError::LastSeq { found: self.last_seq })?;
        let events = usize::try_from(last.next().since(first)).unwrap_or(usize::MAX);
        if events == 0 || events > limit::FRAME_EVENTS {
            return Err(FrameError::EventCount { found: events });
        }
        // Pages and sweeps count bytes. Without a least length they would have no bound on rows and events.
        let least = Frame::least_bytes(events);
        if found < least {
            return Err(FrameError::TooSmall { least, found });
        }
        Ok((first, last))
    }
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
    let (first_seq, seq) = request.extent().map_err(invalid_frame)?;
    let chain = request.last_chain;
    let (next, last) = (head.seq.next(), Position { seq, chain });

    if first_seq > next {
        let message = format!("the frame begins at seq {first_seq}, expected {next}");
        return Err(Refusal::new(RefusalCode::SeqGap, message).at_head(head.seq.get()));
    }
    if first_seq == next {
        if request.base_chain != head.chain {
            let message = format!(
                "the frame follows chain hash {} at seq {}, but the log ends with {} there",
                request.base_chain, head.seq, head.chain
            );
            return Err(Refusal::new(RefusalCode::ChainMismatch, message).at_head(head.seq.get()));
        }
        return Ok(Append::Extend {
            first_seq: next,
            frame: request.frame,
            head: last,
            last_at_us: request.last_at_us,
        });
    }
    if last.seq > head.seq {
        return extend_by_rest(head, last, request);
    }
    // The frame repeats events of the log. If the chain hashes agree at one seq, all earlier events agree too.
    let held = if last.seq == head.seq {
        Some(head.chain)
    } else {
        held(last.seq)
    };
    match held {
        None => {
            let message = format!(
                "no frame of the log tells the chain hash at seq {}, so the repeated events cannot be compared",
                last.seq
            );
            Err(Refusal::new(RefusalCode::BelowWindow, message).at_head(head.seq.get()))
        }
        Some(chain) if last.chain != chain => {
            let at = Position { chain, ..last };
            Err(conflict(at, head))
        }
        Some(_) => Ok(Append::Absorbed),
    }
}

/// Decides about a frame that repeats the head's event and goes on to `last`. It must be cut, so it is decoded.
fn extend_by_rest(head: Position, last: Position, request: Request) -> Result<Append, Refusal> {
    let frame = Frame::decode(request.first_seq, request.base_chain, request.frame).map_err(invalid_frame)?;
    let found = Position {
        seq: frame.last_seq(),
        chain: frame.last_chain(),
    };
    if found != last {
        let message = format!(
            "the frame ends at seq {} with chain hash {}, but the call states seq {} with {}",
            found.seq, found.chain, last.seq, last.chain
        );
        return Err(Refusal::new(RefusalCode::InvalidFrame, message));
    }
    if frame.chain_at(head.seq) != Some(head.chain) {
        return Err(conflict(head, head));
    }
    let last_at_us = frame.last_at_us();
    Ok(match frame.encode_after(head.seq) {
        None => Append::Absorbed,
        Some(rest) => Append::Extend {
            first_seq: head.seq.next(),
            frame: rest,
            head: last,
            last_at_us,
        },
    })
}

/// The refusal of a frame that has another chain hash than the log has at this position.
fn conflict(at: Position, head: Position) -> Refusal {
    let message = format!(
        "up to seq {} the frame holds other events than the log, whose chain hash there is {}",
        at.seq, at.chain
    );
    Refusal::new(RefusalCode::EventConflict, message).at_head(head.seq.get())
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
        append(rows, &stream(), request(log, from, to)).map_err(|refusal| refusal.code)
    }

    /// The request for events `from..=to` of `log`.
    fn request(log: &[Event], from: usize, to: usize) -> Request {
        let row = frame_row(log, from, to);
        Request::of_frame(row.first_seq.get(), row.base_chain, row.bytes).unwrap()
    }

    /// Bytes that are no frame, as short as a frame can be.
    fn garbage() -> Bytes {
        Bytes::from_static(&[0xff; limit::FRAME_PADDED_BYTES])
    }

    /// Asks a stream that holds `log`, and expects nothing to change.
    fn is_left_by(log: &[Event], request: Request, expected: Result<Appended, RefusalCode>) {
        let before = held(log);
        let mut rows = before.clone();
        let answer = append(&mut rows, &stream(), request.clone()).map_err(|refusal| refusal.code);
        assert_eq!(answer, expected, "{request:?}");
        assert_eq!(rows, before, "{request:?}");
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
        is_left_by(log, request(asked, from, to), expected);
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
    fn a_frame_that_continues_the_log_is_taken_as_it_is_stated() {
        let (log, other) = (events(5, 1), events(5, 2));
        let stated = Request {
            last_chain: head_of(&other).chain,
            last_at_us: 77,
            frame: garbage(),
            ..request(&log, 3, 5)
        };
        let mut rows = held(&log[..2]);
        let answer = append(&mut rows, &stream(), stated.clone());
        assert_eq!(
            answer.map_err(|refusal| refusal.code),
            Ok(Appended::Extended { must_look: false })
        );
        assert_eq!(rows.head.unwrap().head, head_of(&other));
        let new = rows.frames.last().unwrap();
        assert_eq!((new.frame.first_seq, new.frame.last_seq), (log[2].seq, log[4].seq));
        assert_eq!(new.frame.base_chain, head_of(&log[..2]).chain);
        assert_eq!((&new.frame.bytes, new.last_at_us), (&stated.frame, 77));
    }

    #[test]
    fn what_no_frame_can_have_is_refused_without_a_look_into_it() {
        let log = events(3, 1);
        let next = request(&log, 3, 3);
        let between = |first_seq, last_seq| Request {
            first_seq,
            last_seq,
            ..next.clone()
        };
        let most = limit::FRAME_EVENTS as u64;
        let sized = |events, bytes: usize| Request {
            frame: vec![0; bytes].into(),
            ..between(3, 2 + events)
        };
        for wrong in [
            between(0, 0),
            between(0, 3),
            between(3, 2),
            between(3, 0),
            between(3, 3 + most),
            between(3, u64::MAX),
            between(Seq::MAX.get(), Seq::MAX.get()),
            between(u64::MAX, u64::MAX),
            sized(1, limit::FRAME_BYTES + 1),
            sized(1, 0),
            sized(1, limit::FRAME_PADDED_BYTES - 1),
            sized(most, 0),
            sized(most, limit::FRAME_PADDED_BYTES),
            sized(most, Frame::least_bytes(limit::FRAME_EVENTS) - 1),
        ] {
            is_left_by(&log[..2], wrong, Err(RefusalCode::InvalidFrame));
        }
        for possible in [
            sized(1, limit::FRAME_BYTES),
            sized(most, limit::FRAME_BYTES),
            sized(1, limit::FRAME_PADDED_BYTES),
            sized(most, Frame::least_bytes(limit::FRAME_EVENTS)),
        ] {
            let answer = append(&mut held(&log[..2]), &stream(), possible).map_err(|refusal| refusal.code);
            assert!(matches!(answer, Ok(Appended::Extended { .. })), "{answer:?}");
        }
    }

    #[test]
    fn a_refusal_names_what_cannot_be() {
        let log = events(3, 1);
        let next = request(&log, 3, 3);
        let said = |first_seq, last_seq, frame: Bytes| {
            let stated = Request {
                first_seq,
                last_seq,
                frame,
                ..next.clone()
            };
            append(&mut held(&log[..2]), &stream(), stated).unwrap_err().message
        };
        for (said, expected) in [
            (said(0, 3, garbage()), "cannot begin at seq 0:"),
            (said(3, 0, garbage()), "cannot end at seq 0:"),
            (said(3, u64::MAX, garbage()), "cannot end at seq 18446744073709551615:"),
            (said(3, 2, garbage()), "holds 0 events,"),
            (said(3, 102, garbage()), "has 993 bytes, at least 4500 are needed"),
        ] {
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn a_repeat_within_a_frame_that_nobody_can_read_cannot_be_compared() {
        let log = events(6, 1);
        let mut rows = held(&log[..2]);
        for (from, to) in [(3, 5), (6, 6)] {
            let stated = Request {
                frame: garbage(),
                ..request(&log, from, to)
            };
            append(&mut rows, &stream(), stated).unwrap();
        }
        for (from, to, expected) in [
            (1, 2, Ok(Appended::Absorbed)),
            (3, 3, Err(RefusalCode::BelowWindow)),
            (1, 4, Err(RefusalCode::BelowWindow)),
            // The next frame tells with what this one was said to end.
            (3, 5, Ok(Appended::Absorbed)),
            (4, 6, Ok(Appended::Absorbed)),
        ] {
            assert_eq!(ask(&mut rows, &log, from, to), expected, "{from}..={to}");
        }
        let other = events(6, 2);
        assert_eq!(ask(&mut rows, &other, 3, 5), Err(RefusalCode::EventConflict));
    }

    #[test]
    fn a_frame_that_must_be_cut_is_checked_in_whole() {
        let log = events(5, 1);
        let overlap = request(&log, 2, 5);
        for wrong in [
            Request {
                frame: garbage(),
                ..overlap.clone()
            },
            Request {
                last_seq: 4,
                ..overlap.clone()
            },
            Request {
                last_seq: 6,
                ..overlap.clone()
            },
            Request {
                last_chain: head_of(&log[..4]).chain,
                ..overlap.clone()
            },
        ] {
            is_left_by(&log[..3], wrong, Err(RefusalCode::InvalidFrame));
        }
    }

    #[test]
    fn a_repeat_is_known_by_the_end_that_is_stated() {
        let log = events(5, 1);
        for (from, to) in [(2, 4), (2, 5)] {
            let repeat = Request {
                frame: garbage(),
                ..request(&log, from, to)
            };
            is_left_by(&log, repeat.clone(), Ok(Appended::Absorbed));
            let other = Request {
                last_chain: head_of(&log[..1]).chain,
                ..repeat
            };
            is_left_by(&log, other, Err(RefusalCode::EventConflict));
        }
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
        let answer = append(&mut rows, &stream(), request(&events(2, 1), 1, 2)).map_err(|refusal| refusal.code);
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
