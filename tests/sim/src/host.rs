//! A model of SpacetimeDB with the module's rules in it: frames, heads, grants and acknowledged checkpoints, committed
//! and then durable. Whatever leaves it waits until everything that was committed before it is durable, as with
//! confirmed reads. A restart loses what is not.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use rand::Rng as _;
use rand::seq::SliceRandom as _;
use spacetime_sync_client::session::stream::{Page, SubscriptionId};
use spacetime_sync_lane::CallId;
use spacetime_sync_proto::{Event, Frame, FrameRow, PayloadHash, Position, Refusal, RefusalCode, Seq, StreamId};
use spacetime_sync_rules::append::{Appended, Request, append};
use spacetime_sync_rules::checkpoint::{self, Ack};
use spacetime_sync_rules::log::memory::MemoryLog;
use spacetime_sync_rules::log::{HeadRow, chain_of_held};
use spacetime_sync_rules::retention::{Effort, Window, sweep};
use spacetime_sync_rules::{page, rewind};

use crate::agenda::{MILLISECOND, Micros, SECOND};
use crate::fault::Fault;
use crate::net::{ConnId, FromHost, Party, ToHost};
use crate::setup::{Defect, Setup};
use crate::world::{Step, World, say};

/// A stream in the tables of the module.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    stream_id: StreamId,
    /// The rows. Checkpoints are those of clients, by their number.
    pub(crate) log: MemoryLog,
    /// The head that survives a crash.
    pub(crate) durable: Position,
}

#[derive(Debug, Clone, Copy)]
struct Sub {
    stream: usize,
    id: SubscriptionId,
    after: Seq,
    to: Seq,
}

#[derive(Debug, Clone)]
enum Undo {
    Append {
        stream: usize,
        before: Option<HeadRow>,
        after: Position,
    },
    /// Anything else that happened to a log.
    Log {
        stream: usize,
        before: Box<MemoryLog>,
        after: Position,
    },
    Grant {
        client: usize,
        stream: usize,
        was: bool,
        /// With a grant goes what its holder acknowledged.
        acknowledged: Option<Position>,
    },
    Ack {
        client: usize,
        stream: usize,
        was: Option<Position>,
    },
}

#[derive(Debug)]
pub(crate) enum HostStep {
    /// What was committed up to here is durable.
    Synced {
        up_to: u64,
    },
    /// A procedure has its answer.
    Answers {
        conn: ConnId,
        message: FromHost,
    },
    Snapshot,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) up: bool,
    pub(crate) life: u32,
    pub(crate) tables: Vec<Table>,
    /// What the issuer lets each client see.
    pub(crate) entitled: Vec<Vec<bool>>,
    granted: Vec<Vec<bool>>,
    pub(crate) committed: u64,
    pub(crate) durable: u64,
    pub(crate) slow_until: Micros,
    syncing: bool,
    undo: VecDeque<(u64, Undo)>,
    held_back: VecDeque<(u64, ConnId, FromHost)>,
    /// Connections that are open, as far as the host knows.
    open: BTreeMap<ConnId, Vec<Sub>>,
    snapshots: VecDeque<Vec<Table>>,
}

/// Most events that one step of a rewind removes: fewer than in the module, so that logs of a run take several steps.
const REWIND_EVENTS: u64 = 16;
/// Snapshots that a restore may go back to.
const SNAPSHOTS: usize = 3;

impl Table {
    fn new(stream_id: &StreamId) -> Self {
        Self {
            stream_id: stream_id.clone(),
            log: MemoryLog::default(),
            durable: Position::start(stream_id),
        }
    }

    /// The head row; that of an empty log while the stream does not exist.
    fn held(&self) -> HeadRow {
        self.log.head.unwrap_or_else(|| HeadRow::start(&self.stream_id))
    }

    pub(crate) fn head(&self) -> Position {
        self.held().head
    }

    /// The seq before the first event that is held.
    pub(crate) fn held_after(&self) -> Seq {
        self.held().held_after()
    }

    pub(crate) fn acknowledged(&self, client: usize) -> Option<Position> {
        self.log.checkpoints.get(&(client as u64)).copied()
    }

    fn acknowledges(&mut self, client: usize, checkpoint: Option<Position>) {
        match checkpoint {
            Some(checkpoint) => self.log.checkpoints.insert(client as u64, checkpoint),
            None => self.log.checkpoints.remove(&(client as u64)),
        };
    }
}

impl Undo {
    /// Takes back what was committed, the newest first.
    fn take_back(self, tables: &mut [Table], granted: &mut [Vec<bool>]) {
        match self {
            Self::Append { stream, before, .. } => {
                let log = &mut tables[stream].log;
                log.frames.pop();
                log.head = before;
            }
            Self::Log { stream, before, .. } => tables[stream].log = *before,
            Self::Grant {
                client,
                stream,
                was,
                acknowledged,
            } => {
                granted[client][stream] = was;
                tables[stream].acknowledges(client, acknowledged);
            }
            Self::Ack { client, stream, was } => tables[stream].acknowledges(client, was),
        }
    }
}

impl Host {
    pub(crate) fn new(setup: &Setup, stream_ids: impl Iterator<Item = StreamId>) -> Self {
        let all = |what| vec![vec![what; setup.streams]; setup.clients];
        Self {
            up: true,
            life: 0,
            tables: stream_ids.map(|stream_id| Table::new(&stream_id)).collect(),
            entitled: all(true),
            granted: all(false),
            committed: 0,
            durable: 0,
            slow_until: 0,
            syncing: false,
            undo: VecDeque::new(),
            held_back: VecDeque::new(),
            open: BTreeMap::new(),
            snapshots: VecDeque::new(),
        }
    }
}

impl World {
    pub(crate) fn host_step_in(&mut self, life: u32, after: Micros, step: HostStep) {
        self.agenda.push(self.now + after, Step::Host { life, step });
    }

    pub(crate) fn host_takes(&mut self, step: HostStep) {
        match step {
            HostStep::Synced { up_to } => {
                self.host.syncing = false;
                self.synced(up_to);
                self.sync();
            }
            HostStep::Answers { conn, message } => self.emit(conn, message),
            HostStep::Snapshot => {
                let mut tables = self.host.tables.clone();
                let mut granted = self.host.granted.clone();
                for (_, undo) in self.host.undo.iter().rev() {
                    undo.clone().take_back(&mut tables, &mut granted);
                }
                self.host.snapshots.push_back(tables);
                if self.host.snapshots.len() > SNAPSHOTS {
                    self.host.snapshots.pop_front();
                }
                if !self.quiet {
                    self.host_step_in(self.host.life, SECOND, HostStep::Snapshot);
                }
            }
        }
    }

    /// Begins to make durable what is not, unless that is under way.
    fn sync(&mut self) {
        let host = &mut self.host;
        if host.syncing || host.committed == host.durable {
            return;
        }
        host.syncing = true;
        let slow = self.now < host.slow_until;
        let (life, up_to) = (host.life, host.committed);
        let most = if slow { 1_500 } else { 8 };
        let after = self.dice.work.random_range(200..most * MILLISECOND);
        self.host_step_in(life, after, HostStep::Synced { up_to });
    }

    fn synced(&mut self, up_to: u64) {
        self.host.durable = up_to;
        while let Some((offset, _)) = self.host.undo.front()
            && *offset <= up_to
        {
            let undo = self.host.undo.pop_front().map(|(_, undo)| undo);
            if let Some(Undo::Append { stream, after, .. } | Undo::Log { stream, after, .. }) = undo {
                self.host.tables[stream].durable = after;
            }
        }
        while let Some((offset, ..)) = self.host.held_back.front()
            && *offset <= up_to
        {
            if let Some((_, conn, message)) = self.host.held_back.pop_front() {
                self.send_down(conn, message);
            }
        }
    }

    fn commit(&mut self, undo: Undo) {
        self.host.committed += 1;
        self.host.undo.push_back((self.host.committed, undo));
        self.sync();
    }

    /// Sends something to a party, once everything committed so far is durable.
    fn emit(&mut self, conn: ConnId, message: FromHost) {
        if !self.host.open.contains_key(&conn) {
            return;
        }
        let hasty = self.setup.defect == Some(Defect::AckBeforeDurable) && matches!(message, FromHost::Acked(_));
        if self.host.committed == self.host.durable || hasty {
            return self.send_down(conn, message);
        }
        self.host.held_back.push_back((self.host.committed, conn, message));
    }

    pub(crate) fn host_hears(&mut self, conn: ConnId, message: ToHost) {
        if !self.host.up || self.conns[conn.0].host_life != self.host.life {
            return;
        }
        let party = self.conns[conn.0].party;
        match message {
            ToHost::Hello => {
                self.host.open.insert(conn, Vec::new());
                if let Party::Client(client) = party {
                    self.admit(client);
                }
                self.emit(conn, FromHost::Welcome);
            }
            ToHost::Goodbye => {
                self.host.open.remove(&conn);
            }
            ToHost::Append { call, stream, frame } => self.host_appends(conn, call, stream, frame),
            ToHost::Heads { ask, streams } => {
                let head = |stream: &usize| self.host.tables[*stream].head();
                let heads = streams.iter().map(head).collect();
                self.answer_soon(conn, FromHost::Heads { ask, heads });
            }
            ToHost::Rewind {
                ask,
                stream,
                seen,
                target,
            } => {
                let answer = if self.strikes(Fault::RewindRefused, None, Some(stream)) {
                    self.excuses[stream].halts.insert("refused");
                    Err(Refusal::new(RefusalCode::InvalidArgument, "injected"))
                } else {
                    self.host_rewinds(stream, seen, target)
                };
                self.emit(conn, FromHost::Rewound { ask, answer });
            }
            ToHost::Read { read, stream, after } => {
                let Party::Client(client) = party else { return };
                let answer = self.page(client, stream, after);
                self.answer_soon(conn, FromHost::Page { read, stream, answer });
            }
            ToHost::Subscribe { stream, id, after, to } => self.subscribe(conn, stream, id, after, to),
            ToHost::Unsubscribe { stream, id } => {
                if let Some(subs) = self.host.open.get_mut(&conn) {
                    subs.retain(|sub| (sub.stream, sub.id) != (stream, id));
                }
                self.emit(conn, FromHost::Unsubscribed { stream, id });
            }
            ToHost::Ack { stream, checkpoint } => {
                let Party::Client(client) = party else { return };
                let (seq, answer) = (checkpoint.seq, self.host_acks(client, stream, checkpoint));
                self.emit(conn, FromHost::CheckpointTaken { stream, seq, answer });
            }
        }
    }

    /// A procedure looks at once and answers a little later.
    fn answer_soon(&mut self, conn: ConnId, message: FromHost) {
        let after = self.dice.work.random_range(10..2 * MILLISECOND);
        self.host_step_in(self.host.life, after, HostStep::Answers { conn, message });
    }

    fn host_appends(&mut self, conn: ConnId, call: CallId, stream: usize, frame: FrameRow) {
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
        let request = Request {
            first_seq: frame.first_seq.get(),
            base_chain: frame.base_chain,
            frame: frame.bytes,
        };
        let answer = match self.host_takes_frame(stream, request) {
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

    /// A frame was added: it is committed, and goes to those who subscribed to it.
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
            (self.host.granted[client][stream] && subs.iter().any(sees)).then_some(*conn)
        };
        let seers: Vec<_> = self.host.open.iter().filter_map(see).collect();
        for conn in seers {
            let frame = frame.clone();
            self.emit(conn, FromHost::Row { stream, frame });
        }
    }

    /// One call of `rewind_stream`.
    fn host_rewinds(&mut self, stream: usize, seen: Seq, target: Position) -> Result<(), Refusal> {
        let table = &mut self.host.tables[stream];
        let before = Box::new(table.log.clone());
        let step = match rewind::step(&mut table.log, &table.stream_id, target, seen, REWIND_EVENTS) {
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

    /// A log was changed otherwise than by an append.
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

    /// One call of `read_events`.
    fn page(&mut self, client: usize, stream: usize, after: Seq) -> Result<Page, Option<Refusal>> {
        if self.strikes(Fault::PageFails, Some(client), None) {
            if self.dice.net.random_bool(0.5) {
                return Err(None);
            }
            return Err(Some(Refusal::new(RefusalCode::TokenExpired, "injected")));
        }
        if !self.host.granted[client][stream] {
            return Err(Some(Refusal::new(RefusalCode::ForbiddenStream, "no grant")));
        }
        let table = &self.host.tables[stream];
        let page::Page { held, frames } = page::read(&table.log, &table.stream_id, after, self.setup.host_page_bytes);
        let page = Page {
            head: held.head,
            oldest_seq: held.oldest_seq,
            durable_reads: true,
            frames: frames.into_iter().map(|stored| stored.frame).collect(),
        };
        Ok(self.bend_page(client, stream, page))
    }

    fn subscribe(&mut self, conn: ConnId, stream: usize, id: SubscriptionId, after: Seq, to: Seq) {
        let Party::Client(client) = self.conns[conn.0].party else {
            return;
        };
        if self.strikes(Fault::SubscriptionFails, Some(client), None) {
            return self.emit(conn, FromHost::SubscriptionFailed { stream, id });
        }
        let Some(subs) = self.host.open.get_mut(&conn) else {
            return;
        };
        subs.push(Sub { stream, id, after, to });
        self.send_rows(conn, client, stream, after, to);
        self.emit(conn, FromHost::Subscribed { stream, id });
    }

    /// All rows that a subscription sees at once: they come in any order.
    fn send_rows(&mut self, conn: ConnId, client: usize, stream: usize, after: Seq, to: Seq) {
        if !self.host.granted[client][stream] {
            return;
        }
        let table = &self.host.tables[stream];
        let rows = table.log.frames_after(after).iter().map(|stored| &stored.frame);
        let mut rows: Vec<_> = rows.filter(|row| row.first_seq <= to).cloned().collect();
        rows.shuffle(&mut self.dice.net);
        for frame in rows {
            self.emit(conn, FromHost::Row { stream, frame });
        }
    }

    fn host_acks(&mut self, client: usize, stream: usize, at: Position) -> Result<(), Option<Refusal>> {
        if self.strikes(Fault::AckFails, Some(client), None) {
            return Err(None);
        }
        if !self.host.granted[client][stream] {
            return Err(Some(Refusal::new(RefusalCode::ForbiddenStream, "no grant")));
        }
        let table = &mut self.host.tables[stream];
        let (held, was) = (table.held(), table.acknowledged(client));
        match checkpoint::decide(was, held.head, at, |seq| chain_of_held(&table.log, held, seq)) {
            Ok(Ack::Moved) => {
                table.acknowledges(client, Some(at));
                self.coverage.seen("ack: moved");
                let head = held.head.seq;
                if was.is_some_and(|was| was.seq >= at.seq) || at.seq > head {
                    self.violate("acks", || format!("{was:?} became {at:?}, the head is {head}"));
                }
                self.commit(Undo::Ack { client, stream, was });
                Ok(())
            }
            Ok(Ack::Repeated) => {
                self.coverage.seen("ack: repeated or behind");
                Ok(())
            }
            Err(refusal) => {
                self.coverage.seen(match refusal.code {
                    RefusalCode::CheckpointBehind => "ack: repeated or behind",
                    RefusalCode::CheckpointAhead => "ack: ahead",
                    _ => "ack: another chain",
                });
                Err(Some(refusal))
            }
        }
    }

    /// At connect, the session's token becomes grants.
    fn admit(&mut self, client: usize) {
        for stream in 0..self.setup.streams {
            if self.host.entitled[client][stream] && !self.host.granted[client][stream] {
                self.set_grant(client, stream, true);
            }
        }
    }

    fn set_grant(&mut self, client: usize, stream: usize, granted: bool) {
        let was = std::mem::replace(&mut self.host.granted[client][stream], granted);
        if was == granted {
            return;
        }
        let table = &mut self.host.tables[stream];
        let acknowledged = table.acknowledged(client);
        if !granted {
            table.acknowledges(client, None);
        }
        self.commit(Undo::Grant {
            client,
            stream,
            was,
            acknowledged,
        });
        let conns: Vec<_> = self
            .host
            .open
            .iter()
            .filter(|(conn, _)| self.conns[conn.0].party == Party::Client(client))
            .map(|(conn, subs)| (*conn, subs.clone()))
            .collect();
        for (conn, subs) in conns {
            if granted {
                self.emit(conn, FromHost::GrantCame);
                for sub in subs.iter().filter(|sub| sub.stream == stream) {
                    self.send_rows(conn, client, stream, sub.after, sub.to);
                }
            } else {
                self.emit(conn, FromHost::GrantLost { stream });
            }
        }
    }

    pub(crate) fn revoke(&mut self, client: usize, stream: usize) {
        self.host.entitled[client][stream] = false;
        if self.host.up {
            self.set_grant(client, stream, false);
        }
    }

    pub(crate) fn grant(&mut self, client: usize, stream: usize) {
        self.host.entitled[client][stream] = true;
        if self.host.up {
            self.set_grant(client, stream, true);
        }
    }

    /// The process dies with everything that is not durable, and comes back after a while.
    pub(crate) fn host_dies(&mut self, back_after: Micros) {
        if !self.host.up {
            return;
        }
        let lost = self.host.committed - self.host.durable;
        self.coverage
            .seen_times("durable transactions lost with the host", lost);
        say!(self, "host: dies, {lost} transactions are not durable");
        while let Some((_, undo)) = self.host.undo.pop_back() {
            undo.take_back(&mut self.host.tables, &mut self.host.granted);
        }
        let host = &mut self.host;
        host.committed = host.durable;
        host.held_back.clear();
        host.syncing = false;
        host.up = false;
        host.life += 1;
        let open = std::mem::take(&mut host.open);
        for conn in open.into_keys() {
            if !self.conns[conn.0].silent {
                self.conns[conn.0].left = true;
                let notices = self.now + self.dice.net.random_range(0..100 * MILLISECOND);
                self.agenda.push(notices, Step::Broken { conn });
            }
        }
        self.agenda.push(self.now + back_after, Step::HostStarts);
    }

    pub(crate) fn host_starts(&mut self) {
        self.host.up = true;
        say!(self, "host: is back");
        self.host_step_in(self.host.life, SECOND, HostStep::Snapshot);
        // What was given or taken while it was away is written down by whoever did it.
        for client in 0..self.setup.clients {
            for stream in 0..self.setup.streams {
                if !self.host.entitled[client][stream] {
                    self.set_grant(client, stream, false);
                }
            }
        }
    }

    /// What was durable is not any more: an older snapshot, or nothing, takes its place.
    pub(crate) fn host_set_back(&mut self, wiped: bool) {
        let snapshot = if wiped {
            None
        } else {
            self.host.snapshots.front().cloned()
        };
        if snapshot.is_none() && !wiped {
            return;
        }
        self.host_dies(300 * MILLISECOND);
        let fresh = || self.logs.iter().map(|log| Table::new(&log.id)).collect();
        let tables: Vec<_> = snapshot.unwrap_or_else(fresh);
        if wiped {
            self.host.snapshots.clear();
            self.host.granted = vec![vec![false; self.setup.streams]; self.setup.clients];
        }
        for (stream, table) in tables.into_iter().enumerate() {
            let lost_from = self.host.tables[stream].head().seq;
            let head = table.head().seq;
            if head < lost_from {
                say!(self, "host: stream {stream} is back at {head}");
                self.set_back(stream, lost_from);
            }
            self.host.tables[stream] = table;
        }
    }

    /// An event of another origin is appended at the head, in the bridge's name.
    pub(crate) fn host_takes_foreign(&mut self, stream: usize) -> bool {
        let head = self.host.tables[stream].head();
        if self.is_poisoned(stream) || !self.host.up || head.seq == Seq::ZERO {
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
        self.excuses[stream].foreign = Some(event.clone());
        self.excuses[stream]
            .halts
            .extend(["refused", "diverged", "ahead_of_authority"]);
        let request = Request {
            first_seq: seq.get(),
            base_chain: head.chain,
            frame: Frame::encode(std::slice::from_ref(&event)),
        };
        self.host_takes_frame(stream, request).is_ok()
    }
}
