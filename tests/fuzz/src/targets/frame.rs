//! Frames: bytes that claim to be events.
//!
//! Properties, checked against the generated message type: an accepted frame has the stated events, within the limits
//! and with the right hashes; a refused one breaks a rule; an accepted frame survives encoding and decoding.

use anyhow::{bail, ensure};
use bytes::Bytes;
use prost::Message as _;
use rand::Rng as _;
use rand::rngs::StdRng;
use spacetime_sync_proto::seal::SEAL_BYTES;
use spacetime_sync_proto::{ChainHash, Event, Frame, FrameError, IdempotencyKey, Kind, PayloadHash, Seq, limit, wire};

use crate::lane::Log;
use crate::mutate;
use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const FRAME: Entry = Entry {
    name: "frame",
    about: "Frame::decode, against the generated message",
    dictionary: DICTIONARY,
    most: limit::FRAME_BYTES + 100,
    open: || Ok(Box::new(Frames)),
    seeds,
};

pub(super) const DICTIONARY: &[&[u8]] = &[
    &[0x0a, 0],
    &[0x0a, 1],
    &[0x12, 1, b'a'],
    &[0x1a, 1, 0],
    &[0x22, 32],
    &[0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
    &[0x7a, 0],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0x80, 0x80, 0x80, 0x80, 0x10],
    b"run.step",
    "\u{fc}".as_bytes(),
    b"\x7f",
];

/// The part before the frame: the seq that it claims to begin at, and the chain hash before it.
pub(super) const PREFIX: usize = 8 + 32;

struct Frames;

impl Target for Frames {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let Some((first_seq, base_chain, bytes)) = parts(input) else {
            return Ok(Verdict::Refused);
        };
        let found = Frame::decode(first_seq, base_chain, bytes.clone());
        let frame = match (found, expected(first_seq, base_chain, &bytes)) {
            (Err(found), Err(expected)) => {
                ensure!(same(&found, &expected), "refused with {found:?}, expected {expected:?}");
                return Ok(Verdict::Refused);
            }
            (Err(found), Ok(_)) => bail!("a valid frame is refused: {found}"),
            (Ok(_), Err(expected)) => bail!("a frame is accepted, expected the refusal: {expected}"),
            (Ok(frame), Ok(expected)) => {
                let before = Seq::ZERO.plus(first_seq - 1);
                ensure!(frame.first_seq() == before.next() && frame.base_chain() == base_chain);
                ensure!(frame.chain_at(before) == Some(base_chain));
                let events: Vec<_> = frame.clone().into_events_after(Seq::ZERO).collect();
                ensure!(events == expected, "found {events:?}, expected {expected:?}");
                frame
            }
        };
        again(frame, first_seq, base_chain)?;
        Ok(Verdict::Taken)
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        let (prefix, frame) = input.split_at_checked(PREFIX)?;
        let mut prefix = prefix.to_vec();
        if rng.random_bool(0.1) {
            mutate::bytes(rng, &mut prefix, &[], &[], PREFIX);
            prefix.resize(PREFIX, 0);
        }
        prefix.extend(mutate::protobuf(rng, frame, DICTIONARY)?);
        Some(prefix)
    }
}

pub(super) fn parts(input: &[u8]) -> Option<(u64, ChainHash, Bytes)> {
    let (seq, rest) = input.split_first_chunk::<8>()?;
    let (base, frame) = rest.split_first_chunk::<32>()?;
    let frame = Bytes::copy_from_slice(frame);
    Some((u64::from_be_bytes(*seq), ChainHash::from_bytes(*base), frame))
}

pub(super) fn whole(first_seq: u64, base_chain: ChainHash, frame: &[u8]) -> Vec<u8> {
    let mut input = first_seq.to_be_bytes().to_vec();
    input.extend_from_slice(base_chain.as_bytes());
    input.extend_from_slice(frame);
    input
}

/// What the contract says about these bytes, computed slowly with the generated message type.
fn expected(first_seq: u64, base_chain: ChainHash, bytes: &Bytes) -> Result<Vec<Event>, FrameError> {
    if bytes.len() > limit::FRAME_BYTES {
        return Err(FrameError::TooLarge { found: bytes.len() });
    }
    let message = wire::EventFrame::decode(bytes.clone()).map_err(|error| FrameError::Malformed(error.to_string()))?;
    let count = message.events.len();
    if count == 0 || count > limit::FRAME_EVENTS {
        return Err(FrameError::EventCount { found: count });
    }
    if !matches!(message.seal.len(), 0 | SEAL_BYTES) {
        return Err(FrameError::SealLength {
            found: message.seal.len(),
        });
    }
    let last = first_seq.checked_add(count as u64 - 1).and_then(Seq::new);
    if first_seq == 0 || last.is_none_or(|last| last == Seq::MAX) {
        return Err(FrameError::FirstSeq { found: first_seq });
    }
    let mut chain = base_chain;
    let mut seq = Seq::ZERO.plus(first_seq);
    let mut events = Vec::new();
    for event in message.events {
        let invalid = |invalid| FrameError::Id { seq, invalid };
        let idempotency_key = IdempotencyKey::new(&event.idempotency_key).map_err(invalid)?;
        let kind = Kind::new(&event.kind).map_err(invalid)?;
        let found = event.payload.len();
        if found == 0 || found > limit::PAYLOAD_BYTES {
            return Err(FrameError::PayloadSize { seq, found });
        }
        let found = event.payload_hash.len();
        let payload_hash =
            PayloadHash::from_slice(&event.payload_hash).ok_or(FrameError::PayloadHashLength { seq, found })?;
        chain = chain.link(seq, event.committed_at_us, &payload_hash, &idempotency_key, &kind);
        events.push(Event {
            seq,
            idempotency_key,
            kind,
            payload: event.payload,
            payload_hash,
            chain_hash: chain,
            committed_at_us: event.committed_at_us,
        });
        seq = seq.next();
    }
    Ok(events)
}

/// Whether two refusals are the same. The texts about malformed messages may differ.
fn same(found: &FrameError, expected: &FrameError) -> bool {
    match (found, expected) {
        (FrameError::Malformed(_), FrameError::Malformed(_)) => true,
        (found, expected) => found == expected,
    }
}

/// A frame that is encoded again, whole or cut, is the same frame.
fn again(frame: Frame, first_seq: u64, base_chain: ChainHash) -> anyhow::Result<()> {
    let events: Vec<_> = frame.clone().into_events_after(Seq::ZERO).collect();
    let seal = frame.seal().copied();
    let encoded = Frame::encode(&events, seal.as_ref());
    ensure!(encoded.len() >= limit::FRAME_PADDED_BYTES);
    // A sender may repeat a field or use more bytes than needed. Encoding writes it once, so the result is never
    // longer.
    let decoded = Frame::decode(first_seq, base_chain, encoded)?;
    ensure!(decoded.last_chain() == frame.last_chain() && decoded.last_seq() == frame.last_seq());
    ensure!(decoded.seal() == seal.as_ref());
    ensure!(decoded.into_events_after(Seq::ZERO).eq(events.iter().cloned()));
    let cut = frame.first_seq().plus(events.len() as u64 / 2);
    let after = cut.since(frame.first_seq()) as usize + 1;
    let Some(chain) = frame.chain_at(cut) else {
        ensure!(cut > frame.last_seq());
        return Ok(());
    };
    match frame.encode_after(cut) {
        None => ensure!(after >= events.len()),
        Some(rest) => {
            let rest = Frame::decode(cut.next().get(), chain, rest)?;
            ensure!(rest.seal() == seal.as_ref());
            ensure!(rest.into_events_after(Seq::ZERO).eq(events[after..].iter().cloned()));
        }
    }
    Ok(())
}

fn seeds() -> anyhow::Result<Vec<Seed>> {
    let log = Log::new("runtime.run.1.events", &[3, 40, 1, 300, 127, 128, 5, 2_000])?;
    let of = |first, last| {
        let base = log.at(first - 1).unwrap_or_else(|| log.head()).chain;
        whole(first, base, &log.frame(first, last))
    };
    let many = Log::new("runtime.run.2.events", &[1; 60])?;
    Ok(vec![
        Seed::new("one", of(1, 1)),
        Seed::new("few", of(1, 4)),
        Seed::new("middle", of(3, 7)),
        Seed::new("unpadded", of(5, 8)),
        Seed::new(
            "many",
            whole(1, many.at(0).unwrap_or_else(|| many.head()).chain, &many.frame(1, 60)),
        ),
        Seed::new("far", whole(Seq::MAX.get() - 4, many.head().chain, &many.frame(1, 3))),
    ])
}
