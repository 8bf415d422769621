//! What happens to the logs in SpacetimeDB: frames are appended, ends are rewound, windows are swept.

use bytes::Bytes;
use rand::Rng as _;
use spacetime_sync_lane::{CallId, ReadyFrame};
use spacetime_sync_proto::{
    ChainHash, Event, Frame, FrameRow, PayloadHash, Position, Refusal, RefusalCode, Sealer as _, Seq,
};
use spacetime_sync_rules::append::{Appended, Request, append};
use spacetime_sync_rules::log::HeadRow;
use spacetime_sync_rules::log::memory::MemoryLog;
use spacetime_sync_rules::retention::{Effort, Window, sweep};
use spacetime_sync_rules::rewind;

use super::{Sub, Undo};
use crate::fault::Fault;
use crate::net::{ConnId, FromHost, Party};
use crate::seal::SimSealer;
use crate::world::{World, say};

/// How many events one step of a rewind removes at most. In the module they are more than a run has: no rewind would
/// take several steps.
const REWIND_EVENTS: u64 = 16;

impl World {
    pub(super) fn host_appends(&mut self, conn: ConnId, call: CallId, stream: usize, frame: ReadyFrame) {
        let Party::Bridge(bridge) = self.conns[conn.0].party else {
            return;
        };
        if self.strikes(Fault::AppendTraps, Some(bridge), None) {
            self.excuses[stream].halts.insert("failing");
            return self.emit(conn, FromHost::Lost(call));
        }
        let unknown = self.strikes(Fault::AppendUnknown, Some(bridge), None);
        if unknown {
            self.excuses[stream].halts.insert("failing");
        }
        let FrameRow {
            first_seq,
            last_seq,
            base_chain,
            bytes,
        } = frame.row;
        let request = Request {
            first_seq: first_seq.get(),
            last_seq: last_seq.get(),
            base_chain,
            last_chain: frame.last_chain,
            last_at_us: frame.last_at_us,
            frame: bytes,
        };
        let before = self.host.tables[stream].head();
        let taken = self.host_takes_frame(stream, request);
        if self.host.tables[stream].head() != before {
            self.host.tables[stream].extended_by = Some(bridge);
        }
        let answer = match taken {
            Ok(()) if unknown => FromHost::Lost(call),
            Ok(()) => FromHost::Acked(call),
            Err(refusal) => {
                say!(self, "host: refuses a frame of {stream}: {:?} {refusal}", refusal.code);
                FromHost::Refused(call, refusal)
            }
        };
        self.emit(conn, answer);
    }

    /// One call of `append_sync_events`.
    fn host_takes_frame(&mut self, stream: usize, request: Request) -> Result<(), Refusal> {
        let table = &mut self.host.tables[stream];
        let (row, before, asked_from) = (table.log.head, table.head(), request.first_seq);
        let answer = append(&mut table.log, &table.stream_id, request);
        match answer {
            Ok(Appended::Extended { .. }) => self.host_holds(stream, row, before, asked_from),
            Ok(Appended::Absorbed) => self.coverage.seen("module: absorbed"),
            Err(refusal) => {
                self.coverage.seen(match refusal.code {
                    RefusalCode::SeqGap => "module: seq_gap",
                    RefusalCode::EventConflict => "module: event_conflict",
                    RefusalCode::ChainMismatch => "module: chain_mismatch",
                    RefusalCode::BelowWindow => "module: below_window",
                    _ => "module: other refusal",
                });
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// Commits a frame that was added, and sends it to its subscribers.
    fn host_holds(&mut self, stream: usize, row: Option<HeadRow>, before: Position, asked_from: u64) {
        let table = &self.host.tables[stream];
        let (after, Some(stored)) = (table.head(), table.log.frames.last()) else {
            return;
        };
        let stored = stored.clone();
        let (first, last) = (stored.frame.first_seq, stored.frame.last_seq);
        self.coverage.seen(if first.get() > asked_from {
            "module: cut and extended"
        } else {
            "module: extended"
        });
        say!(self, "host: holds {first}..={last} of stream {stream}");
        self.check_frame(stream, before, &stored, after);
        let frame = stored.frame;
        self.commit(Undo::Append {
            stream,
            before: row,
            after,
        });
        let see = |(conn, subs): (&ConnId, &Vec<Sub>)| {
            let Party::Client(client) = self.conns[conn.0].party else {
                return None;
            };
            let sees = |sub: &Sub| sub.stream == stream && frame.last_seq > sub.after && frame.first_seq <= sub.to;
            let is_shown = self
                .withheld_after(client, stream)
                .is_none_or(|shown| frame.last_seq <= shown.seq);
            (self.host.granted[client][stream] && is_shown && subs.iter().any(sees)).then_some(*conn)
        };
        let seers: Vec<_> = self.host.open.iter().filter_map(see).collect();
        for conn in seers {
            let frame = frame.clone();
            self.emit(conn, FromHost::Row { stream, frame });
        }
    }

    /// One call of `rewind_stream`.
    pub(super) fn host_rewinds(
        &mut self,
        bridge: usize,
        stream: usize,
        seen: Position,
        target: Position,
    ) -> Result<Position, Refusal> {
        let table = &mut self.host.tables[stream];
        if table.head() != seen && table.extended_by.is_some_and(|by| by != bridge) {
            self.coverage.seen("module: rewind after another bridge appended");
        }
        let before = Box::new(table.log.clone());
        let reach = seen.seq.minus(REWIND_EVENTS);
        let seal = SimSealer.seal(&table.stream_id, &target);
        let (step, left) = match rewind::step(
            &mut table.log,
            &table.stream_id,
            target,
            seal.as_ref(),
            seen,
            REWIND_EVENTS,
        ) {
            Ok(taken) => taken,
            Err(refusal) => {
                self.coverage.seen("module: another head than was seen");
                return Err(refusal);
            }
        };
        self.coverage.seen(match step {
            rewind::Step::Done => "module: nothing to rewind",
            // What it would cut through cannot be read.
            rewind::Step::Cut { after } if after < reach => "module: log cut before its place",
            rewind::Step::Cut { .. } => "module: log cut",
            rewind::Step::Drop => "module: broken log dropped",
            rewind::Step::Begin => "module: window begun anew",
        });
        self.host_changed(stream, before);
        if step == rewind::Step::Drop {
            self.violate("I7", || {
                format!("stream {stream}: no row is missing, but the oldest events were dropped")
            });
        }
        Ok(left)
    }

    /// Commits any other change of a log.
    fn host_changed(&mut self, stream: usize, before: Box<MemoryLog>) {
        let table = &self.host.tables[stream];
        let (held_after, after) = (table.held_after(), table.head());
        say!(
            self,
            "host: stream {stream} is held after {held_after}, and ends at {}",
            after.seq
        );
        self.commit(Undo::Log { stream, before, after });
    }

    /// One sweep of a stream whose window is bounded. Returns whether anything was removed.
    pub(crate) fn host_sweeps(&mut self, stream: usize) -> bool {
        let Some(events) = self.setup.window().filter(|_| self.host.up) else {
            return false;
        };
        let window = Window {
            events,
            age_us: i64::MAX,
        };
        let table = &mut self.host.tables[stream];
        let before = Box::new(table.log.clone());
        sweep(&mut table.log, window, 0, &mut Effort::default());
        if table.log == *before {
            return false;
        }
        let (head, held_after) = (table.head().seq, table.held_after());
        self.host_changed(stream, before);
        let kept = head.since(held_after);
        if kept < events.min(head.get()) {
            self.violate("I7", || {
                format!("stream {stream}: the window is {events} events, {kept} are held")
            });
        }
        true
    }

    /// Appends events of another origin at the head, with the rights of the bridge. They may be no events at all.
    pub(crate) fn host_takes_foreign(&mut self, stream: usize) -> bool {
        let head = self.host.tables[stream].head();
        if self.is_poisoned(stream) || self.excuses[stream].is_foreign(head) || !self.host.up || head.seq == Seq::ZERO {
            return false;
        }
        let Some(model) = self.logs[stream].events.first().cloned() else {
            return false;
        };
        // One step of a rewind may not reach before them.
        let stated = if self.dice.work.random_bool(0.5) {
            1
        } else {
            self.dice.work.random_range(2..=40)
        };
        // One more than is stated.
        let events = invented(head, &model, stated + 1);
        let honest = &events[..stated];
        let of = |event: &Event| Position {
            seq: event.seq,
            chain: event.chain_hash,
        };
        let mut end = honest.last().map_or(head, of);
        let replayed = SimSealer.seal(&self.logs[stream].id, &head);
        // Clients that may not ask the authority stop at a page that does not lead to the head that it states.
        let kinds = if self.setup.bounds.history { 6 } else { 5 };
        let kind = head.seq.next().get() % kinds;
        let frame = match kind {
            // Whoever invents it may show the seal of another position.
            0 => Frame::encode(honest, replayed.as_ref()),
            1 => Frame::encode(honest, None),
            2 => vec![0xff; Frame::least_bytes(stated)].into(),
            3 => Frame::encode(&events, None),
            4 => Frame::encode(&events[..stated - 1], None),
            _ => {
                end.chain = ChainHash::from_bytes([end.seq.get() as u8; 32]);
                Frame::encode(honest, None)
            }
        };
        let ends = honest.iter().map(of).chain([end]);
        self.excuses[stream].foreign.extend(ends.map(|end| (head.seq, end)));
        let request = Request {
            first_seq: head.seq.next().get(),
            last_seq: end.seq.get(),
            base_chain: head.chain,
            last_chain: end.chain,
            last_at_us: 1,
            frame,
        };
        let is_taken = self.host_takes_frame(stream, request).is_ok();
        if is_taken && kind > 1 {
            self.coverage.seen("module: took what is no such frame");
        }
        is_taken
    }
}

/// So many events after a position, all of another origin. They have key and kind of `model`.
fn invented(after: Position, model: &Event, events: usize) -> Vec<Event> {
    let payload = Bytes::from_static(b"of another origin");
    let payload_hash = PayloadHash::of(&payload);
    let mut before = after;
    let invent = |_| {
        let seq = before.seq.next();
        let (key, kind) = (&model.idempotency_key, &model.kind);
        let chain_hash = before.chain.link(seq, 1, &payload_hash, key, kind);
        before = Position { seq, chain: chain_hash };
        Event {
            seq,
            payload: payload.clone(),
            payload_hash,
            chain_hash,
            committed_at_us: 1,
            ..model.clone()
        }
    };
    (0..events).map(invent).collect()
}
