//! Compares what SpacetimeDB holds of a stream with what the authority knows.

use spacetime_sync_proto::{ChainHash, Position, Seq, StreamProgress};

use super::HaltReason;

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// SpacetimeDB's log ends at the published seq.
    InStep(Seq),
    /// SpacetimeDB holds more than was published, because acknowledgements were lost.
    Ahead(Seq),
    /// SpacetimeDB holds less than was published, because it was restored or wiped. The bridge publishes the rest again.
    Behind(Seq),
    /// SpacetimeDB lacks so much that its window is refilled after this seq.
    Refill(Seq),
    /// The authority purged the position in the meantime: compare again.
    Unknown,
    /// The logs do not fit, and the stream halts.
    Apart(HaltReason),
}

impl Verdict {
    /// Whether there is nothing to mend.
    pub(crate) fn fits(&self) -> bool {
        match self {
            Self::InStep(_) | Self::Ahead(_) | Self::Unknown => true,
            Self::Behind(_) | Self::Refill(_) | Self::Apart(_) => false,
        }
    }
}

/// Compares SpacetimeDB's head `held` with the authority's position. `chain_there` is the authority's chain hash at
/// `held.seq`, or `None` if it has none there. `window` is how many of the newest events SpacetimeDB holds, or `None` if it
/// holds all.
pub fn reconcile(
    position: &StreamProgress,
    held: Position,
    chain_there: Option<ChainHash>,
    window: Option<u64>,
) -> Verdict {
    let begin = window_begin(position, window);
    if held.seq < position.floor_seq {
        return Verdict::Refill(begin);
    }
    match chain_there {
        None if held.seq > position.head_seq => Verdict::Apart(HaltReason::AheadOfAuthority),
        // The authority had it a moment ago, and has purged it since.
        None => Verdict::Unknown,
        Some(chain) if chain != held.chain => Verdict::Apart(HaltReason::Diverged { seq: held.seq }),
        Some(_) => match held.seq.cmp(&position.published_seq) {
            std::cmp::Ordering::Equal => Verdict::InStep(held.seq),
            std::cmp::Ordering::Greater => Verdict::Ahead(held.seq),
            std::cmp::Ordering::Less if held.seq < begin => Verdict::Refill(begin),
            std::cmp::Ordering::Less => Verdict::Behind(held.seq),
        },
    }
}

/// After which seq SpacetimeDB's window begins.
pub(crate) fn window_begin(position: &StreamProgress, window: Option<u64>) -> Seq {
    // The window is as large as its class allows, but no larger than the log.
    let window_floor = window.map_or(Seq::ZERO, |events| {
        Seq::new(position.head_seq.get().saturating_sub(events)).unwrap_or(Seq::ZERO)
    });
    window_floor.max(position.floor_seq)
}

/// After which seq to publish a stream again when its log in SpacetimeDB, which ends at `held`, is forged.
pub(crate) fn publish_again_after(position: &StreamProgress, held: Seq, window: Option<u64>) -> Seq {
    if held > position.published_seq {
        // What was published may still be there, before the forgery.
        position.published_seq.max(position.floor_seq)
    } else {
        window_begin(position, window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spacetime_sync_proto::StreamId;

    #[test]
    fn every_pair_of_heads_has_its_verdict() {
        let seq = |value| Seq::new(value).unwrap();
        let chain = |value| ChainHash::from_bytes([value; 32]);
        let position = |floor| StreamProgress {
            stream_id: StreamId::new("s").unwrap(),
            head_seq: seq(9),
            published_seq: seq(5),
            floor_seq: seq(floor),
        };
        for (held, theirs, ours, floor, window, expected) in [
            (5, 5, Some(5), 0, None, Verdict::InStep(seq(5))),
            (8, 8, Some(8), 0, Some(1), Verdict::Ahead(seq(8))),
            (0, 0, Some(0), 0, None, Verdict::Behind(seq(0))),
            (0, 0, Some(0), 0, Some(9), Verdict::Behind(seq(0))),
            (0, 0, Some(0), 0, Some(6), Verdict::Refill(seq(3))),
            (3, 3, Some(3), 0, Some(6), Verdict::Behind(seq(3))),
            (1, 7, None, 4, None, Verdict::Refill(seq(4))),
            (1, 7, None, 4, Some(2), Verdict::Refill(seq(7))),
            (4, 4, Some(4), 4, None, Verdict::Behind(seq(4))),
            // The published seq is not behind, however small the window is.
            (5, 5, Some(5), 0, Some(1), Verdict::InStep(seq(5))),
            (
                5,
                5,
                Some(6),
                0,
                Some(1),
                Verdict::Apart(HaltReason::Diverged { seq: seq(5) }),
            ),
            (5, 5, None, 0, None, Verdict::Unknown),
            (9, 9, None, 0, None, Verdict::Unknown),
            (12, 12, None, 0, Some(1), Verdict::Apart(HaltReason::AheadOfAuthority)),
        ] {
            let held = Position {
                seq: seq(held),
                chain: chain(theirs),
            };
            let found = reconcile(&position(floor), held, ours.map(chain), window);
            assert_eq!(found, expected, "{held:?} above {floor}, {window:?}");
        }
    }
}
