//! From a page of the authority's log to frames, with every hash checked.

use bytes::Bytes;
use spacetime_sync_proto::{ChainHash, Event, Frame, Seq, limit};

use super::HaltReason;

/// A frame ready to be sent, whose hashes were found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Position of the first event.
    pub first_seq: Seq,
    /// Position of the last event.
    pub last_seq: Seq,
    /// Chain hash before the first event.
    pub base_chain: ChainHash,
    /// Chain hash of the last event.
    pub last_chain: ChainHash,
    /// The encoded frame.
    pub frame: Bytes,
}

impl Prepared {
    /// What it weighs.
    pub fn size(&self) -> usize {
        self.frame.len()
    }
}

/// Cuts the events after `after` into frames of at most `frame_bytes` and [`limit::FRAME_EVENTS`], one event at least.
/// The log of the authority is not trusted blindly: positions, payload hashes and links must be what they claim.
pub fn prepare(
    after: Seq,
    base_chain: ChainHash,
    events: &[Event],
    frame_bytes: usize,
) -> Result<Vec<Prepared>, HaltReason> {
    let (mut seq, mut chain) = (after, base_chain);
    for event in events {
        let expected = seq.next();
        if event.seq != expected {
            return Err(HaltReason::BrokenLog(format!("seq {} follows seq {seq}", event.seq)));
        }
        if !event.payload_matches() {
            return Err(HaltReason::BrokenLog(format!(
                "the payload of seq {expected} is not what was hashed"
            )));
        }
        if !event.follows(&chain) {
            return Err(HaltReason::BrokenLog(format!(
                "seq {expected} does not follow the chain before it"
            )));
        }
        (seq, chain) = (event.seq, event.chain_hash);
    }
    let mut frames = Vec::new();
    let (mut base, mut rest) = (base_chain, events);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fitting = rest
            .iter()
            .take(limit::FRAME_EVENTS)
            .take_while(|event| {
                bytes += event.size() + EVENT_OVERHEAD;
                bytes <= frame_bytes
            })
            .count();
        let (frame, later) = rest.split_at(fitting.max(1));
        let (first, last) = (&frame[0], &frame[frame.len() - 1]);
        frames.push(Prepared {
            first_seq: first.seq,
            last_seq: last.seq,
            base_chain: base,
            last_chain: last.chain_hash,
            frame: Frame::encode(frame),
        });
        (base, rest) = (last.chain_hash, later);
    }
    Ok(frames)
}

/// What an event costs in a frame beside its own bytes, at most: hash, time, tags and lengths.
const EVENT_OVERHEAD: usize = 64;
