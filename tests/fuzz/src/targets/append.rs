//! What the module does with a frame from the bridge or from somebody in its place, who may state what is not true.
//!
//! Properties: what is appended is stated to follow the log, and is what was sent, or a frame that was checked in whole; a
//! stored event is never replaced; a repeat changes nothing.

use anyhow::{bail, ensure};
use rand::rngs::StdRng;
use spacetime_sync_proto::{ChainHash, Frame, Position, RefusalCode, Seq, limit};
use spacetime_sync_rules::append::{Append, Request, decide};

use super::frame;
use crate::lane::Log;
use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const APPEND: Entry = Entry {
    name: "append",
    about: "append::decide over a log whose first events have left the window",
    dictionary: frame::DICTIONARY,
    most: limit::FRAME_BYTES + 100,
    open: || {
        Ok(Box::new(Appends {
            log: log()?,
            frames: (frame::FRAME.open)()?,
        }))
    },
    seeds,
};

/// The number of events that the module holds, and the first of them.
const HELD: u64 = 8;
const OLDEST: u64 = 3;
/// The fewest bytes that an event takes in a frame.
const LEAST_EVENT_BYTES: u64 = 45;

fn log() -> anyhow::Result<Log> {
    Log::new("runtime.run.1.events", &[10, 20, 1, 500, 3, 7, 80, 9, 1, 200, 30, 4])
}

struct Appends {
    log: Log,
    frames: Box<dyn Target>,
}

impl Target for Appends {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let Some((first_seq, base_chain, bytes)) = frame::parts(input) else {
            return Ok(Verdict::Refused);
        };
        let honest = match Request::of_frame(first_seq, base_chain, bytes.clone()) {
            Ok(honest) => honest,
            // Of bytes that are no frame, somebody may state anything.
            Err(refusal) => {
                ensure!(refusal.code == RefusalCode::InvalidFrame);
                let stated = Request {
                    first_seq,
                    last_seq: first_seq.wrapping_add(bytes.len() as u64 % 40),
                    base_chain,
                    last_chain: self.log.head().chain,
                    last_at_us: 0,
                    frame: bytes,
                };
                self.decides(&stated)?;
                return Ok(Verdict::Refused);
            }
        };
        let taken = self.decides(&honest)?;
        self.decides(&Request {
            last_seq: honest.last_seq + 1,
            ..honest.clone()
        })?;
        self.decides(&Request {
            last_chain: ChainHash::from_bytes([7; 32]),
            ..honest
        })?;
        Ok(taken)
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        self.frames.vary(rng, input)
    }
}

impl Appends {
    /// Has the rule decide about a request, and checks the decision.
    fn decides(&self, request: &Request) -> anyhow::Result<Verdict> {
        let Some(head) = self.log.at(HELD) else {
            bail!("the log is too short")
        };
        let first_seq = request.first_seq;
        let kept = |seq: Seq| {
            let event = self
                .log
                .at(seq.get())
                .filter(|_| seq.get() >= OLDEST && seq <= head.seq);
            event.map(|at| at.chain)
        };
        let stated = Position {
            seq: Seq::ZERO.plus(request.last_seq),
            chain: request.last_chain,
        };
        // The chain hash that the log has where the request is said to end.
        let there = self.log.at(stated.seq.min(head.seq).get()).map(|at| at.chain);
        let sent = Frame::decode(first_seq, request.base_chain, request.frame.clone()).ok();
        let sent = sent.filter(|sent| sent.last_seq() == stated.seq && sent.last_chain() == stated.chain);
        let events = request.last_seq.saturating_add(1).saturating_sub(first_seq);
        let bytes = request.frame.len() as u64;
        let is_possible = first_seq > 0
            && stated.seq < Seq::MAX
            && (1..=limit::FRAME_EVENTS as u64).contains(&events)
            && bytes >= limit::FRAME_PADDED_BYTES as u64
            && bytes >= LEAST_EVENT_BYTES * events
            && bytes <= limit::FRAME_BYTES as u64;
        let is_cut = first_seq <= HELD && stated.seq > head.seq;
        match decide(head, request.clone(), kept) {
            Err(refusal) if refusal.code == RefusalCode::InvalidFrame => {
                ensure!(!is_possible || is_cut && sent.is_none(), "{refusal:?}");
            }
            _ if !is_possible => bail!("no frame can be what was stated, and still it is not refused for that"),
            Err(refusal) => {
                ensure!(refusal.head_seq == Some(HELD), "{refusal:?}");
                match refusal.code {
                    RefusalCode::SeqGap => ensure!(first_seq > HELD + 1),
                    RefusalCode::ChainMismatch => ensure!(first_seq == HELD + 1 && request.base_chain != head.chain),
                    RefusalCode::EventConflict if is_cut => {
                        ensure!(sent.is_some_and(|sent| sent.chain_at(head.seq) != there));
                    }
                    RefusalCode::EventConflict => ensure!(Some(stated.chain) != there),
                    RefusalCode::BelowWindow => ensure!(request.last_seq < OLDEST),
                    other => bail!("refused as {other:?}"),
                }
            }
            Ok(Append::Absorbed) => {
                ensure!(stated.seq <= head.seq && Some(stated.chain) == there);
                return Ok(Verdict::Taken);
            }
            Ok(Append::Extend {
                first_seq: from,
                frame,
                head: after,
                last_at_us,
            }) => {
                ensure!(from == head.seq.next() && after == stated && after.seq >= from);
                if first_seq == from.get() {
                    ensure!(request.base_chain == head.chain, "the frame does not follow the log");
                    ensure!(frame == request.frame && last_at_us == request.last_at_us);
                    return Ok(Verdict::Taken);
                }
                let Some(sent) = sent else {
                    bail!("a frame is cut that is not what was stated")
                };
                ensure!(
                    sent.chain_at(head.seq) == Some(head.chain),
                    "the appended events do not follow the log"
                );
                let written = Frame::decode(from.get(), head.chain, frame)?;
                ensure!(written.last_seq() == after.seq && written.last_chain() == after.chain);
                ensure!(written.last_at_us() == last_at_us);
                ensure!(
                    written
                        .into_events_after(Seq::ZERO)
                        .eq(sent.into_events_after(head.seq))
                );
                return Ok(Verdict::Taken);
            }
        }
        Ok(Verdict::Refused)
    }
}

fn seeds() -> anyhow::Result<Vec<Seed>> {
    let log = log()?;
    let other = Log::new("runtime.run.2.events", &[2; 12])?;
    let of = |log: &Log, first, last| {
        let base = log.at(first - 1).unwrap_or_else(|| log.head()).chain;
        frame::whole(first, base, &log.frame(first, last))
    };
    Ok(vec![
        Seed::new("next", of(&log, 9, 12)),
        Seed::new("overlap", of(&log, 6, 10)),
        Seed::new("repeat", of(&log, 4, 7)),
        Seed::new("whole", of(&log, 1, 12)),
        Seed::new("below", of(&log, 1, 2)),
        Seed::new("gap", of(&log, 10, 11)),
        Seed::new("another", of(&other, 9, 10)),
        Seed::new("conflict", of(&other, 5, 8)),
    ])
}
