//! What the module does with a frame from the bridge or from somebody in its place.
//!
//! Properties: appended events follow the log, a stored event is never replaced, and a repeat changes nothing.

use anyhow::{bail, ensure};
use rand::rngs::StdRng;
use spacetime_sync_proto::{Frame, Position, RefusalCode, Seq, limit};
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
        let Some(held) = self.log.at(HELD) else {
            bail!("the log is too short")
        };
        let head = Position {
            seq: held.seq,
            chain: held.chain,
        };
        let request = Request {
            first_seq,
            base_chain,
            frame: bytes.clone(),
        };
        let kept = |seq: Seq| {
            let event = self
                .log
                .at(seq.get())
                .filter(|_| seq.get() >= OLDEST && seq <= head.seq);
            event.map(|at| at.chain)
        };
        let sent = Frame::decode(first_seq, base_chain, bytes);
        match (decide(head, request, kept), sent) {
            (Err(refusal), Err(_)) => ensure!(refusal.code == RefusalCode::InvalidFrame),
            (Ok(_), Err(error)) => bail!("an invalid frame is appended: {error}"),
            (Err(refusal), Ok(frame)) => {
                ensure!(refusal.head_seq == Some(HELD), "{refusal:?}");
                match refusal.code {
                    RefusalCode::SeqGap => ensure!(frame.first_seq() > head.seq.next()),
                    RefusalCode::ChainMismatch => ensure!(base_chain != head.chain),
                    RefusalCode::EventConflict => {
                        let at = frame.last_seq().min(head.seq);
                        ensure!(frame.chain_at(at) != self.log.at(at.get()).map(|held| held.chain));
                    }
                    RefusalCode::BelowWindow => ensure!(frame.last_seq().get() < OLDEST),
                    other => bail!("refused as {other:?}"),
                }
            }
            (Ok(Append::Absorbed), Ok(frame)) => {
                ensure!(frame.last_seq() <= head.seq);
                let held = self.log.at(frame.last_seq().get()).map(|held| held.chain);
                ensure!(
                    held == Some(frame.last_chain()),
                    "an absorbed frame differs from the log"
                );
                return Ok(Verdict::Taken);
            }
            (
                Ok(Append::Extend {
                    first_seq,
                    frame,
                    head: after,
                    last_at_us,
                }),
                Ok(sent),
            ) => {
                ensure!(first_seq == head.seq.next());
                ensure!(
                    sent.chain_at(head.seq) == Some(head.chain),
                    "the appended events do not follow the log"
                );
                let written = Frame::decode(first_seq.get(), head.chain, frame)?;
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

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        self.frames.vary(rng, input)
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
