//! Where a log is, and what a frame of it looks like while it is carried.

use bytes::Bytes;

use crate::hash::ChainHash;
use crate::id::{Seq, StreamId};

/// A place in a stream's log: a seq, and the chain hash of the log up to there. The hash says which log it is, so a
/// position of another log is noticed before anything is built on it.
///
/// A log's *head* is the position of its last event. A client's *checkpoint* is the position of the last event that it
/// applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Seq of the last event up to here; [`Seq::ZERO`] before the first.
    pub seq: Seq,
    /// Chain hash of that event; the stream's first link before the first.
    pub chain: ChainHash,
}

impl Position {
    /// The position before a stream's first event.
    pub fn start(stream_id: &StreamId) -> Self {
        Self {
            seq: Seq::ZERO,
            chain: ChainHash::genesis(stream_id),
        }
    }
}

/// A frame as it stands in a row, a page or a call. Nobody has checked it: the seqs are what its carrier says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameRow {
    /// Seq of its first event.
    pub first_seq: Seq,
    /// Seq of its last event.
    pub last_seq: Seq,
    /// Chain hash before its first event.
    pub base_chain: ChainHash,
    /// The encoded events.
    pub bytes: Bytes,
}

impl FrameRow {
    /// How many events the row claims to hold.
    pub fn claimed_events(&self) -> u64 {
        self.last_seq.since(self.first_seq).saturating_add(1)
    }
}

/// How far a stream has come in the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamProgress {
    /// The stream.
    pub stream_id: StreamId,
    /// Seq of its last committed event.
    pub head_seq: Seq,
    /// Up to where SpacetimeDB is known to hold it durably.
    pub published_seq: Seq,
    /// The seq before the first event that the authority still keeps.
    pub floor_seq: Seq,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_claims_the_events_from_its_first_seq_to_its_last() {
        let seq = |value| Seq::new(value).unwrap();
        let row = FrameRow {
            first_seq: seq(3),
            last_seq: seq(7),
            base_chain: ChainHash::from_bytes([0; 32]),
            bytes: Bytes::new(),
        };
        assert_eq!(row.claimed_events(), 5);
    }

    #[test]
    fn a_stream_starts_before_its_first_event() {
        let stream_id = StreamId::new("runtime.run.1.events").unwrap();
        let start = Position::start(&stream_id);
        assert_eq!((start.seq, start.chain), (Seq::ZERO, ChainHash::genesis(&stream_id)));
    }
}
