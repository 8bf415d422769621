//! What a frame means at a cursor: it continues the log, repeats it, leaves a hole before it, or contradicts it.

use std::collections::VecDeque;

use spacetime_sync_proto::{Frame, FrameRow, Position, Seq};

use super::{Batch, Proof, StreamStop};

/// How a frame relates to a cursor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Intake {
    /// It continues the log.
    Next {
        /// The new events.
        batch: Batch,
        /// How many of its events were already taken.
        repeated: u64,
    },
    /// All of it was already taken.
    Repeated {
        /// How many events.
        events: u64,
        /// Whether it was compared and found to be the same.
        compared: bool,
    },
    /// Events are missing before it.
    Hole,
}

/// Checks a frame against the cursor, against the head that a page claimed and, if it is a repeat, against some earlier
/// positions. `from_authority` says whether the authority itself answered.
pub(super) fn take(
    frame: FrameRow,
    cursor: Position,
    claim: Option<Position>,
    recent: &VecDeque<Position>,
    from_authority: bool,
) -> Result<Intake, StreamStop> {
    let events = frame.claimed_events();
    if frame.first_seq > cursor.seq.next() {
        return Ok(Intake::Hole);
    }
    let held = |known: &&Position| (frame.first_seq..=frame.last_seq).contains(&known.seq);
    let known_before = recent.iter().rev().find(held).copied();
    if frame.last_seq < cursor.seq && known_before.is_none() {
        return Ok(Intake::Repeated {
            events,
            compared: false,
        });
    }
    let (seq, bytes) = (frame.first_seq, frame.bytes.len());
    let checked =
        Frame::decode(seq.get(), frame.base_chain, frame.bytes).map_err(|error| StreamStop::BadFrame { seq, error })?;
    if checked.last_seq() != frame.last_seq {
        return Err(StreamStop::FrameExtent {
            seq,
            expected: frame.last_seq,
            found: checked.last_seq(),
        });
    }
    for known in std::iter::once(cursor).chain(claim).chain(known_before) {
        if let Some(found) = checked.chain_at(known.seq).filter(|found| *found != known.chain) {
            return Err(StreamStop::ChainMismatch {
                seq: known.seq,
                expected: known.chain,
                found,
            });
        }
    }
    if frame.last_seq <= cursor.seq {
        return Ok(Intake::Repeated { events, compared: true });
    }
    let to = Position {
        seq: checked.last_seq(),
        chain: checked.last_chain(),
    };
    let proof = if from_authority {
        Proof::Authority
    } else {
        Proof::Seal(checked.seal().copied())
    };
    let events: Vec<_> = checked.into_events_after(cursor.seq).collect();
    Ok(Intake::Next {
        repeated: repeated(seq, cursor.seq),
        batch: Batch {
            from: cursor,
            to,
            events,
            bytes,
            proof,
        },
    })
}

fn repeated(first: Seq, cursor: Seq) -> u64 {
    cursor.next().since(first)
}
