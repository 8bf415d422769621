//! Acknowledging: decides whether a checkpoint may be recorded.

use spacetime_sync_proto::{ChainHash, Position, Refusal, RefusalCode, Seq};

/// What an accepted acknowledgement changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// The same checkpoint again: nothing changes.
    Repeated,
    /// A newer one.
    Moved,
}

/// Decides about a checkpoint. `held` returns the chain hash of an event, or `None` if the log no longer holds the
/// event. Then there is nothing to compare with, and the checkpoint is accepted.
pub fn decide(
    previous: Option<Position>,
    head: Position,
    checkpoint: Position,
    held: impl FnOnce(Seq) -> Option<ChainHash>,
) -> Result<Ack, Refusal> {
    let Position { seq, chain } = checkpoint;
    if let Some(before) = previous {
        if seq < before.seq {
            let message = format!("seq {seq} is behind seq {}, which was acknowledged before", before.seq);
            return Err(Refusal::new(RefusalCode::CheckpointBehind, message).at_head(head.seq.get()));
        }
        if checkpoint == before {
            return Ok(Ack::Repeated);
        }
    }
    if seq > head.seq {
        let message = format!("seq {seq} is past the head {}", head.seq);
        return Err(Refusal::new(RefusalCode::CheckpointAhead, message).at_head(head.seq.get()));
    }
    let expected = if seq == head.seq { Some(head.chain) } else { held(seq) };
    match expected {
        Some(expected) if expected != chain => {
            let message = format!(
                "the chain hash at seq {seq} is {expected}, but the checkpoint states {chain}: it belongs to another log"
            );
            Err(Refusal::new(RefusalCode::ChainMismatch, message).at_head(head.seq.get()))
        }
        _ => Ok(Ack::Moved),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(value: u64) -> Seq {
        Seq::new(value).unwrap()
    }

    fn chain(value: u8) -> ChainHash {
        ChainHash::from_bytes([value; 32])
    }

    fn position(at: u64, of: u8) -> Position {
        Position {
            seq: seq(at),
            chain: chain(of),
        }
    }

    /// The log holds 3..=9. Every byte of the chain hash at seq n is n.
    fn ack(previous: Option<u64>, at: u64, of: u8) -> Result<Ack, RefusalCode> {
        let held = |seq: Seq| (seq.get() >= 3).then(|| chain(seq.get() as u8));
        let previous = previous.map(|at| position(at, at as u8));
        decide(previous, position(9, 9), position(at, of), held).map_err(|refusal| refusal.code)
    }

    #[test]
    fn a_checkpoint_only_moves_forward_and_only_on_the_chain() {
        for (previous, at, of, expected) in [
            (None, 5, 5, Ok(Ack::Moved)),
            (Some(4), 9, 9, Ok(Ack::Moved)),
            (Some(5), 5, 5, Ok(Ack::Repeated)),
            (None, 2, 77, Ok(Ack::Moved)),
            (Some(6), 5, 5, Err(RefusalCode::CheckpointBehind)),
            (Some(6), 10, 10, Err(RefusalCode::CheckpointAhead)),
            (Some(6), 8, 77, Err(RefusalCode::ChainMismatch)),
            (Some(6), 6, 77, Err(RefusalCode::ChainMismatch)),
            (None, 9, 77, Err(RefusalCode::ChainMismatch)),
        ] {
            assert_eq!(ack(previous, at, of), expected, "{previous:?} then {at}");
        }
    }
}
