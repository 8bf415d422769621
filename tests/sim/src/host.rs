//! A model of SpacetimeDB with the module's rules in it: frames, heads, grants and acknowledged checkpoints, committed
//! and then durable. Whatever leaves it waits until everything that was committed before it is durable, as with
//! confirmed reads. A restart loses what is not.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use rand::Rng as _;
use rand::seq::SliceRandom as _;
use spacetime_sync_client::apply::{Page, SubscriptionId};
use spacetime_sync_lane::{CallId, Prepared};
use spacetime_sync_proto::{ChainHash, Event, Frame, FrameRow, PayloadHash, Position, Refusal, RefusalCode, Seq};
use spacetime_sync_rules::append::{self, Append, Request};
use spacetime_sync_rules::checkpoint::{self, Ack};
use spacetime_sync_rules::retention::Window;
use spacetime_sync_rules::rewind;

use crate::agenda::{MILLISECOND, Micros, SECOND};
use crate::fault::Fault;
use crate::net::{ConnId, FromHost, Party, ToHost};
use crate::setup::{Defect, Setup};
use crate::world::{Step, World, say};

#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) frames: Vec<FrameRow>,
    pub(crate) head: Position,
    /// The position before the first event that is held.
    pub(crate) floor: Seq,
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

#[derive(Debug)]
enum Undo {
    Append {
        stream: usize,
        before: Position,
        after: Position,
    },
    /// Anything else that happened to a table.
    Table {
        stream: usize,
        before: Box<Table>,
        after: Position,
    },
    Grant {
        client: usize,
        stream: usize,
        was: bool,
    },
    Ack {
        client: usize,
        stream: usize,
        was: Option<Position>,
    },
}

#[derive(Debug, Clone)]
struct Snapshot {
    tables: Vec<Table>,
    acks: Vec<Vec<Option<Position>>>,
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
    pub(crate) acks: Vec<Vec<Option<Position>>>,
    pub(crate) committed: u64,
    pub(crate) durable: u64,
    pub(crate) slow_until: Micros,
    syncing: bool,
    undo: VecDeque<(u64, Undo)>,
    held_back: VecDeque<(u64, ConnId, FromHost)>,
    /// Connections that are open, as far as the host knows.
    open: BTreeMap<ConnId, Vec<Sub>>,
    snapshots: VecDeque<Snapshot>,
}

/// Most events that one step of a rewind removes.
const REWIND_EVENTS: u64 = 16;
/// Snapshots that a restore may go back to.
const SNAPSHOTS: usize = 3;

impl Table {
    fn empty(start: Position) -> Self {
        Self {
            frames: Vec::new(),
            head: start,
            floor: start.seq,
            durable: start,
        }
    }

    /// The chain hash of an event that is held.
    fn chain_at(&self, seq: Seq) -> Option<ChainHash> {
        let at = self.frames.partition_point(|frame| frame.last_seq < seq);
        let frame = self.frames.get(at)?;
        Frame::decode(frame.first_seq.get(), frame.base_chain, frame.bytes.clone())
            .ok()?
            .chain_at(seq)
    }

    /// Removes the events after a position; a frame that the cut goes through is written anew.
    fn cut(&mut self, after: Seq) {
        let whole = self.frames.partition_point(|frame| frame.last_seq <= after);
        let through = self.frames.drain(whole..).next();
        let Some(first) = through else { return };
        self.head = Position {
            seq: after,
            chain: first.base_chain,
        };
        if first.first_seq <= after
            && let Ok(frame) = Frame::decode(first.first_seq.get(), first.base_chain, first.bytes.clone())
            && let Some(chain) = frame.chain_at(after)
            && let Some(bytes) = frame.encode_until(after)
        {
            self.head.chain = chain;
            self.frames.push(FrameRow {
                last_seq: after,
                bytes,
                ..first
            });
        }
    }

    fn frames_after(&self, after: Seq) -> &[FrameRow] {
        &self.frames[self.frames.partition_point(|frame| frame.last_seq <= after)..]
    }
}

impl Host {
    pub(crate) fn new(setup: &Setup, starts: impl Iterator<Item = Position>) -> Self {
        let all = |what| vec![vec![what; setup.streams]; setup.clients];
        Self {
            up: true,
            life: 0,
            tables: starts.map(Table::empty).collect(),
            entitled: all(true),
            granted: all(false),
            acks: vec![vec![None; setup.streams]; setup.clients],
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
                let tables = self.host.tables.iter().map(|table| Table {
                    head: table.durable,
                    floor: table.floor.min(table.durable.seq),
                    frames: {
                        let durable = table
                            .frames
                            .partition_point(|frame| frame.last_seq <= table.durable.seq);
                        table.frames[..durable].to_vec()
                    },
                    durable: table.durable,
                });
                let snapshot = Snapshot {
                    tables: tables.collect(),
                    acks: self.host.acks.clone(),
                };
                self.host.snapshots.push_back(snapshot);
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
            if let Some(Undo::Append { stream, after, .. } | Undo::Table { stream, after, .. }) = undo {
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
            ToHost::Append { call, stream, prepared } => self.host_appends(conn, call, stream, prepared),
            ToHost::Heads { ask, streams } => {
                let held = |stream: &usize| self.host.tables[*stream].head;
                let heads = streams.iter().map(held).collect();
                self.answer_soon(conn, FromHost::Heads { ask, heads });
            }
            ToHost::Rewind {
                ask,
                stream,
                seen,
                target,
            } => {
                // A head in the answer says that it is another than the bridge saw.
                let heads = self.host_rewinds(stream, seen, target).into_iter().collect();
                self.emit(conn, FromHost::Heads { ask, heads });
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
            }
            ToHost::Ack { stream, checkpoint } => {
                if let Party::Client(client) = party {
                    self.host_acks(client, stream, checkpoint);
                }
            }
        }
    }

    /// A procedure looks at once and answers a little later.
    fn answer_soon(&mut self, conn: ConnId, message: FromHost) {
        let after = self.dice.work.random_range(10..2 * MILLISECOND);
        self.host_step_in(self.host.life, after, HostStep::Answers { conn, message });
    }

    fn host_appends(&mut self, conn: ConnId, call: CallId, stream: usize, prepared: Prepared) {
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
            first_seq: prepared.first_seq.get(),
            base_chain: prepared.base_chain,
            frame: prepared.frame,
        };
        let answer = match self.decide(stream, request) {
            Ok(()) if unknown => FromHost::Lost(call),
            Ok(()) => FromHost::Acked(call),
            Err(refusal) => {
                say!(self, "host: refuses a frame of {stream}: {:?} {refusal}", refusal.code);
                FromHost::Refused(call, refusal)
            }
        };
        self.emit(conn, answer);
    }

    /// What the reducer does: asks the rules, writes what they say.
    fn decide(&mut self, stream: usize, request: Request) -> Result<(), Refusal> {
        let table = &self.host.tables[stream];
        let before = table.head;
        let asked_from = request.first_seq;
        let decided = append::decide(before, request, |seq| table.chain_at(seq));
        let what = match &decided {
            Ok(Append::Absorbed) => "module: absorbed",
            Ok(Append::Extend { first_seq, .. }) if first_seq.get() > asked_from => "module: cut and extended",
            Ok(Append::Extend { .. }) => "module: extended",
            Err(refusal) => match refusal.code {
                RefusalCode::SeqGap => "module: seq_gap",
                RefusalCode::EventConflict => "module: event_conflict",
                RefusalCode::ChainMismatch => "module: chain_mismatch",
                _ => "module: other refusal",
            },
        };
        self.coverage.seen(what);
        let Append::Extend {
            first_seq, frame, head, ..
        } = decided?
        else {
            return Ok(());
        };
        self.host_writes(stream, first_seq, frame, head);
        Ok(())
    }

    fn host_writes(&mut self, stream: usize, first_seq: Seq, bytes: Bytes, head: Position) {
        let before = self.host.tables[stream].head;
        let frame = FrameRow {
            first_seq,
            last_seq: head.seq,
            base_chain: before.chain,
            bytes,
        };
        say!(
            self,
            "host: holds {}..={} of stream {stream}",
            frame.first_seq,
            frame.last_seq
        );
        self.check_frame(stream, before, &frame, head);
        let table = &mut self.host.tables[stream];
        table.frames.push(frame.clone());
        table.head = head;
        self.commit(Undo::Append {
            stream,
            before,
            after: head,
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

    /// As the reducer: step by step, each a transaction.
    fn host_rewinds(&mut self, stream: usize, seen: Seq, target: Position) -> Option<Position> {
        let (table, mut first) = (&self.host.tables[stream], true);
        let now = table.head;
        loop {
            let table = &self.host.tables[stream];
            let held = rewind::Extent {
                floor: table.floor,
                head: table.head,
            };
            if std::mem::take(&mut first) && rewind::is_as_seen(held, seen).is_err() {
                self.coverage.seen("module: another head than was seen");
                return Some(now);
            }
            let table = &self.host.tables[stream];
            let there = if target.seq == table.floor {
                table
                    .frames
                    .first()
                    .map_or(Some(table.head.chain), |first| Some(first.base_chain))
            } else {
                table.chain_at(target.seq)
            };
            let step = rewind::decide(held, target, there, REWIND_EVENTS);
            let before = Box::new(table.clone());
            let table = &mut self.host.tables[stream];
            match step {
                rewind::Step::Done => return None,
                rewind::Step::Cut { after } => {
                    table.cut(after);
                    self.coverage.seen("module: log cut");
                }
                rewind::Step::Begin => {
                    table.head = target;
                    table.floor = target.seq;
                    self.coverage.seen("module: window begun anew");
                }
            }
            let after = self.host.tables[stream].head;
            say!(self, "host: stream {stream} ends at {} now", after.seq);
            self.commit(Undo::Table { stream, before, after });
        }
    }

    /// What is past the window goes, in whole frames.
    pub(crate) fn host_sweeps(&mut self, stream: usize) -> bool {
        let Some(events) = self.setup.window().filter(|_| self.host.up) else {
            return false;
        };
        let window = Window {
            events,
            age_us: i64::MAX,
        };
        let table = &self.host.tables[stream];
        let to = window.past_count(table.head.seq.get());
        let gone = table.frames.partition_point(|frame| frame.first_seq.get() <= to);
        if gone == 0 {
            return false;
        }
        let (before, after) = (Box::new(table.clone()), table.head);
        let table = &mut self.host.tables[stream];
        table.frames.drain(..gone);
        table.floor = table
            .frames
            .first()
            .map_or(after.seq, |first| first.first_seq.previous());
        let floor = table.floor;
        say!(self, "host: stream {stream} is held after {floor} only");
        self.commit(Undo::Table { stream, before, after });
        // A frame that the limit goes through leaves whole.
        let longest = self.setup.page.events as u64;
        let kept = after.seq.since(floor);
        if kept + longest < events.min(after.seq.get()) {
            self.violate("I7", || {
                format!("stream {stream}: the window is {events} events, {kept} are held")
            });
        }
        true
    }

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
        let head = table.head;
        let mut bytes = 0;
        let held = if after < table.floor {
            &[]
        } else {
            table.frames_after(after)
        };
        let frames: Vec<_> = held
            .iter()
            .enumerate()
            .take_while(|(at, frame)| {
                bytes += frame.bytes.len();
                *at == 0 || bytes <= self.setup.host_page_bytes
            })
            .map(|(_, frame)| frame.clone())
            .collect();
        let page = Page {
            head,
            oldest_seq: table.floor.next(),
            durable_reads: true,
            frames,
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
        let mut rows: Vec<_> = table
            .frames_after(after)
            .iter()
            .filter(|row| row.first_seq <= to)
            .cloned()
            .collect();
        rows.shuffle(&mut self.dice.net);
        for frame in rows {
            self.emit(conn, FromHost::Row { stream, frame });
        }
    }

    fn host_acks(&mut self, client: usize, stream: usize, at: Position) {
        if !self.host.granted[client][stream] {
            return;
        }
        let table = &self.host.tables[stream];
        let was = self.host.acks[client][stream];
        let previous = was.map(|was| (was.seq, was.chain));
        match checkpoint::decide(previous, table.head, at.seq, at.chain, |seq| table.chain_at(seq)) {
            Ok(Ack::Moved) => {
                self.coverage.seen("ack: moved");
                if was.is_some_and(|was| was.seq >= at.seq) || at.seq > table.head.seq {
                    let head = table.head.seq;
                    self.violate("acks", || format!("{was:?} became {at:?}, the head is {head}"));
                }
                self.host.acks[client][stream] = Some(at);
                self.commit(Undo::Ack { client, stream, was });
            }
            Ok(Ack::Repeated) => self.coverage.seen("ack: repeated or behind"),
            Err(refusal) => match refusal.code {
                RefusalCode::CheckpointBehind => self.coverage.seen("ack: repeated or behind"),
                RefusalCode::CheckpointAhead => self.coverage.seen("ack: ahead"),
                _ => self.coverage.seen("ack: another chain"),
            },
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
        self.commit(Undo::Grant { client, stream, was });
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
            match undo {
                Undo::Append { stream, before, .. } => {
                    let table = &mut self.host.tables[stream];
                    table.frames.pop();
                    table.head = before;
                }
                Undo::Table { stream, before, .. } => {
                    let table = &mut self.host.tables[stream];
                    table.frames = before.frames;
                    table.head = before.head;
                    table.floor = before.floor;
                }
                Undo::Grant { client, stream, was } => self.host.granted[client][stream] = was,
                Undo::Ack { client, stream, was } => self.host.acks[client][stream] = was,
            }
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
        let (tables, acks) = match snapshot {
            Some(snapshot) => (snapshot.tables, snapshot.acks),
            None => (
                self.logs.iter().map(|log| Table::empty(log.start)).collect(),
                vec![vec![None; self.setup.streams]; self.setup.clients],
            ),
        };
        if wiped {
            self.host.snapshots.clear();
            self.host.granted = vec![vec![false; self.setup.streams]; self.setup.clients];
        }
        for (stream, table) in tables.into_iter().enumerate() {
            let lost_from = self.host.tables[stream].head.seq;
            if table.head.seq < lost_from {
                say!(self, "host: stream {stream} is back at {}", table.head.seq);
                self.set_back(stream, lost_from);
            }
            self.host.tables[stream] = table;
        }
        self.host.acks = acks;
    }

    /// An event of another origin is appended at the head, in the bridge's name.
    pub(crate) fn host_takes_foreign(&mut self, stream: usize) -> bool {
        if self.is_poisoned(stream) || !self.host.up || self.host.tables[stream].head.seq.get() == 0 {
            return false;
        }
        let head = self.host.tables[stream].head;
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
        let frame = Frame::encode(std::slice::from_ref(&event));
        let head = Position {
            seq,
            chain: event.chain_hash,
        };
        self.host_writes(stream, seq, frame, head);
        true
    }
}
