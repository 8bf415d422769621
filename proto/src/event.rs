//! One event, as every party of the lane knows it once it has been checked.

use bytes::Bytes;

use crate::hash::{ChainHash, PayloadHash};
use crate::id::{IdempotencyKey, Kind, Seq};

/// One event of a stream. Which stream is said by whatever holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its position.
    pub seq: Seq,
    /// Unique in its stream.
    pub idempotency_key: IdempotencyKey,
    /// What the payload is.
    pub kind: Kind,
    /// The runtime's bytes, never looked into.
    pub payload: Bytes,
    /// sha256 of the payload.
    pub payload_hash: PayloadHash,
    /// Hash of the stream's log up to and including this event.
    pub chain_hash: ChainHash,
    /// Microseconds since 1970-01-01 UTC, by the authority's clock.
    pub committed_at_us: i64,
}

impl Event {
    /// Whether the payload is the one that was hashed.
    pub fn payload_matches(&self) -> bool {
        PayloadHash::of(&self.payload) == self.payload_hash
    }

    /// Whether this event follows a log that ends with `previous`.
    pub fn follows(&self, previous: &ChainHash) -> bool {
        let link = previous.link(
            self.seq,
            self.committed_at_us,
            &self.payload_hash,
            &self.idempotency_key,
            &self.kind,
        );
        link == self.chain_hash
    }

    /// How many bytes of the runtime's own it carries.
    pub fn size(&self) -> usize {
        self.payload.len() + self.idempotency_key.as_str().len() + self.kind.as_str().len()
    }
}
