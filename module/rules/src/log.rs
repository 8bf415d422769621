//! The rows of one stream's log, and what every operation on them needs.
//!
//! [`append`](crate::append), [`page`](crate::page), [`retention`](crate::retention) and [`rewind`](crate::rewind)
//! decide about a log and carry it out over [`LogRows`]. The module implements that trait over its tables. Tests and
//! the simulation implement it over memory ([`memory::MemoryLog`]), so that they run the same code.

pub mod memory;

use std::ops::RangeInclusive;

use spacetime_sync_proto::{ChainHash, Frame, FrameRow, Position, Refusal, Seq, StreamId, limit};

/// What the store keeps of a stream's log beside its frames: a row of `sync_head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadRow {
    /// The position of the last event.
    pub head: Position,
    /// Seq of the first event that the log still holds; one past the head if it holds none.
    pub oldest_seq: Seq,
}

impl HeadRow {
    /// The row of a stream that has no event yet.
    pub fn start(stream_id: &StreamId) -> Self {
        Self::empty_at(Position::start(stream_id))
    }

    /// The row of a log that continues after `head` and holds no earlier event.
    pub fn empty_at(head: Position) -> Self {
        Self {
            head,
            oldest_seq: head.seq.next(),
        }
    }

    /// Whether the log holds no event.
    pub fn is_empty(self) -> bool {
        self.oldest_seq > self.head.seq
    }

    /// The seq before the first event that the log holds. Reading can begin after it.
    pub fn held_after(self) -> Seq {
        self.oldest_seq.previous()
    }
}

/// A frame as the store keeps it: a row of `sync_event`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFrame {
    /// The frame.
    pub frame: FrameRow,
    /// When its last event was committed, in microseconds since 1970-01-01 UTC, by the authority's clock.
    pub last_at_us: i64,
}

impl StoredFrame {
    /// Decodes the frame. `None` if the bytes are no frame: appending does not look into them.
    pub(crate) fn decode(&self) -> Option<Frame> {
        let FrameRow {
            first_seq,
            base_chain,
            ref bytes,
            ..
        } = self.frame;
        Frame::decode(first_seq.get(), base_chain, bytes.clone()).ok()
    }
}

/// The rows of one stream's log, wherever they are stored. Each operation runs in one transaction: if it fails, the
/// store undoes its writes.
pub trait LogRows {
    /// The stream's head row. `None` if the stream does not exist.
    fn head(&self) -> Option<HeadRow>;

    /// Creates the stream with its head row. The store may refuse another stream.
    fn create(&mut self, row: HeadRow) -> Result<(), Refusal>;

    /// Replaces the head row of a stream that exists with another one.
    fn update_head(&mut self, row: HeadRow);

    /// The frames whose last event is in this range, in their order. A store may have to gather the whole range before
    /// it returns the first row, so callers keep the range short.
    fn frames_ending_in(&self, range: RangeInclusive<Seq>) -> Vec<StoredFrame>;

    /// Adds a frame.
    fn insert_frame(&mut self, frame: StoredFrame);

    /// Deletes the frames whose last event is in this range, and returns how many there were.
    fn delete_frames_ending_in(&mut self, range: RangeInclusive<Seq>) -> u64;

    /// Deletes the checkpoints that readers acknowledged past a seq.
    fn delete_checkpoints_after(&mut self, seq: Seq);
}

/// How many seqs one range asks for: 32 events of the largest size make 8 MiB.
const LOOK_EVENTS: u64 = 32;

/// The next few frames that hold events from `from` on, in order. Empty only if no frame holds `from`: no frame is
/// longer than [`limit::FRAME_EVENTS`], so one that ends further on begins after `from`.
pub fn next_frames(rows: &impl LogRows, from: Seq) -> Vec<StoredFrame> {
    for skipped in (0..limit::FRAME_EVENTS as u64).step_by(LOOK_EVENTS as usize) {
        let start = from.plus(skipped);
        let frames = rows.frames_ending_in(start..=start.plus(LOOK_EVENTS - 1));
        if !frames.is_empty() {
            return frames;
        }
    }
    Vec::new()
}

/// The chain hash at a seq, from just before the first event that the log holds up to the head. `None` if the log does
/// not hold the frame that would tell it, or that frame cannot be decoded.
pub fn chain_at(rows: &impl LogRows, held: HeadRow, seq: Seq) -> Option<ChainHash> {
    if seq < held.held_after() || seq > held.head.seq {
        return None;
    }
    if seq == held.head.seq {
        return Some(held.head.chain);
    }
    let next = next_frames(rows, seq).into_iter().next()?;
    // If the next frame begins later, there is a hole in the log, and the frame's base is not the chain hash at `seq`.
    if next.frame.first_seq == seq.next() {
        return Some(next.frame.base_chain);
    }
    let within = next.decode().and_then(|frame| frame.chain_at(seq));
    if within.is_some() || next.frame.last_seq > seq {
        return within;
    }
    // The frame that follows was appended to where this one is said to end.
    let after = next_frames(rows, seq.next()).into_iter().next()?;
    (after.frame.first_seq == seq.next()).then_some(after.frame.base_chain)
}

/// The chain hash of an event. `None` if the log does not hold the event.
pub fn chain_of_held(rows: &impl LogRows, held: HeadRow, seq: Seq) -> Option<ChainHash> {
    (seq >= held.oldest_seq).then(|| chain_at(rows, held, seq)).flatten()
}

/// Seq of the first event that the log holds once the frames that end up to `to` are deleted.
pub(crate) fn oldest_after(rows: &impl LogRows, to: Seq, head: Seq) -> Seq {
    if to >= head {
        return head.next();
    }
    let next = next_frames(rows, to.next()).into_iter().next();
    next.map_or(to.next(), |next| next.frame.first_seq)
}

#[cfg(test)]
mod property;

#[cfg(test)]
pub(crate) mod tests {
    use bytes::Bytes;
    use spacetime_sync_proto::{Event, IdempotencyKey, Kind, PayloadHash};

    use super::memory::MemoryLog;
    use super::*;

    pub(crate) fn stream() -> StreamId {
        StreamId::new("s").unwrap()
    }

    /// A log of `count` events, one committed every microsecond. `flavour` changes every payload.
    pub(crate) fn events(count: usize, flavour: u8) -> Vec<Event> {
        let mut log = Vec::new();
        (0..count).for_each(|_| push(&mut log, flavour));
        log
    }

    /// Adds an event to a log.
    pub(crate) fn push(log: &mut Vec<Event>, flavour: u8) {
        let before = head_of(log);
        let seq = before.seq.next();
        let payload = Bytes::from(vec![flavour; 10]);
        let payload_hash = PayloadHash::of(&payload);
        let idempotency_key = IdempotencyKey::new(&format!("k{seq}")).unwrap();
        let kind = Kind::new("t").unwrap();
        let committed_at_us = seq.get() as i64;
        let chain = before.chain;
        log.push(Event {
            chain_hash: chain.link(seq, committed_at_us, &payload_hash, &idempotency_key, &kind),
            seq,
            idempotency_key,
            kind,
            payload,
            payload_hash,
            committed_at_us,
        });
    }

    pub(crate) fn head_of(log: &[Event]) -> Position {
        log.last().map_or(Position::start(&stream()), |last| Position {
            seq: last.seq,
            chain: last.chain_hash,
        })
    }

    /// The events `from..=to` of a log as one frame.
    pub(crate) fn frame_row(log: &[Event], from: usize, to: usize) -> FrameRow {
        FrameRow {
            first_seq: log[from - 1].seq,
            last_seq: log[to - 1].seq,
            base_chain: head_of(&log[..from - 1]).chain,
            bytes: Frame::encode(&log[from - 1..to], None),
        }
    }

    /// Stores the events `from..=to` of a log as one more frame.
    pub(crate) fn hold(rows: &mut MemoryLog, log: &[Event], from: usize, to: usize) {
        let oldest_seq = rows.head.map_or(log[from - 1].seq, |row| row.oldest_seq);
        rows.insert_frame(StoredFrame {
            frame: frame_row(log, from, to),
            last_at_us: log[to - 1].committed_at_us,
        });
        rows.head = Some(HeadRow {
            head: head_of(&log[..to]),
            oldest_seq,
        });
    }

    /// A stream that holds a whole log, one event per frame.
    pub(crate) fn held(log: &[Event]) -> MemoryLog {
        let mut rows = MemoryLog::default();
        (1..=log.len()).for_each(|at| hold(&mut rows, log, at, at));
        rows
    }

    fn seq(value: u64) -> Seq {
        Seq::new(value).unwrap()
    }

    #[test]
    fn the_chain_hash_is_known_only_from_just_before_the_window_up_to_the_head() {
        let log = events(9, 1);
        let mut rows = MemoryLog::default();
        hold(&mut rows, &log, 4, 6);
        hold(&mut rows, &log, 7, 9);
        let row = rows.head.unwrap();
        for at in 0..=11 {
            let expected = (3..=9).contains(&at).then(|| head_of(&log[..at]).chain);
            assert_eq!(chain_at(&rows, row, seq(at as u64)), expected, "{at}");
            let of_held = expected.filter(|_| at >= 4);
            assert_eq!(chain_of_held(&rows, row, seq(at as u64)), of_held, "{at}");
        }
    }

    #[test]
    fn the_chain_hash_is_unknown_where_frames_are_that_the_head_row_does_not_tell_of() {
        let log = events(9, 1);
        let rows = held(&log);
        let row = HeadRow {
            head: head_of(&log[..6]),
            oldest_seq: seq(4),
        };
        for at in 0..=9 {
            let expected = (3..=6).contains(&at).then(|| head_of(&log[..at]).chain);
            assert_eq!(chain_at(&rows, row, seq(at as u64)), expected, "{at}");
        }
    }

    #[test]
    fn the_chain_hash_in_a_hole_is_unknown() {
        let log = events(9, 1);
        let mut rows = MemoryLog::default();
        hold(&mut rows, &log, 1, 3);
        hold(&mut rows, &log, 7, 9);
        let row = rows.head.unwrap();
        for (at, is_known) in [
            (0, true),
            (2, true),
            (3, true),
            (4, false),
            (5, false),
            (6, true),
            (8, true),
        ] {
            let expected = is_known.then(|| head_of(&log[..at]).chain);
            assert_eq!(chain_at(&rows, row, seq(at as u64)), expected, "{at}");
        }
    }

    #[test]
    fn the_chain_hash_within_a_frame_that_nobody_can_read_is_unknown() {
        let log = events(9, 1);
        let mut rows = MemoryLog::default();
        hold(&mut rows, &log, 1, 3);
        hold(&mut rows, &log, 4, 6);
        hold(&mut rows, &log, 7, 9);
        let unknown = |rows: &MemoryLog| {
            let known = |at: &u64| chain_at(rows, rows.head.unwrap(), seq(*at));
            (0..=9).for_each(|at| {
                let rightful = head_of(&log[..at as usize]).chain;
                assert!(known(&at).is_none_or(|chain| chain == rightful), "{at}");
            });
            (0..=9).filter(|at| known(at).is_none()).collect::<Vec<_>>()
        };
        assert_eq!(unknown(&rows), [0; 0]);
        rows.frames[1].frame.bytes = vec![1, 2, 3].into();
        assert_eq!(unknown(&rows), [4, 5], "the next frame tells what follows it");
        // It is a frame, but holds fewer events than the row states.
        rows.frames[1].frame.bytes = frame_row(&log, 4, 4).bytes;
        assert_eq!(unknown(&rows), [5]);
        rows.frames.remove(2);
        assert_eq!(unknown(&rows), [5, 6, 7, 8]);
    }

    #[test]
    fn the_next_frames_are_found_however_long_the_first_is() {
        let log = events(limit::FRAME_EVENTS + 1, 1);
        let mut rows = MemoryLog::default();
        hold(&mut rows, &log, 1, limit::FRAME_EVENTS);
        hold(&mut rows, &log, limit::FRAME_EVENTS + 1, limit::FRAME_EVENTS + 1);
        for (from, first) in [(1, 1), (500, 1), (1_000, 1), (1_001, 1_001)] {
            let found = next_frames(&rows, seq(from));
            assert_eq!(found[0].frame.first_seq, seq(first), "{from}");
        }
        assert_eq!(next_frames(&rows, seq(1_002)), []);
    }

    #[test]
    fn one_look_finds_few_frames_of_a_long_log() {
        let rows = held(&events(100, 1));
        for (from, to) in [(1, 32), (50, 81), (69, 100), (90, 100)] {
            assert_eq!(
                next_frames(&rows, seq(from)),
                rows.frames[from as usize - 1..to],
                "{from}"
            );
        }
    }
}
