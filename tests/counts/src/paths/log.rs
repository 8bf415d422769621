//! A stream's log that is the same in every run.

use bytes::Bytes;
use spacetime_sync_proto::{
    ChainHash, Event, Frame, FrameRow, IdempotencyKey, Kind, PayloadHash, Position, Seq, StreamId,
};

/// The size of a payload, as in most of the benchmark's figures.
const PAYLOAD_BYTES: usize = 512;

/// The stream.
pub(super) fn stream_id() -> StreamId {
    named("runtime.run.42.events")
}

/// A stream with this name.
pub(super) fn named(name: &str) -> StreamId {
    StreamId::new(name).unwrap_or_else(|error| panic!("{error}"))
}

/// So many events of the stream, from the first.
pub(super) fn events(count: usize) -> Vec<Event> {
    let mut chain = ChainHash::genesis(&stream_id());
    let mut events = Vec::with_capacity(count);
    for at in 1..=count as u64 {
        let event = event(Seq::ZERO.plus(at), &chain, payload(at));
        chain = event.chain_hash;
        events.push(event);
    }
    events
}

/// A payload.
pub(super) fn payload(at: u64) -> Bytes {
    Bytes::from(vec![at as u8; PAYLOAD_BYTES])
}

/// The event at a seq: hashed, and linked to what came before.
pub(super) fn event(seq: Seq, before: &ChainHash, payload: Bytes) -> Event {
    let idempotency_key =
        IdempotencyKey::new(&format!("run:42:events:{seq}")).unwrap_or_else(|error| panic!("{error}"));
    let kind = Kind::new("run.event").unwrap_or_else(|error| panic!("{error}"));
    let payload_hash = PayloadHash::of(&payload);
    let committed_at_us = 1_700_000_000_000_000 + seq.get() as i64;
    Event {
        chain_hash: before.link(seq, committed_at_us, &payload_hash, &idempotency_key, &kind),
        seq,
        idempotency_key,
        kind,
        payload,
        payload_hash,
        committed_at_us,
    }
}

/// The position after so many events.
pub(super) fn position(events: &[Event], at: usize) -> Position {
    match at.checked_sub(1) {
        None => Position::start(&stream_id()),
        Some(last) => Position {
            seq: events[last].seq,
            chain: events[last].chain_hash,
        },
    }
}

/// The log as frames of so many events each.
pub(super) fn frames(events: &[Event], each: usize) -> Vec<FrameRow> {
    let cut = events.chunks(each).enumerate();
    cut.map(|(nth, frame)| FrameRow {
        first_seq: frame[0].seq,
        last_seq: frame[frame.len() - 1].seq,
        base_chain: position(events, nth * each).chain,
        bytes: Frame::encode(frame, None),
    })
    .collect()
}
