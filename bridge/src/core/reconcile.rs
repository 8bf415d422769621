//! What SpacetimeDB holds of a stream against what the authority knows.

use spacetime_sync_proto::{ChainHash, Seq, mutant};

use super::HaltReason;
use crate::authority::StreamPosition;

/// The head of a stream as SpacetimeDB holds it, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its last seq; 0 if it holds nothing.
    pub seq: Seq,
    /// Its chain hash there.
    pub chain: ChainHash,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds just what is recorded as published.
    InStep(Seq),
    /// It holds more: acknowledgements were lost.
    Ahead(Seq),
    /// It holds less: it was restored or wiped. The rest is published again.
    Behind(Seq),
    /// No way on without a person.
    Apart(HaltReason),
}

/// Compares. `chain_there` is the authority's chain hash at `held.seq`, none if its log ends before.
pub fn reconcile(position: &StreamPosition, held: Held, chain_there: Option<ChainHash>) -> Verdict {
    match chain_there {
        None => Verdict::Apart(HaltReason::AheadOfAuthority),
        Some(_) if mutant::on("bridge-compares-no-heads") => Verdict::InStep(position.published_seq),
        Some(chain) if chain != held.chain => Verdict::Apart(HaltReason::Diverged { seq: held.seq }),
        Some(_) => match held.seq.cmp(&position.published_seq) {
            std::cmp::Ordering::Equal => Verdict::InStep(held.seq),
            std::cmp::Ordering::Greater => Verdict::Ahead(held.seq),
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
        let position = StreamPosition {
            stream_id: StreamId::new("s").unwrap(),
            head_seq: seq(9),
            published_seq: seq(5),
        };
        for (held, theirs, ours, expected) in [
            (5, 5, Some(5), Verdict::InStep(seq(5))),
            (8, 8, Some(8), Verdict::Ahead(seq(8))),
            (0, 0, Some(0), Verdict::Behind(seq(0))),
            (5, 5, Some(6), Verdict::Apart(HaltReason::Diverged { seq: seq(5) })),
            (12, 12, None, Verdict::Apart(HaltReason::AheadOfAuthority)),
        ] {
            let held = Held {
                seq: seq(held),
                chain: chain(theirs),
            };
            assert_eq!(reconcile(&position, held, ours.map(chain)), expected);
        }
    }
}
