//! A model of the connections to SpacetimeDB. As over TCP, messages on one connection arrive in order and once. They
//! may be late, and when a connection breaks, messages in flight may or may not have arrived.

use rand::Rng as _;
use spacetime_sync_client::session::stream::{Page, SubscriptionId};
use spacetime_sync_lane::{CallId, ReadyFrame, RequestId};
use spacetime_sync_proto::{FrameRow, Position, Refusal, Seq};
use spacetime_sync_rules::log::StoredFrame;

use crate::agenda::{MILLISECOND, Micros, SECOND};
use crate::fault::Fault;
use crate::host::{JournalAnswer, JournalCall};
use crate::world::{Step, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnId(pub(crate) usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Party {
    Bridge(usize),
    Client(usize),
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) party: Party,
    /// The life of the host that it belongs to.
    pub(crate) host_life: u32,
    /// Nothing passes any more, and neither side knows.
    pub(crate) silent: bool,
    /// Its party has given it up.
    pub(crate) left: bool,
    up_at: Micros,
    down_at: Micros,
    late_until: Micros,
}

#[derive(Debug)]
pub(crate) enum ToHost {
    Hello,
    Goodbye,
    Append {
        call: CallId,
        stream: usize,
        frame: ReadyFrame,
    },
    Heads {
        ask: RequestId,
        streams: Vec<usize>,
    },
    /// The last frame of a stream.
    Tail {
        ask: RequestId,
        stream: usize,
    },
    /// The frames of a stream after a seq.
    Frames {
        ask: RequestId,
        stream: usize,
        after: Seq,
    },
    Rewind {
        ask: RequestId,
        stream: usize,
        /// The head that the bridge saw.
        seen: Position,
        target: Position,
    },
    Journal {
        ask: RequestId,
        call: JournalCall,
    },
    Read {
        read: u64,
        stream: usize,
        after: Seq,
    },
    Subscribe {
        stream: usize,
        id: SubscriptionId,
        after: Seq,
        to: Seq,
    },
    Unsubscribe {
        stream: usize,
        id: SubscriptionId,
    },
    Ack {
        stream: usize,
        checkpoint: Position,
    },
}

#[derive(Debug)]
pub(crate) enum FromHost {
    Welcome,
    Acked(CallId),
    Refused(CallId, Refusal),
    Lost(CallId),
    Heads {
        ask: RequestId,
        heads: Vec<Position>,
    },
    /// Where a stream ends, and its last frame.
    Tail {
        ask: RequestId,
        head: Position,
        frame: Option<StoredFrame>,
    },
    /// What a stream holds after a position.
    Frames {
        ask: RequestId,
        oldest: Seq,
        head: Position,
        frames: Vec<StoredFrame>,
    },
    /// The answer to one step of a rewind: the head that it left.
    Rewound {
        ask: RequestId,
        answer: Result<Position, Refusal>,
    },
    Journal {
        ask: RequestId,
        answer: JournalAnswer,
    },
    Page {
        read: u64,
        stream: usize,
        answer: Result<Page, Option<Refusal>>,
    },
    Row {
        stream: usize,
        frame: FrameRow,
    },
    Subscribed {
        stream: usize,
        id: SubscriptionId,
    },
    /// A subscription that was given up has ended.
    Unsubscribed {
        stream: usize,
        id: SubscriptionId,
    },
    SubscriptionFailed {
        stream: usize,
        id: SubscriptionId,
    },
    /// The answer to an acknowledgement of a client.
    CheckpointTaken {
        stream: usize,
        seq: Seq,
        answer: Result<(), Option<Refusal>>,
    },
    GrantCame,
    GrantLost {
        stream: usize,
    },
}

impl World {
    pub(crate) fn latency(&mut self) -> Micros {
        // Mostly fast, sometimes slow.
        let most = if self.dice.net.random_bool(0.05) { 60 } else { 3 };
        self.dice.net.random_range(50..most * MILLISECOND)
    }

    /// Opens a connection. Its party sends a hello with it.
    pub(crate) fn dial(&mut self, party: Party) -> ConnId {
        let conn = ConnId(self.conns.len());
        self.conns.push(Conn {
            party,
            host_life: self.host.life,
            silent: false,
            left: false,
            up_at: 0,
            down_at: 0,
            late_until: 0,
        });
        self.send_up(conn, ToHost::Hello);
        conn
    }

    pub(crate) fn send_up(&mut self, conn: ConnId, message: ToHost) {
        let latency = self.latency();
        let now = self.now;
        let line = &mut self.conns[conn.0];
        if line.silent {
            return;
        }
        line.up_at = line.up_at.max(line.late_until).max(now + latency);
        let at = line.up_at;
        self.agenda.push(at, Step::Up { conn, message });
    }

    pub(crate) fn send_down(&mut self, conn: ConnId, message: FromHost) {
        let latency = self.latency();
        let now = self.now;
        let line = &mut self.conns[conn.0];
        if line.silent || line.left {
            return;
        }
        line.down_at = line.down_at.max(line.late_until).max(now + latency);
        let at = line.down_at;
        match message {
            FromHost::Row { stream, frame } => self.send_row(conn, stream, frame, at),
            message => self.agenda.push(at, Step::Down { conn, message }),
        }
    }

    /// Subscription rows suffer more faults than TCP allows, because the client's core promises to survive them.
    fn send_row(&mut self, conn: ConnId, stream: usize, frame: FrameRow, at: Micros) {
        let Party::Client(client) = self.conns[conn.0].party else {
            return;
        };
        if self.strikes(Fault::RowLost, Some(client), None) {
            return;
        }
        if self.strikes(Fault::RowRepeated, Some(client), None) {
            let again = at + self.dice.net.random_range(0..SECOND);
            let frame = frame.clone();
            self.agenda.push(
                again,
                Step::Down {
                    conn,
                    message: FromHost::Row { stream, frame },
                },
            );
        }
        let at = if self.strikes(Fault::RowLate, Some(client), None) {
            at + self.dice.net.random_range(0..SECOND)
        } else {
            at
        };
        let frame = self.bend_row(client, stream, frame);
        self.agenda.push(
            at,
            Step::Down {
                conn,
                message: FromHost::Row { stream, frame },
            },
        );
    }

    /// Breaks a connection: its party hears of it, messages to the party are lost, messages to the host may still
    /// arrive.
    pub(crate) fn cut(&mut self, conn: ConnId) {
        self.conns[conn.0].left = true;
        let notices = self.now + self.dice.net.random_range(0..200 * MILLISECOND);
        self.agenda.push(notices, Step::Broken { conn });
        self.goodbye(conn);
    }

    /// The host hears of the end of a connection after everything that was sent before.
    fn goodbye(&mut self, conn: ConnId) {
        if let Party::Bridge(at) = self.conns[conn.0].party
            && self.strikes(Fault::BridgeStray, Some(at), None)
        {
            // Messages in the kernel's buffers arrive late, perhaps when the next connection is already served.
            let late = self.dice.net.random_range(0..3 * SECOND);
            self.delay(conn, late);
        }
        self.send_up(conn, ToHost::Goodbye);
    }

    /// A party gives a connection up.
    pub(crate) fn hang_up(&mut self, conn: ConnId) {
        if !self.conns[conn.0].left {
            self.conns[conn.0].left = true;
            self.goodbye(conn);
        }
    }

    pub(crate) fn delay(&mut self, conn: ConnId, by: Micros) {
        let until = self.now + by;
        self.conns[conn.0].late_until = until;
    }
}
