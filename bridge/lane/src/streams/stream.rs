//! The state of one stream.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use spacetime_sync_proto::{ChainHash, Position, Refusal, Seq, StreamProgress};

use super::ReadyFrame;
use crate::CallId;

/// How many frames of one stream may be read and not yet sent: enough to keep sending while the next page is read.
const READY_FRAMES: usize = 8;

/// Why a stream is halted until a person repairs it and restarts the bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HaltReason {
    /// The module refused a frame.
    Refused(Refusal),
    /// The authority's own log is broken: a seq is missing, or a payload hash or a chain hash is wrong.
    BrokenLog(String),
    /// SpacetimeDB holds another log than the authority.
    Diverged {
        /// A seq at which their chain hashes differ.
        seq: Seq,
    },
    /// SpacetimeDB's log goes past the authority's, because the authority was restored to an earlier time.
    AheadOfAuthority,
    /// Calls keep failing without a refusal.
    Failing {
        /// How many failures in a row.
        attempts: u32,
        /// The last error.
        message: String,
    },
}

impl HaltReason {
    /// The reason as a short code, for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::BrokenLog(_) => "broken_log",
            Self::Diverged { .. } => "diverged",
            Self::AheadOfAuthority => "ahead_of_authority",
            Self::Failing { .. } => "failing",
        }
    }
}

impl fmt::Display for HaltReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => write!(f, "the module refused a frame: {refusal}"),
            Self::BrokenLog(what) => write!(f, "the authority's log is broken: {what}"),
            Self::Diverged { seq } => write!(f, "SpacetimeDB holds another log than the authority at seq {seq}"),
            Self::AheadOfAuthority => write!(f, "SpacetimeDB holds more than the authority"),
            Self::Failing { attempts, message } => write!(f, "{attempts} calls failed in a row: {message}"),
        }
    }
}

#[derive(Debug)]
pub(super) enum Mode {
    /// Read, send, wait for acknowledgements.
    Flowing,
    /// Something failed: wait until all calls in flight have landed, then do this.
    Landing(Landed),
    /// Waits to be compared with SpacetimeDB.
    Comparing,
    /// Waits for the refill of its window.
    Filling,
    /// Rests until this time, then does this.
    Resting(Duration, Next),
    /// Waits for a person.
    Halted(HaltReason),
}

/// What a stream does when all its calls have landed.
#[derive(Debug)]
pub(super) enum Landed {
    Compare,
    Halt(HaltReason),
}

/// What a stream does after a rest.
#[derive(Debug, Clone, Copy)]
pub(super) enum Next {
    Flow,
    Compare,
}

/// A call that is in flight.
#[derive(Debug)]
pub(super) struct Flying {
    pub(super) call: CallId,
    pub(super) last_seq: Seq,
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) struct Stream {
    /// The authority's head, as far as the bridge knows.
    pub(super) wanted: Seq,
    /// The last seq read, and its chain hash if it is known.
    pub(super) read: Seq,
    pub(super) read_chain: Option<ChainHash>,
    /// The last seq acknowledged as durable.
    pub(super) durable: Seq,
    pub(super) ready: VecDeque<ReadyFrame>,
    pub(super) in_flight: VecDeque<Flying>,
    pub(super) reading: bool,
    pub(super) queued_to_read: bool,
    pub(super) queued_to_send: bool,
    pub(super) queued_idle: bool,
    /// Whether [`Streams::busy`](super::Streams) counts this stream.
    pub(super) counted_busy: bool,
    /// Failed calls and refills in a row.
    pub(super) attempts: u32,
    /// Failed reads of a page in a row.
    pub(super) failed_pages: u32,
    /// SpacetimeDB holds less than was published, and the authority's published seq may not show that yet.
    set_back: bool,
    /// The published seq that the last look showed, if SpacetimeDB durably held more.
    shown_less: Option<Seq>,
    pub(super) mode: Mode,
}

impl Stream {
    pub(super) fn new(published: Seq) -> Self {
        Self {
            wanted: published,
            read: published,
            read_chain: None,
            durable: published,
            ready: VecDeque::new(),
            in_flight: VecDeque::new(),
            reading: false,
            queued_to_read: false,
            queued_to_send: false,
            queued_idle: false,
            counted_busy: false,
            attempts: 0,
            failed_pages: 0,
            set_back: false,
            shown_less: None,
            mode: Mode::Flowing,
        }
    }

    /// Takes in what the authority says about the stream.
    pub(super) fn found(&mut self, position: &StreamProgress) {
        self.wanted = self.wanted.max(position.head_seq);
        if position.published_seq <= self.read {
            self.set_back = false;
        } else if !self.set_back && !self.is_underway() {
            // Another bridge has published more than this one has read: continue from there.
            self.restart_at(position.published_seq);
        }
    }

    /// Whether two looks in a row show the same published seq, and SpacetimeDB durably held more. One look may be older than
    /// the last record.
    pub(super) fn is_shown_less_again(&mut self, position: &StreamProgress) -> bool {
        let less = self.is_at_rest() && self.durable > position.published_seq;
        let before = std::mem::replace(&mut self.shown_less, less.then_some(position.published_seq));
        less && before == Some(position.published_seq)
    }

    /// Whether the stream flows, and nothing of it is under way.
    pub(super) fn is_at_rest(&self) -> bool {
        matches!(self.mode, Mode::Flowing) && !self.is_underway()
    }

    pub(super) fn wants_page(&self) -> bool {
        matches!(self.mode, Mode::Flowing)
            && !self.reading
            && self.read < self.wanted
            && self.ready.len() < READY_FRAMES
    }

    /// Up to where the stream is read, if nothing of it is under way. Otherwise its next events come as a page: under load
    /// there are many of them by then, and they go out in a few large frames.
    pub(super) fn rests_at(&self) -> Option<Position> {
        let chain = self.read_chain.filter(|_| self.is_at_rest())?;
        Some(Position { seq: self.read, chain })
    }

    /// Whether a frame that came without being asked for is the next one that the stream would read.
    pub(super) fn continues_with(&self, frame: &ReadyFrame) -> bool {
        matches!(self.mode, Mode::Flowing)
            && !self.reading
            && frame.row.first_seq == self.read.next()
            && self.read_chain == Some(frame.row.base_chain)
    }

    pub(super) fn push(&mut self, frame: ReadyFrame) {
        debug_assert_eq!(frame.row.first_seq, self.read.next());
        self.read = frame.row.last_seq;
        self.read_chain = Some(frame.last_chain);
        self.ready.push_back(frame);
    }

    /// SpacetimeDB holds everything up to `seq`, so the next page begins after it.
    pub(super) fn restart_at(&mut self, seq: Seq) {
        self.read = seq;
        self.read_chain = None;
        self.durable = seq;
    }

    /// SpacetimeDB holds less than was published. The stream ignores the published seq until that shows it.
    pub(super) fn set_back_to(&mut self, seq: Seq) {
        self.restart_at(seq);
        self.set_back = true;
    }

    /// Drops the frames that are ready, and returns how many bytes they had.
    pub(super) fn drop_ready(&mut self) -> usize {
        self.ready.drain(..).map(|frame| frame.size()).sum()
    }

    /// Forgets what was under way on a link that is down.
    pub(super) fn forget_underway(&mut self) {
        self.ready.clear();
        self.in_flight.clear();
        (self.reading, self.queued_to_read, self.queued_to_send) = (false, false, false);
        (self.queued_idle, self.counted_busy) = (false, false);
    }

    pub(super) fn is_underway(&self) -> bool {
        self.reading || !self.ready.is_empty() || !self.in_flight.is_empty()
    }

    /// Whether the bridge may forget the stream: there is nothing to do for it, and nothing to remember.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_busy() && !matches!(self.mode, Mode::Halted(_))
    }

    /// Whether there is something that the bridge, and not a person, has to do for it.
    pub(super) fn is_busy(&self) -> bool {
        match self.mode {
            Mode::Flowing => self.is_underway() || self.durable < self.wanted,
            Mode::Landing(_) | Mode::Comparing | Mode::Filling | Mode::Resting(..) => true,
            Mode::Halted(_) => !self.in_flight.is_empty(),
        }
    }
}
