//! How far a stream has been applied.

use spacetime_sync_proto::{ChainHash, Seq, StreamId};

/// A position in a stream's log and the hash of the log up to there. The hash says which log: a position of another
/// one, however it came about, is noticed before anything is applied on top of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Position of the last event applied.
    pub seq: Seq,
    /// Its chain hash.
    pub chain_hash: ChainHash,
}

impl Checkpoint {
    /// Before the first event of a stream.
    pub fn start(stream_id: &StreamId) -> Self {
        Self {
            seq: Seq::ZERO,
            chain_hash: ChainHash::genesis(stream_id),
        }
    }
}
