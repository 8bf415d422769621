//! May this frame be appended, and what of it is new?

use bytes::Bytes;
use spacetime_sync_proto::{ChainHash, Frame, FrameError, Position, Refusal, RefusalCode, Seq};

/// A frame as the bridge asks for it to be appended.
#[derive(Debug, Clone)]
pub struct Request {
    /// Position of the frame's first event.
    pub first_seq: u64,
    /// Chain hash before the frame's first event.
    pub base_chain: ChainHash,
    /// The encoded frame.
    pub frame: Bytes,
}

/// What an accepted request changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Append {
    /// Every event is held already: nothing changes.
    Absorbed,
    /// These events are new.
    Extend {
        /// Position of the first new event.
        first_seq: Seq,
        /// The encoded frame of the new events alone.
        frame: Bytes,
        /// The head when they are written.
        head: Position,
        /// When the last of them was committed, in microseconds, by the authority's clock.
        last_at_us: i64,
    },
}

/// Decides over a request. `held` tells the chain hash of an event that is held, none below the window; it is asked
/// only when the request repeats something.
pub fn decide(
    head: Position,
    request: Request,
    held: impl FnOnce(Seq) -> Option<ChainHash>,
) -> Result<Append, Refusal> {
    let bytes = request.frame.clone();
    let frame = Frame::decode(request.first_seq, request.base_chain, request.frame).map_err(invalid_frame)?;
    let (next, last_at_us) = (head.seq.next(), frame.last_at_us());
    let new_head = Position {
        seq: frame.last_seq(),
        chain: frame.last_chain(),
    };

    if frame.first_seq() > next {
        let message = format!("the frame begins at seq {}, expected {next}", frame.first_seq());
        return Err(Refusal::new(RefusalCode::SeqGap, message).at_head(head.seq.get()));
    }
    if frame.first_seq() == next {
        if frame.base_chain() != head.chain {
            let message = format!(
                "the frame follows chain {} at seq {}, the log held ends with {}",
                frame.base_chain(),
                head.seq,
                head.chain
            );
            return Err(Refusal::new(RefusalCode::ChainMismatch, message).at_head(head.seq.get()));
        }
        return Ok(Append::Extend {
            first_seq: next,
            frame: bytes,
            head: new_head,
            last_at_us,
        });
    }
    // The frame repeats events that are held. A chain hash that agrees at one position agrees on all before it.
    let repeated_to = frame.last_seq().min(head.seq);
    let held = if repeated_to == head.seq {
        Some(head.chain)
    } else {
        held(repeated_to)
    };
    match held {
        None => {
            let message = format!("seq {repeated_to} is older than what is held, so a repeat cannot be compared");
            Err(Refusal::new(RefusalCode::BelowWindow, message).at_head(head.seq.get()))
        }
        Some(chain) if frame.chain_at(repeated_to) != Some(chain) => {
            let message = format!("another event is held at or before seq {repeated_to}: its chain is {chain}");
            Err(Refusal::new(RefusalCode::EventConflict, message).at_head(head.seq.get()))
        }
        Some(_) => Ok(match frame.encode_after(head.seq) {
            None => Append::Absorbed,
            Some(rest) => Append::Extend {
                first_seq: next,
                frame: rest,
                head: new_head,
                last_at_us,
            },
        }),
    }
}

/// What is said of a frame that is none.
pub fn invalid_frame(error: FrameError) -> Refusal {
    Refusal::new(RefusalCode::InvalidFrame, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use spacetime_sync_proto::{Event, IdempotencyKey, Kind, PayloadHash, StreamId};

    fn stream() -> StreamId {
        StreamId::new("s").unwrap()
    }

    /// A log of `count` events; `flavour` changes every payload.
    fn log(count: u64, flavour: u8) -> Vec<Event> {
        let mut chain = ChainHash::genesis(&stream());
        (1..=count)
            .map(|seq| {
                let seq = Seq::new(seq).unwrap();
                let payload = Bytes::from(vec![flavour; 10]);
                let payload_hash = PayloadHash::of(&payload);
                let idempotency_key = IdempotencyKey::new(&format!("k{seq}")).unwrap();
                let kind = Kind::new("t").unwrap();
                chain = chain.link(seq, 0, &payload_hash, &idempotency_key, &kind);
                Event {
                    seq,
                    idempotency_key,
                    kind,
                    payload,
                    payload_hash,
                    chain_hash: chain,
                    committed_at_us: 0,
                }
            })
            .collect()
    }

    fn head_of(log: &[Event]) -> Position {
        log.last().map_or(Position::start(&stream()), |last| Position {
            seq: last.seq,
            chain: last.chain_hash,
        })
    }

    /// Asks to append events `from..=to` of `log` to a module that holds `held`.
    fn ask(held: &[Event], log: &[Event], from: usize, to: usize) -> Result<Append, RefusalCode> {
        let base = if from == 1 {
            ChainHash::genesis(&stream())
        } else {
            log[from - 2].chain_hash
        };
        let request = Request {
            first_seq: from as u64,
            base_chain: base,
            frame: Frame::encode(&log[from - 1..to]),
        };
        decide(head_of(held), request, |seq| {
            held.get(seq.get() as usize - 1).map(|event| event.chain_hash)
        })
        .map_err(|refusal| refusal.code)
    }

    fn extends(answer: Result<Append, RefusalCode>, from: u64, log: &[Event]) {
        match answer {
            Ok(Append::Extend {
                first_seq, frame, head, ..
            }) => {
                assert_eq!(first_seq.get(), from);
                assert_eq!(head, head_of(log));
                let base = Position {
                    seq: first_seq,
                    chain: head.chain,
                }
                .chain;
                let decoded = Frame::decode(from, base, frame).unwrap();
                assert_eq!(decoded.last_seq(), head.seq);
            }
            other => panic!("expected an extension, found {other:?}"),
        }
    }

    #[test]
    fn the_next_frame_extends_the_log() {
        let log = log(5, 1);
        extends(ask(&[], &log, 1, 5), 1, &log);
        extends(ask(&log[..2], &log, 3, 5), 3, &log);
    }

    #[test]
    fn a_repeated_frame_is_absorbed_whatever_its_cut() {
        let log = log(5, 1);
        for from in 1..=5 {
            for to in from..=5 {
                assert_eq!(ask(&log, &log, from, to), Ok(Append::Absorbed), "{from}..={to}");
            }
        }
    }

    #[test]
    fn an_overlapping_frame_extends_by_what_is_new() {
        let log = log(5, 1);
        extends(ask(&log[..3], &log, 2, 5), 4, &log);
        extends(ask(&log[..4], &log, 1, 5), 5, &log);
    }

    #[test]
    fn a_skipped_seq_is_a_gap() {
        let log = log(5, 1);
        assert_eq!(ask(&log[..2], &log, 4, 5), Err(RefusalCode::SeqGap));
    }

    #[test]
    fn another_event_at_a_held_seq_is_a_conflict_and_never_an_overwrite() {
        let (ours, other) = (log(5, 1), log(5, 2));
        assert_eq!(ask(&ours, &other, 1, 5), Err(RefusalCode::EventConflict));
        assert_eq!(ask(&ours, &other, 2, 3), Err(RefusalCode::EventConflict));
        assert_eq!(ask(&ours[..3], &other, 2, 5), Err(RefusalCode::EventConflict));
    }

    #[test]
    fn a_frame_on_another_chain_is_refused() {
        let (ours, other) = (log(5, 1), log(5, 2));
        assert_eq!(ask(&ours[..3], &other, 4, 5), Err(RefusalCode::ChainMismatch));
    }

    #[test]
    fn a_repeat_below_the_window_cannot_be_compared() {
        let log = log(5, 1);
        let request = Request {
            first_seq: 1,
            base_chain: ChainHash::genesis(&stream()),
            frame: Frame::encode(&log[..2]),
        };
        let answer = decide(head_of(&log), request, |_| None);
        assert_eq!(answer.map_err(|refusal| refusal.code), Err(RefusalCode::BelowWindow));
    }

    #[test]
    fn a_malformed_frame_changes_nothing() {
        let request = Request {
            first_seq: 1,
            base_chain: ChainHash::genesis(&stream()),
            frame: vec![1, 2, 3].into(),
        };
        let answer = decide(Position::start(&stream()), request, |_| None);
        assert_eq!(answer.map_err(|refusal| refusal.code), Err(RefusalCode::InvalidFrame));
    }
}
