//! A model of the bridge's ledger (`bridge/src/pump/ledger.rs`): what is published is written down in order, gathered,
//! and tried again until the authority takes it.

use std::collections::{BTreeMap, VecDeque};

use rand::Rng as _;
use spacetime_sync_lane::{HaltReason, Input};
use spacetime_sync_proto::Seq;

use crate::agenda::{MILLISECOND, Micros, SECOND};
use crate::bridge::BridgeStep;
use crate::fault::Fault;
use crate::net::ConnId;
use crate::world::{World, say};

const LEDGER_GATHER: Micros = 20 * MILLISECOND;
const LEDGER_RETRY: Micros = 100 * MILLISECOND;

#[derive(Debug)]
pub(crate) enum Entry {
    Advance(usize, Seq),
    Rewind(usize, Seq),
    Cap(usize, Seq),
    Settled(Then),
}

/// What waits for the ledger to settle.
#[derive(Debug)]
pub(crate) enum Then {
    Compare(ConnId),
    LinkUp(ConnId),
    Stopped,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    book: VecDeque<Entry>,
    pending: BTreeMap<usize, Seq>,
    settled: Vec<Then>,
    due: bool,
}

impl World {
    pub(crate) fn ledger_says(&mut self, at: usize, entry: Entry) {
        let ledger = &mut self.bridges[at].ledger;
        ledger.book.push_back(entry);
        if !ledger.due {
            ledger.due = true;
            let gather = self.dice.work.random_range(0..LEDGER_GATHER);
            self.bridge_in(at, gather, BridgeStep::Ledger);
        }
    }

    /// One pass of the ledger's task: entries in their order, then everything that is pending.
    pub(crate) fn ledger_turns(&mut self, at: usize) {
        let away = self.authority_is_away();
        while let Some(entry) = self.bridges[at].ledger.book.pop_front() {
            let ledger = &mut self.bridges[at].ledger;
            match entry {
                Entry::Advance(stream, seq) => {
                    let pending = ledger.pending.entry(stream).or_insert(seq);
                    *pending = seq.max(*pending);
                }
                Entry::Rewind(stream, to) => {
                    ledger.pending.remove(&stream);
                    // It waits for a writer that holds the row, and for the authority to be back.
                    if away || self.logs[stream].locked_until > self.now {
                        ledger.book.push_front(Entry::Rewind(stream, to));
                        return self.bridge_in(at, LEDGER_RETRY, BridgeStep::Ledger);
                    }
                    let log = &mut self.logs[stream];
                    log.published = log.published.min(to);
                    say!(self, "bridge {at}: stream {stream} is published up to {to} only");
                }
                Entry::Cap(stream, seq) => {
                    if ledger.pending.get(&stream).is_some_and(|pending| *pending > seq) {
                        ledger.pending.remove(&stream);
                    }
                }
                Entry::Settled(then) => ledger.settled.push(then),
            }
        }
        self.ledger_writes(at, away);
        let ledger = &mut self.bridges[at].ledger;
        let again = !ledger.pending.is_empty();
        ledger.due = again;
        let settled = std::mem::take(&mut ledger.settled);
        if again {
            self.bridge_in(at, LEDGER_RETRY, BridgeStep::Ledger);
        }
        for then in settled {
            let hop = self.hop();
            match then {
                Then::Compare(conn) => self.bridge_in(at, hop, BridgeStep::Compare { conn }),
                Then::LinkUp(conn) => self.bridge_in(at, hop, BridgeStep::LinkUp { conn }),
                Then::Stopped => {
                    self.bridge_dies(at, SECOND);
                    return;
                }
            }
        }
    }

    fn ledger_writes(&mut self, at: usize, away: bool) {
        if away {
            return;
        }
        for (stream, seq) in std::mem::take(&mut self.bridges[at].ledger.pending) {
            let log = &mut self.logs[stream];
            if log.locked_until > self.now {
                if self.bridges[at].ledger.pending.insert(stream, seq).is_none() {
                    self.coverage.struck(Fault::RowLocked);
                }
                continue;
            }
            if seq > log.head() {
                let stream_id = log.id.clone();
                let halt = Input::Halt(stream_id, HaltReason::AheadOfAuthority);
                self.bridge_in(at, 0, BridgeStep::Hear(halt));
                continue;
            }
            if seq > log.published {
                log.published = seq;
                say!(self, "authority: stream {stream} is published up to {seq}");
            }
        }
    }
}
