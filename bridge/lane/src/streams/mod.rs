//! Which stream to read next, what to send of it, and what an answer means.
//!
//! A stream is compared with SpacetimeDB before it flows, unless a sweep has passed it on this link. It is read ahead of
//! what is sent, and sent ahead of what is acknowledged, within [`Limits`]. Only an acknowledgement moves what counts as
//! published. What is not acknowledged when the link breaks is forgotten: the comparison on the next link says where each
//! stream starts again, and what SpacetimeDB holds already it absorbs.

mod calls;
mod findings;
mod pages;
mod prepare;
mod reconcile;
mod stream;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use spacetime_sync_proto::{ChainHash, FrameRow, Refusal, Seq, StreamId, StreamProgress};

pub use prepare::{ReadyFrame, is_doubtful, judge, prepare};
pub use reconcile::{Verdict, reconcile};
pub use stream::HaltReason;
use stream::{Mode, Next, Stream};

use crate::compare::Coverage;
use crate::message::Page;
use crate::{CallId, LinkId};

/// Bounds of what is under way at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Pages being read from the authority, over all streams.
    pub reads: usize,
    /// Calls not yet acknowledged, over all streams.
    pub calls: usize,
    /// Bytes read and not yet acknowledged, over all streams. One page more may be under way for each read.
    pub bytes: usize,
    /// Streams remembered while there is nothing to do for them.
    pub idle_streams: usize,
    /// How often in a row a stream may fail without an acknowledgement in between before it is halted.
    pub attempts: u32,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// SpacetimeDB is connected.
    LinkUp(LinkId),
    /// SpacetimeDB is gone. What was in flight may or may not have arrived.
    LinkDown,
    /// An operator has put things right: streams that were halted are looked at anew.
    Anew,
    /// The authority says how far these streams have come. The sweep has passed those in `swept`.
    Found {
        progress: Vec<StreamProgress>,
        swept: Coverage,
    },
    /// A page was read.
    Page {
        link: LinkId,
        stream_id: StreamId,
        page: Page,
    },
    /// A page could not be read for a reason that passes.
    PageFailed { link: LinkId, stream_id: StreamId },
    /// A call was committed and is durable.
    Acked(CallId),
    /// The module refused a call.
    Refused(CallId, Refusal),
    /// A call failed without a refusal: what became of it is unknown.
    Lost(CallId, String),
    /// A stream was compared on this link, or could not be.
    Compared(StreamId, Finding),
    /// Something outside found that a stream cannot go on.
    Halt(StreamId, HaltReason),
    /// Time has passed.
    Tick,
}

/// What a comparison, or what followed from one, came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// SpacetimeDB holds `held`, the authority `head`, and this is what follows.
    Compared { verdict: Verdict, held: Seq, head: Seq },
    /// The window was begun anew after this seq.
    Filled(Seq),
    /// It could not be compared for a reason that passes.
    NotCompared,
    /// The window could not be begun anew. `counts` says whether the reason is this stream's.
    NotFilled { message: String, counts: bool },
    /// There is no way on without a person.
    Broken(HaltReason),
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Read a page and prepare it.
    Read {
        link: LinkId,
        stream_id: StreamId,
        /// Events after this seq.
        after: Seq,
        /// The chain hash at `after`, where it is known.
        base_chain: Option<ChainHash>,
    },
    /// Call `append_sync_events`.
    Append {
        link: LinkId,
        call: CallId,
        stream_id: StreamId,
        frame: FrameRow,
    },
    /// Record that SpacetimeDB durably holds the stream up to here.
    Advance { stream_id: StreamId, seq: Seq },
    /// Record that SpacetimeDB holds just this much, which may be less than was published.
    SetBack { stream_id: StreamId, seq: Seq },
    /// SpacetimeDB holds just what was recorded: what waits to be recorded and says anything else is of the past.
    Holds { stream_id: StreamId, seq: Seq },
    /// Compare the stream with SpacetimeDB.
    Compare(StreamId),
    /// Begin the stream's window anew.
    Refill {
        stream_id: StreamId,
        /// SpacetimeDB's head as it was seen.
        seen: Seq,
        /// The window begins after this seq.
        after: Seq,
    },
    /// Tell the operator that this stream goes no further.
    Halted { stream_id: StreamId, reason: HaltReason },
    /// Nothing at all can be appended on this link: drop it and connect anew later.
    DropLink(Refusal),
}

/// How much is under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Calls not yet acknowledged.
    pub calls: usize,
    /// Bytes read and not yet acknowledged.
    pub bytes: usize,
    /// Streams with something to do.
    pub busy_streams: usize,
    /// Streams that go no further.
    pub halted_streams: usize,
}

/// All streams that there is something to do for, and those that are remembered.
#[derive(Debug)]
pub(crate) struct Streams {
    limits: Limits,
    link: Option<LinkId>,
    streams: HashMap<StreamId, Stream>,
    /// How many of them are busy, and how many are halted: counted as they change, for there may be very many of them and
    /// somebody asks at every turn.
    busy: usize,
    halted: usize,
    /// All streams that are idle, and some that were, the oldest first.
    idle: VecDeque<StreamId>,
    /// Streams that may have something to read, in turn.
    to_read: VecDeque<StreamId>,
    /// Streams that may have something to send, in turn.
    to_send: VecDeque<StreamId>,
    /// Streams left alone for a while, by the end of it.
    resting: BTreeSet<(Duration, StreamId)>,
    calls: HashMap<CallId, StreamId>,
    next_call: u64,
    reads: usize,
    bytes: usize,
    draining: bool,
}

impl Streams {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            link: None,
            streams: HashMap::new(),
            busy: 0,
            halted: 0,
            idle: VecDeque::new(),
            to_read: VecDeque::new(),
            to_send: VecDeque::new(),
            resting: BTreeSet::new(),
            calls: HashMap::new(),
            next_call: 0,
            reads: 0,
            bytes: 0,
            draining: false,
        }
    }

    /// Takes in what happened at `now` and adds what is to be done about it.
    pub(crate) fn step(&mut self, now: Duration, input: Input, out: &mut Vec<Effect>) {
        let about = self.about(&input).cloned();
        match input {
            Input::LinkUp(link) => {
                self.forget();
                self.link = Some(link);
            }
            Input::LinkDown => {
                self.forget();
                self.link = None;
            }
            Input::Anew => {
                self.forget();
                self.streams.clear();
                self.halted = 0;
                self.link = None;
            }
            Input::Found { progress, swept } => {
                progress.into_iter().for_each(|found| self.found(found, &swept, out));
            }
            Input::Page { link, stream_id, page } => self.page(now, link, stream_id, page, out),
            Input::PageFailed { link, stream_id } => self.page_failed(now, link, &stream_id),
            Input::Acked(call) => self.acked(call, out),
            Input::Refused(call, refusal) => self.refused(call, refusal, out),
            Input::Lost(call, message) => self.lost(call, message, out),
            Input::Compared(stream_id, finding) => self.compared(now, stream_id, finding, out),
            Input::Halt(stream_id, reason) => self.halt(stream_id, reason, out),
            Input::Tick => self.wake(now, out),
        }
        if let Some(stream_id) = about {
            self.count(&stream_id);
        }
        // Neither makes a busy stream idle or an idle one busy.
        self.send(out);
        self.read(out);
    }

    /// The one stream that an input changes. Those that change several count them by themselves.
    fn about<'a>(&'a self, input: &'a Input) -> Option<&'a StreamId> {
        match input {
            Input::Page { stream_id, .. }
            | Input::PageFailed { stream_id, .. }
            | Input::Compared(stream_id, _)
            | Input::Halt(stream_id, _) => Some(stream_id),
            Input::Acked(call) | Input::Refused(call, _) | Input::Lost(call, _) => self.calls.get(call),
            Input::LinkUp(_) | Input::LinkDown | Input::Anew | Input::Found { .. } | Input::Tick => None,
        }
    }

    /// Counts a stream as what it has become, and forgets an idle one if there are too many of those.
    fn count(&mut self, stream_id: &StreamId) {
        let Some(stream) = self.streams.get_mut(stream_id) else {
            return;
        };
        let is_busy = stream.is_busy();
        let was_busy = std::mem::replace(&mut stream.counted_busy, is_busy);
        match (was_busy, is_busy) {
            (false, true) => self.busy += 1,
            (true, false) => less(&mut self.busy, 1),
            (true, true) | (false, false) => {}
        }
        if stream.is_idle() && !stream.queued_idle {
            stream.queued_idle = true;
            self.idle.push_back(stream_id.clone());
        }
        if self.idle.len() > self.limits.idle_streams
            && let Some(oldest) = self.idle.pop_front()
            && let Some(stream) = self.streams.get_mut(&oldest)
        {
            stream.queued_idle = false;
            if stream.is_idle() {
                self.streams.remove(&oldest);
            }
        }
    }

    /// From here on nothing new is read: what was read is sent, what was sent is waited for.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether nothing is under way any more.
    pub(crate) fn is_drained(&self) -> bool {
        self.calls.is_empty() && self.to_send.is_empty() && self.reads == 0
    }

    /// How much is under way.
    pub(crate) fn load(&self) -> Load {
        Load {
            calls: self.calls.len(),
            bytes: self.bytes,
            busy_streams: self.busy,
            halted_streams: self.halted,
        }
    }

    /// Whether a stream goes no further.
    pub(crate) fn is_halted(&self, stream_id: &StreamId) -> bool {
        self.streams
            .get(stream_id)
            .is_some_and(|stream| matches!(stream.mode, Mode::Halted(_)))
    }

    /// Whether a stream was compared on this link and can go on.
    pub(crate) fn is_met(&self, stream_id: &StreamId) -> bool {
        self.streams
            .get(stream_id)
            .is_some_and(|stream| !matches!(stream.mode, Mode::Halted(_)))
    }

    /// The streams that go no further, and why.
    pub(crate) fn halted(&self) -> impl Iterator<Item = (&StreamId, &HaltReason)> {
        self.streams
            .iter()
            .filter_map(|(stream_id, stream)| match &stream.mode {
                Mode::Halted(reason) => Some((stream_id, reason)),
                Mode::Flowing | Mode::Landing(_) | Mode::Comparing | Mode::Filling | Mode::Resting(..) => None,
            })
    }

    /// A new link, or none: all that is not recorded in the authority is forgotten, except what is halted.
    fn forget(&mut self) {
        self.streams.retain(|_, stream| {
            stream.forget_underway();
            matches!(stream.mode, Mode::Halted(_))
        });
        self.busy = 0;
        self.idle.clear();
        self.resting.clear();
        self.to_read.clear();
        self.to_send.clear();
        self.calls.clear();
        self.reads = 0;
        self.bytes = 0;
    }

    fn found(&mut self, progress: StreamProgress, swept: &Coverage, out: &mut Vec<Effect>) {
        if self.link.is_none() {
            return;
        }
        let stream_id = progress.stream_id.clone();
        let stream = self.streams.entry(stream_id.clone()).or_insert_with(|| {
            let mut stream = Stream::new(progress.published_seq);
            if !swept.has(&stream_id) {
                stream.mode = Mode::Comparing;
                out.push(Effect::Compare(stream_id.clone()));
            }
            stream
        });
        stream.found(&progress);
        self.queue_to_read(&stream_id);
        self.count(&stream_id);
    }

    /// Leaves a stream alone for a moment that grows with every failure in a row.
    fn rest(&mut self, now: Duration, stream_id: &StreamId, failures: u32, next: Next) {
        if let Some(stream) = self.streams.get_mut(stream_id) {
            let until = now + REST * 2u32.pow(failures.min(6));
            stream.mode = Mode::Resting(until, next);
            self.resting.insert((until, stream_id.clone()));
        }
    }

    /// When the next rest is over.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.link?;
        self.resting.first().map(|(until, _)| *until)
    }

    fn wake(&mut self, now: Duration, out: &mut Vec<Effect>) {
        if self.link.is_none() {
            return;
        }
        while let Some((until, _)) = self.resting.first()
            && *until <= now
            && let Some((until, stream_id)) = self.resting.pop_first()
        {
            let Some(stream) = self.streams.get_mut(&stream_id) else {
                continue;
            };
            let Mode::Resting(mine, next) = stream.mode else {
                continue;
            };
            if mine != until {
                continue;
            }
            match next {
                Next::Flow => {
                    stream.mode = Mode::Flowing;
                    self.queue_to_read(&stream_id);
                    self.count(&stream_id);
                }
                Next::Compare => {
                    stream.mode = Mode::Comparing;
                    out.push(Effect::Compare(stream_id));
                }
            }
        }
    }

    fn halt(&mut self, stream_id: StreamId, reason: HaltReason, out: &mut Vec<Effect>) {
        let stream = self
            .streams
            .entry(stream_id.clone())
            .or_insert_with(|| Stream::new(Seq::ZERO));
        if matches!(stream.mode, Mode::Halted(_)) {
            return;
        }
        less(&mut self.bytes, stream.drop_ready());
        stream.mode = Mode::Halted(reason.clone());
        self.halted += 1;
        out.push(Effect::Halted { stream_id, reason });
    }
}

/// The shortest rest of a stream that failed.
const REST: Duration = Duration::from_millis(50);

/// Takes from a count what was added to it before.
fn less(count: &mut usize, by: usize) {
    debug_assert!(*count >= by, "{by} is taken from {count}");
    *count = count.saturating_sub(by);
}

#[cfg(test)]
mod tests;
