//! One event, in the form in which every party of the lane holds it after checking it.

use bytes::Bytes;

use crate::hash::{ChainHash, PayloadHash};
use crate::id::{IdempotencyKey, Kind, Seq};

/// One event of a stream. Its holder knows which stream it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its number in the stream.
    pub seq: Seq,
    /// Unique in its stream.
    pub idempotency_key: IdempotencyKey,
    /// What the payload is.
    pub kind: Kind,
    /// The runtime's bytes. The lane never looks into them.
    pub payload: Bytes,
    /// sha256 of the payload.
    pub payload_hash: PayloadHash,
    /// Hash of the stream's log up to and including this event.
    pub chain_hash: ChainHash,
    /// Microseconds since 1970-01-01 UTC, by the authority's clock.
    pub committed_at_us: i64,
}

impl Event {
    /// Whether the payload has the hash that the event states.
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

    /// The size of what the runtime supplied, in bytes.
    pub fn size(&self) -> usize {
        self.payload.len() + self.idempotency_key.as_str().len() + self.kind.as_str().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::StreamId;

    fn genesis() -> ChainHash {
        ChainHash::genesis(&StreamId::new("runtime.run.1.events").unwrap())
    }

    fn first() -> Event {
        let payload = Bytes::from_static(b"payload");
        let payload_hash = PayloadHash::of(&payload);
        let (idempotency_key, kind) = (IdempotencyKey::new("key").unwrap(), Kind::new("kind.a").unwrap());
        let seq = Seq::ZERO.next();
        Event {
            seq,
            chain_hash: genesis().link(seq, 5, &payload_hash, &idempotency_key, &kind),
            idempotency_key,
            kind,
            payload,
            payload_hash,
            committed_at_us: 5,
        }
    }

    #[test]
    fn a_payload_that_does_not_match_its_hash_is_noticed() {
        let mut event = first();
        assert!(event.payload_matches());
        event.payload = Bytes::from_static(b"Payload");
        assert!(!event.payload_matches());
    }

    #[test]
    fn an_event_follows_only_the_log_that_its_chain_hash_continues() {
        let event = first();
        assert!(event.follows(&genesis()));
        assert!(!event.follows(&event.chain_hash));
    }

    #[test]
    fn the_size_of_an_event_counts_payload_key_and_kind() {
        assert_eq!(first().size(), "payload".len() + "key".len() + "kind.a".len());
    }
}
