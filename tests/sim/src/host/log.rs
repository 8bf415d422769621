//! What happens to the logs in SpacetimeDB: frames are appended, ends are rewound, windows are swept.

use bytes::Bytes;
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
        let frame = stored.frame.clone();
        let (first, last) = (frame.first_seq, frame.last_seq);
        self.coverage.seen(if first.get() > asked_from {
            "module: cut and extended"
        } else {
            "module: extended"
        });
        say!(self, "host: holds {first}..={last} of stream {stream}");
        self.check_frame(stream, before, &frame, after);
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
    ) -> Result<(), Refusal> {
        let table = &mut self.host.tables[stream];
        if table.head() != seen && table.extended_by.is_some_and(|by| by != bridge) {
            self.coverage.seen("module: rewind after another bridge appended");
        }
        let before = Box::new(table.log.clone());
        let seal = SimSealer.seal(&table.stream_id, &target);
        let step = match rewind::step(
            &mut table.log,
            &table.stream_id,
            target,
            seal.as_ref(),
            seen,
            REWIND_EVENTS,
        ) {
            Ok(step) => step,
            Err(refusal) => {
                self.coverage.seen("module: another head than was seen");
                return Err(refusal);
            }
        };
        self.coverage.seen(match step {
            rewind::Step::Done => "module: nothing to rewind",
            rewind::Step::Cut { .. } => "module: log cut",
            rewind::Step::Drop => "module: broken log dropped",
            rewind::Step::Begin => "module: window begun anew",
        });
        self.host_changed(stream, before);
        Ok(())
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

    /// Appends an event of another origin at the head, with the rights of the bridge. It may be no event at all.
    pub(crate) fn host_takes_foreign(&mut self, stream: usize) -> bool {
        let head = self.host.tables[stream].head();
        if self.is_poisoned(stream) || self.excuses[stream].is_foreign(head) || !self.host.up || head.seq == Seq::ZERO {
            return false;
        }
        let Some(model) = self.logs[stream].events.first().cloned() else {
            return false;
        };
        let payload = Bytes::from_static(b"of another origin");
        let payload_hash = PayloadHash::of(&payload);
        let seq = head.seq.next();
        let event = Event {
            seq,
            payload,
            payload_hash,
            chain_hash: head
                .chain
                .link(seq, 1, &payload_hash, &model.idempotency_key, &model.kind),
            committed_at_us: 1,
            ..model
        };
        let stream_id = &self.logs[stream].id;
        let replayed = SimSealer.seal(stream_id, &head);
        let mut last_chain = event.chain_hash;
        // Clients that may not ask the authority stop at what is no frame.
        let kinds = if self.setup.bounds.history { 5 } else { 2 };
        let frame = match seq.get() % kinds {
            // Whoever invents it may show the seal of another position.
            0 => Frame::encode(std::slice::from_ref(&event), replayed.as_ref()),
            1 => Frame::encode(std::slice::from_ref(&event), None),
            2 => Bytes::from_static(b"no frame"),
            // One more event than is stated.
            3 => Frame::encode(&[event.clone(), event], None),
            _ => {
                last_chain = ChainHash::from_bytes([seq.get() as u8; 32]);
                Frame::encode(std::slice::from_ref(&event), None)
            }
        };
        self.excuses[stream].foreign.push(Position { seq, chain: last_chain });
        let request = Request {
            first_seq: seq.get(),
            last_seq: seq.get(),
            base_chain: head.chain,
            last_chain,
            last_at_us: 1,
            frame,
        };
        let is_taken = self.host_takes_frame(stream, request).is_ok();
        if is_taken && seq.get() % kinds > 1 {
            self.coverage.seen("module: took what is no such frame");
        }
        is_taken
    }
}
