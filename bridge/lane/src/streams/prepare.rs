//! From a page of the authority's log to frames, with every hash checked.

use spacetime_sync_proto::{ChainHash, Event, Frame, FrameRow, Seq, limit};

use super::HaltReason;
use crate::message::Page;

/// A frame whose hashes were found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyFrame {
    /// As it goes into a call.
    pub row: FrameRow,
    /// Chain hash of its last event.
    pub last_chain: ChainHash,
}

impl ReadyFrame {
    /// What it weighs.
    pub fn size(&self) -> usize {
        self.row.bytes.len()
    }
}

/// Cuts the events after `after` into frames of at most `frame_bytes` and [`limit::FRAME_EVENTS`], one event at least.
/// The log of the authority is not trusted blindly: positions, payload hashes and links must be what they claim.
pub fn prepare(
    after: Seq,
    base_chain: ChainHash,
    events: &[Event],
    frame_bytes: usize,
) -> Result<Vec<ReadyFrame>, HaltReason> {
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
        frames.push(ReadyFrame {
            row: FrameRow {
                first_seq: first.seq,
                last_seq: last.seq,
                base_chain: base,
                bytes: Frame::encode(frame),
            },
            last_chain: last.chain_hash,
        });
        (base, rest) = (last.chain_hash, later);
    }
    Ok(frames)
}

/// What an event costs in a frame beside its own bytes, at most: hash, time, tags and lengths.
const EVENT_OVERHEAD: usize = 64;

/// Whether a page can only be judged by one who knows up to where the authority has purged its log: it does not go on
/// from where it was asked for.
pub fn is_doubtful(after: Seq, base_chain: Option<ChainHash>, events: &[Event]) -> bool {
    base_chain.is_none() || events.first().is_some_and(|first| first.seq != after.next())
}

/// What a page comes to. `base_chain` is the chain hash at `after`, if the authority has one; `floor` is up to where it has
/// purged the log, as far as that was asked for.
pub fn judge(
    after: Seq,
    base_chain: Option<ChainHash>,
    floor: Option<Seq>,
    events: &[Event],
    frame_bytes: usize,
) -> Page {
    if is_doubtful(after, base_chain, events) && floor.is_some_and(|floor| after < floor) {
        return Page::Purged;
    }
    match base_chain {
        None => Page::Broken(HaltReason::AheadOfAuthority),
        Some(base_chain) => match prepare(after, base_chain, events, frame_bytes) {
            Ok(frames) => Page::Frames(frames),
            Err(reason) => Page::Broken(reason),
        },
    }
}
