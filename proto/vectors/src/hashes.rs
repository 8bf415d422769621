//! Payload hashes and chains.

use serde::Deserialize;
use spacetime_sync_proto::{ChainHash, Event, IdempotencyKey, Kind, PayloadHash, StreamId};

use crate::{number, seq, vectors};

#[derive(Deserialize)]
struct Payload {
    payload: String,
    payload_hash: PayloadHash,
}

#[derive(Deserialize)]
struct Log {
    name: String,
    stream_id: StreamId,
    genesis: ChainHash,
    events: Vec<Row>,
}

/// An event of a vector.
#[derive(Deserialize)]
pub(crate) struct Row {
    seq: String,
    idempotency_key: IdempotencyKey,
    kind: Kind,
    payload: String,
    payload_hash: PayloadHash,
    committed_at_us: String,
    chain_hash: ChainHash,
}

impl Row {
    pub(crate) fn event(&self) -> Event {
        Event {
            seq: seq(&self.seq),
            idempotency_key: self.idempotency_key.clone(),
            kind: self.kind.clone(),
            payload: hex::decode(&self.payload).unwrap().into(),
            payload_hash: self.payload_hash,
            chain_hash: self.chain_hash,
            committed_at_us: number(&self.committed_at_us),
        }
    }
}

#[cfg_attr(test, test)]
pub(crate) fn payloads_have_their_hashes() {
    for Payload { payload, payload_hash } in vectors(include_str!("../hashes.json"), 5) {
        assert_eq!(
            PayloadHash::of(&hex::decode(&payload).unwrap()),
            payload_hash,
            "{payload}"
        );
    }
}

#[cfg_attr(test, test)]
pub(crate) fn logs_have_their_chains() {
    for Log {
        name,
        stream_id,
        genesis,
        events,
    } in vectors(include_str!("../chain.json"), 4)
    {
        let mut chain = ChainHash::genesis(&stream_id);
        assert_eq!(chain, genesis, "{name}");
        for row in events {
            let event = row.event();
            assert_eq!(
                PayloadHash::of(&event.payload),
                event.payload_hash,
                "{name}: {}",
                event.seq
            );
            let at = event.committed_at_us;
            chain = chain.link(event.seq, at, &event.payload_hash, &event.idempotency_key, &event.kind);
            assert_eq!(chain, event.chain_hash, "{name}: {}", event.seq);
        }
    }
}
