//! What SpacetimeDB holds of a stream against what the authority knows.

use spacetime_sync_proto::{ChainHash, Position, Seq, StreamProgress};

use super::HaltReason;

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds just what is recorded as published.
    InStep(Seq),
    /// It holds more: acknowledgements were lost.
    Ahead(Seq),
    /// It holds less: it was restored or wiped. The rest is published again.
    Behind(Seq),
    /// It holds so much less that its window begins anew after this position.
    Refill(Seq),
    /// The authority purged what was to be compared: it is compared again.
    Unknown,
    /// No way on without a person.
    Apart(HaltReason),
}

/// Compares. `chain_there` is the authority's chain hash at `held.seq`, none if its log ends before; `window` is how many of
/// the newest events SpacetimeDB holds, none if it holds all.
pub fn reconcile(
    position: &StreamProgress,
    held: Position,
    chain_there: Option<ChainHash>,
    window: Option<u64>,
) -> Verdict {
    // A window as full as it may be, but no fuller than the log.
    let window_floor = window.map_or(Seq::ZERO, |events| {
        Seq::new(position.head_seq.get().saturating_sub(events)).unwrap_or(Seq::ZERO)
    });
    let begin = window_floor.max(position.floor_seq);
    if held.seq < position.floor_seq {
        return Verdict::Refill(begin);
    }
    match chain_there {
        None if held.seq > position.head_seq => Verdict::Apart(HaltReason::AheadOfAuthority),
        // It was there when the position was read.
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
            // What is waited for is published, however much that is.
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
