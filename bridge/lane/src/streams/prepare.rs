//! Checks every hash in a page of the authority's log, and cuts the page into frames.

use std::collections::BTreeMap;

use spacetime_sync_proto::{ChainHash, Event, Frame, FrameRow, Position, Seal, Sealer, Seq, StreamId, limit};

use super::HaltReason;
use crate::message::{Checked, HeadSeal, Page, Reached};

/// A frame whose hashes are checked, and what a call states about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyFrame {
    /// The frame.
    pub row: FrameRow,
    /// Chain hash of its last event.
    pub last_chain: ChainHash,
    /// When its last event was committed, in microseconds since 1970-01-01 UTC, by the authority's clock.
    pub last_at_us: i64,
}

impl ReadyFrame {
    /// How many bytes the frame has.
    pub fn size(&self) -> usize {
        self.row.bytes.len()
    }
}

/// Who seals the frames of a stream.
#[derive(Clone, Copy)]
pub struct Sealing<'a> {
    /// The stream.
    pub stream_id: &'a StreamId,
    /// Who has the key.
    pub sealer: &'a dyn Sealer,
}

impl Sealing<'_> {
    fn seal(&self, last: &Event) -> Option<Seal> {
        let (seq, chain) = (last.seq, last.chain_hash);
        self.sealer.seal(self.stream_id, &Position { seq, chain })
    }
}

/// Cuts the events after `after` into frames of at most `frame_bytes` and [`limit::FRAME_EVENTS`], with one event at least.
/// Checks every seq, length, payload hash and chain hash first: the bridge does not trust the authority's log blindly, and
/// nobody looks into a frame again before clients do.
/// Frames that SpacetimeDB is to deliver are sealed.
pub fn prepare(
    after: Seq,
    base_chain: ChainHash,
    events: &[Event],
    frame_bytes: usize,
    sealing: Option<Sealing<'_>>,
) -> Result<Vec<ReadyFrame>, HaltReason> {
    let (mut seq, mut chain) = (after, base_chain);
    for event in events {
        let expected = seq.next();
        if event.seq != expected {
            return Err(HaltReason::BrokenLog(format!(
                "expected seq {expected}, found seq {}",
                event.seq
            )));
        }
        let length = event.payload.len();
        if length == 0 || length > limit::PAYLOAD_BYTES {
            return Err(HaltReason::BrokenLog(format!(
                "the payload of seq {expected} has {length} bytes, expected 1 to {}",
                limit::PAYLOAD_BYTES
            )));
        }
        if !event.payload_matches() {
            return Err(HaltReason::BrokenLog(format!(
                "the payload of seq {expected} does not match its payload hash"
            )));
        }
        if !event.follows(&chain) {
            return Err(HaltReason::BrokenLog(format!(
                "the chain hash of seq {expected} does not follow from the one before"
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
        let seal = sealing.and_then(|sealing| sealing.seal(last));
        frames.push(ReadyFrame {
            row: FrameRow {
                first_seq: first.seq,
                last_seq: last.seq,
                base_chain: base,
                bytes: Frame::encode(frame, seal.as_ref()),
            },
            last_chain: last.chain_hash,
            last_at_us: last.committed_at_us,
        });
        (base, rest) = (last.chain_hash, later);
    }
    Ok(frames)
}

/// The frames of events that a look brought. `read` says up to where each stream is read. A stream whose events do not
/// continue from there has none: the page that is then read says what is wrong. Neither has any stream while no key seals.
pub fn prepare_looked(
    read: &[(StreamId, Position)],
    events: &BTreeMap<StreamId, Vec<Event>>,
    frame_bytes: usize,
    sealer: &dyn Sealer,
) -> BTreeMap<StreamId, Vec<ReadyFrame>> {
    let frames = |(stream_id, at): &(StreamId, Position)| {
        let sealing = Sealing { stream_id, sealer };
        let events = events.get(stream_id)?;
        let frames = prepare(at.seq, at.chain, events, frame_bytes, Some(sealing)).ok()?;
        sealer.is_ready().then(|| (stream_id.clone(), frames))
    };
    read.iter().filter_map(frames).collect()
}

/// How many bytes an event takes in a frame beside its own, at most: hash, time, tags and lengths.
const EVENT_OVERHEAD: usize = 64;

/// Whether a page does not continue from where it was asked for. To judge such a page, [`judge`] must know the floor up to
/// which the authority has purged its log.
pub fn is_doubtful(after: Seq, base_chain: Option<ChainHash>, events: &[Event]) -> bool {
    base_chain.is_none() || events.first().is_some_and(|first| first.seq != after.next())
}

/// Turns the events after `after` into a page. `base_chain` is the authority's chain hash at `after`, if it has one. `floor`
/// is the seq up to which the authority has purged the log, if the caller asked.
pub fn judge(
    after: Seq,
    base_chain: Option<ChainHash>,
    floor: Option<Seq>,
    events: &[Event],
    frame_bytes: usize,
    sealing: Sealing<'_>,
) -> Page {
    if is_doubtful(after, base_chain, events) && floor.is_some_and(|floor| after < floor) {
        return Page::Purged;
    }
    match base_chain {
        None => Page::Broken(HaltReason::AheadOfAuthority),
        Some(base_chain) => match prepare(after, base_chain, events, frame_bytes, Some(sealing)) {
            Ok(frames) => Page::Frames(frames),
            Err(reason) => Page::Broken(reason),
        },
    }
}

/// Whether the bridge sealed the head of a log in SpacetimeDB. `now` is where the log ends, and `frames` are the last ones
/// that SpacetimeDB holds. A row that does not hold the frame that it states is not among them: where that leaves none,
/// this is [`HeadSeal::Unknown`], and their reader, who has seen the row, says [`HeadSeal::Missing`].
pub fn check_seal(head: &Position, now: &Position, frames: &[Frame], sealing: Sealing<'_>) -> HeadSeal {
    if now != head {
        return HeadSeal::Moved;
    }
    let Some(last) = frames.last() else {
        return HeadSeal::Unknown;
    };
    let ends = Position {
        seq: last.last_seq(),
        chain: last.last_chain(),
    };
    let check = |seal: &Seal| sealing.sealer.check(sealing.stream_id, head, seal);
    match last.seal().filter(|_| ends == *head).map(check) {
        Some(Some(true)) => HeadSeal::Good,
        Some(None) => HeadSeal::Unknown,
        Some(Some(false)) | None => HeadSeal::Missing,
    }
}

/// Checks the next frames of a walk through a window: whether they continue from one another, and the bridge sealed each.
/// `after` is up to where the walk has come. The log that SpacetimeDB holds begins at `oldest` and ends at `head`. The frames
/// end before a row that does not hold the frame that it states, so the walk comes to it with the next frames, of which
/// there are none.
pub fn check_frames(after: Reached, oldest: Seq, head: &Position, frames: Vec<Frame>, sealing: Sealing<'_>) -> Checked {
    let swept = oldest.previous();
    if after.seq < swept {
        // SpacetimeDB answers with no frames, because it no longer holds the next event.
        return Checked::Swept { to: swept };
    }
    if head.seq < after.seq {
        // The log was cut in the meantime. Whoever does that compares the stream afterwards.
        return Checked::Sound {
            to: *head,
            is_end: true,
        };
    }
    let (mut sound, is_empty) = (after, frames.is_empty());
    for frame in frames {
        let ends = Position {
            seq: frame.last_seq(),
            chain: frame.last_chain(),
        };
        // A seal by a key that is gone proves nothing, and neither does it accuse anybody.
        let is_sealed = |seal: &Seal| sealing.sealer.check(sealing.stream_id, &ends, seal) != Some(false);
        // Where another bridge has refilled the window in the meantime, a frame may begin before.
        let follows = frame.first_seq() <= sound.seq.next() && ends.seq > sound.seq;
        let continues = sound.chain.is_none_or(|chain| frame.chain_at(sound.seq) == Some(chain));
        let is_whole = follows && continues && frame.seal().is_some_and(is_sealed);
        if !is_whole || !frame.into_events_after(Seq::ZERO).all(|event| event.payload_matches()) {
            return Checked::Unsound { after: sound };
        }
        sound = Reached {
            seq: ends.seq,
            chain: Some(ends.chain),
        };
    }
    let is_end = sound.seq == head.seq;
    match sound.chain {
        Some(chain) if is_end && chain != head.chain => Checked::Unsound { after: sound },
        // Rows are missing.
        _ if is_empty && !is_end => Checked::Unsound { after: sound },
        chain => Checked::Sound {
            to: Position {
                seq: sound.seq,
                chain: chain.unwrap_or(head.chain),
            },
            is_end,
        },
    }
}

#[cfg(test)]
mod tests;
