//! A model of SpacetimeDB with the module's shipped rules. It holds frames, heads, grants and acknowledged checkpoints.
//! What is committed becomes durable later, and a crash loses it until then. As with confirmed reads, every message
//! waits until everything that was committed before it is durable.

mod life;
mod log;
mod readers;
mod work;

use std::collections::{BTreeMap, VecDeque};

use rand::Rng as _;
use spacetime_sync_client::session::stream::SubscriptionId;
use spacetime_sync_proto::{Frame, FrameRow, Position, Refusal, RefusalCode, Seq, StreamId};
use spacetime_sync_rules::journal::memory::MemoryJournal;
use spacetime_sync_rules::log::memory::MemoryLog;
use spacetime_sync_rules::log::{HeadRow, StoredFrame};
use spacetime_sync_rules::page;

use crate::agenda::{MILLISECOND, Micros, SECOND};
use crate::fault::Fault;
use crate::net::{ConnId, FromHost, Party, ToHost};
use crate::setup::{Defect, Setup};
use crate::world::{Step, World};

pub(crate) use work::{JournalAnswer, JournalCall, SWEEP, as_shown, assignment_of};

/// A stream in the module's tables.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    stream_id: StreamId,
    /// The rows. The key of a checkpoint is the number of its client.
    pub(crate) log: MemoryLog,
    /// The head that survives a crash.
    pub(crate) durable: Position,
    /// The bridge that extended it last.
    extended_by: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Sub {
    stream: usize,
    id: SubscriptionId,
    after: Seq,
    to: Seq,
}

/// How to take back a transaction that a crash loses.
#[derive(Debug, Clone)]
enum Undo {
    Append {
        stream: usize,
        before: Option<HeadRow>,
        after: Position,
    },
    /// Any other change of a log.
    Log {
        stream: usize,
        before: Box<MemoryLog>,
        after: Position,
    },
    Grant {
        client: usize,
        stream: usize,
        was: bool,
        /// What the client had acknowledged. It is deleted together with a grant.
        acknowledged: Option<Position>,
    },
    Ack {
        client: usize,
        stream: usize,
        was: Option<Position>,
    },
    /// Any change of assignments and of the journal, which are small.
    Work(Box<MemoryJournal>),
}

#[derive(Debug)]
pub(crate) enum HostStep {
    /// Everything that was committed up to here is durable.
    Synced {
        up_to: u64,
    },
    /// A procedure answers.
    Answers {
        conn: ConnId,
        message: FromHost,
    },
    Snapshot,
    /// The module does what the clock says.
    Sweep,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) up: bool,
    pub(crate) life: u32,
    pub(crate) tables: Vec<Table>,
    /// Which streams the issuer lets each client read.
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
    snapshots: VecDeque<(Vec<Table>, MemoryJournal)>,
    /// Assignments, and the journal.
    pub(crate) work: MemoryJournal,
    /// Whether it was restored, and no bridge has opened the journal since.
    pub(crate) is_stale: bool,
    /// From which clients it keeps back what follows a position of a stream, and until when.
    withheld: BTreeMap<(usize, usize), (Position, Micros)>,
}

/// How many snapshots are kept. A restore goes back to the oldest.
const SNAPSHOTS: usize = 3;

impl Table {
    fn new(stream_id: &StreamId) -> Self {
        Self {
            stream_id: stream_id.clone(),
            log: MemoryLog::default(),
            durable: Position::start(stream_id),
            extended_by: None,
        }
    }

    /// The head row, or that of an empty log if the stream does not exist.
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
    /// Takes back one transaction, which must be the newest.
    fn take_back(self, tables: &mut [Table], granted: &mut [Vec<bool>], work: &mut MemoryJournal) {
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
            Self::Work(before) => *work = *before,
        }
    }
}

/// The frame of a row, if it is what the row states.
pub(crate) fn frame_of(stored: &StoredFrame) -> Option<Frame> {
    let FrameRow {
        first_seq,
        last_seq,
        base_chain,
        ref bytes,
    } = stored.frame;
    let frame = Frame::decode(first_seq.get(), base_chain, bytes.clone()).ok()?;
    (frame.last_seq() == last_seq && frame.last_at_us() == stored.last_at_us).then_some(frame)
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
            work: MemoryJournal::default(),
            is_stale: false,
            withheld: BTreeMap::new(),
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
                let mut work = self.host.work.clone();
                for (_, undo) in self.host.undo.iter().rev() {
                    undo.clone().take_back(&mut tables, &mut granted, &mut work);
                }
                self.host.snapshots.push_back((tables, work));
                if self.host.snapshots.len() > SNAPSHOTS {
                    self.host.snapshots.pop_front();
                }
                if !self.quiet {
                    self.host_step_in(self.host.life, SECOND, HostStep::Snapshot);
                }
            }
            HostStep::Sweep => {
                self.host_sweeps_work();
                self.host_step_in(self.host.life, SWEEP, HostStep::Sweep);
            }
        }
    }

    /// Begins to make durable what is committed, unless that is under way.
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
                self.excuses[stream].becomes_durable(after);
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

    /// Sends a message to a party once everything that is committed is durable.
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
            ToHost::Tail { ask, stream } => {
                let table = &self.host.tables[stream];
                let frame = table.log.frames.last().cloned();
                let head = table.head();
                self.answer_soon(conn, FromHost::Tail { ask, head, frame });
            }
            ToHost::Frames { ask, stream, after } => {
                let table = &self.host.tables[stream];
                let page::Page { held, frames } =
                    page::read(&table.log, &table.stream_id, after, self.setup.host_page_bytes);
                let answer = FromHost::Frames {
                    ask,
                    oldest: held.oldest_seq,
                    head: held.head,
                    frames,
                };
                self.answer_soon(conn, answer);
            }
            ToHost::Rewind {
                ask,
                stream,
                seen,
                target,
            } => {
                let Party::Bridge(bridge) = party else { return };
                let answer = if self.strikes(Fault::RewindRefused, None, Some(stream)) {
                    self.excuses[stream].halts.insert("refused");
                    Err(Refusal::new(RefusalCode::InvalidArgument, "injected"))
                } else {
                    self.host_rewinds(bridge, stream, seen, target)
                };
                self.emit(conn, FromHost::Rewound { ask, answer });
            }
            ToHost::Journal { ask, call } => self.host_journals(conn, ask, call),
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

    /// Sends the answer of a procedure, which has read the tables and takes a little longer to answer.
    fn answer_soon(&mut self, conn: ConnId, message: FromHost) {
        let after = self.dice.work.random_range(10..2 * MILLISECOND);
        self.host_step_in(self.host.life, after, HostStep::Answers { conn, message });
    }
}
