//! A place in a log, and a frame of it as rows, pages and calls carry it.

use bytes::Bytes;

use crate::hash::ChainHash;
use crate::id::{Seq, StreamId};

/// A place in a stream's log: a seq, and the chain hash of the log up to there. The hash identifies the log, so nobody
/// can build on a position of another log unnoticed.
///
/// A log's *head* is the position of its last event. A client's *checkpoint* is the position of the last event that it
/// applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Seq of the last event up to here; [`Seq::ZERO`] before the first event.
    pub seq: Seq,
    /// Chain hash of that event; chain(0) before the first event.
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

/// A frame as it stands in a row, a page or a call. It is unchecked: the seqs are what its carrier states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameRow {
    /// Seq of the first event.
    pub first_seq: Seq,
    /// Seq of the last event.
    pub last_seq: Seq,
    /// Chain hash before the first event.
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

/// The seqs that the authority keeps for a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamProgress {
    /// The stream.
    pub stream_id: StreamId,
    /// Seq of the last committed event.
    pub head_seq: Seq,
    /// Seq up to which SpacetimeDB is known to hold the stream durably.
    pub published_seq: Seq,
    /// Seq up to which the authority has purged events; 0 if it still keeps all.
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
