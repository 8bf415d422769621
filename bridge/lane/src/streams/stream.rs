//! One stream's way through the core.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use spacetime_sync_proto::{ChainHash, Refusal, Seq, StreamProgress};

use super::ReadyFrame;
use crate::CallId;

/// Most frames of one stream that are read and not yet sent: enough to keep sending while the next page is read.
const READY_FRAMES: usize = 8;

/// Why a stream goes no further until a person has looked at it and restarted the bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HaltReason {
    /// The module refused a frame.
    Refused(Refusal),
    /// The authority's own log is broken: a gap, a payload that is not what was hashed, a link that does not follow.
    BrokenLog(String),
    /// SpacetimeDB holds another log than the authority.
    Diverged {
        /// Where it was noticed.
        seq: Seq,
    },
    /// SpacetimeDB holds more than the authority: the authority was restored to an earlier time.
    AheadOfAuthority,
    /// Calls fail again and again for no reason that is ours.
    Failing {
        /// How often in a row.
        attempts: u32,
        /// The last error.
        message: String,
    },
}

impl HaltReason {
    /// The machine's part.
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
    /// Something failed: wait until what is in flight has landed, then do this.
    Landing(Landed),
    /// Waits to be compared with SpacetimeDB.
    Comparing,
    /// Its window is being begun anew.
    Filling,
    /// Left alone until then.
    Resting(Duration, Next),
    /// Goes no further.
    Halted(HaltReason),
}

/// What a stream does when what was in flight has landed.
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

#[derive(Debug)]
pub(super) struct Flying {
    pub(super) call: CallId,
    pub(super) last_seq: Seq,
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) struct Stream {
    /// The authority's head, as far as it is known.
    pub(super) wanted: Seq,
    /// The last seq read, and its chain hash where it is known.
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
    /// Whether it is counted as busy.
    pub(super) counted_busy: bool,
    /// Calls that failed in a row.
    pub(super) attempts: u32,
    /// Pages that could not be read, in a row.
    pub(super) failed_pages: u32,
    /// SpacetimeDB holds less than is recorded as published, and the record may not say so yet.
    set_back: bool,
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
            mode: Mode::Flowing,
        }
    }

    /// The authority's word on where the stream stands.
    pub(super) fn found(&mut self, position: &StreamProgress) {
        self.wanted = self.wanted.max(position.head_seq);
        if position.published_seq <= self.read {
            self.set_back = false;
        } else if !self.set_back && !self.is_underway() {
            // Another bridge has published more than this one has read: go on from there.
            self.restart_at(position.published_seq);
        }
    }

    pub(super) fn wants_page(&self) -> bool {
        matches!(self.mode, Mode::Flowing)
            && !self.reading
            && self.read < self.wanted
            && self.ready.len() < READY_FRAMES
    }

    pub(super) fn push(&mut self, frame: ReadyFrame) {
        debug_assert_eq!(frame.row.first_seq, self.read.next());
        self.read = frame.row.last_seq;
        self.read_chain = Some(frame.last_chain);
        self.ready.push_back(frame);
    }

    /// Everything before `seq` is held; the next page begins after it.
    pub(super) fn restart_at(&mut self, seq: Seq) {
        self.read = seq;
        self.read_chain = None;
        self.durable = seq;
    }

    /// SpacetimeDB holds less than was published: until the record says so, it is not gone by.
    pub(super) fn set_back_to(&mut self, seq: Seq) {
        self.restart_at(seq);
        self.set_back = true;
    }

    /// Gives up what is ready and says how many bytes that was.
    pub(super) fn drop_ready(&mut self) -> usize {
        self.ready.drain(..).map(|frame| frame.size()).sum()
    }

    /// What was under way belongs to a link that is gone.
    pub(super) fn forget_underway(&mut self) {
        self.ready.clear();
        self.in_flight.clear();
        (self.reading, self.queued_to_read, self.queued_to_send) = (false, false, false);
        (self.queued_idle, self.counted_busy) = (false, false);
    }

    pub(super) fn is_underway(&self) -> bool {
        self.reading || !self.ready.is_empty() || !self.in_flight.is_empty()
    }

    /// Whether nothing is to be done for it, and nothing would be lost with it.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_busy() && !matches!(self.mode, Mode::Halted(_))
    }

    /// Whether there is something to do for it that is not a person's to do.
    pub(super) fn is_busy(&self) -> bool {
        match self.mode {
            Mode::Flowing => self.is_underway() || self.durable < self.wanted,
            Mode::Landing(_) | Mode::Comparing | Mode::Filling | Mode::Resting(..) => true,
            Mode::Halted(_) => !self.in_flight.is_empty(),
        }
    }
}
