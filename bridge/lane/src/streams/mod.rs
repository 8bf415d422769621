//! Carries each stream from the authority to SpacetimeDB: reads pages, sends frames, takes in acknowledgements.
//!
//! On a new link a stream is compared with SpacetimeDB before it flows, unless the sweep has compared it already. A flowing
//! stream reads ahead of what it sends and sends ahead of what is acknowledged, within [`Limits`]. Only an acknowledgement
//! moves the published seq. When the link breaks, the streams forget what was not acknowledged: the comparison on the next
//! link says where each stream continues, and the module absorbs what it receives twice.

mod calls;
mod findings;
mod pages;
mod prepare;
mod reconcile;
mod stream;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use spacetime_sync_proto::{ChainHash, Position, Refusal, Seq, StreamId, StreamProgress};

pub use prepare::{ReadyFrame, Sealing, check_frames, check_seal, is_doubtful, judge, prepare, prepare_looked};
pub use reconcile::{Verdict, reconcile};
pub(crate) use reconcile::{publish_again_after, window_begin};
pub use stream::HaltReason;
use stream::{Mode, Next, Stream};

use crate::compare::Coverage;
use crate::maps::Map;
use crate::message::{Looked, Page};
use crate::{CallId, LinkId};

/// Bounds on what is under way at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Pages that are being read from the authority, over all streams.
    pub reads: usize,
    /// Calls not yet acknowledged, over all streams.
    pub calls: usize,
    /// Bytes read and not yet acknowledged, over all streams. Each read that is under way may exceed it by one page, and a
    /// look by what it brings.
    pub bytes: usize,
    /// Idle streams that the bridge remembers.
    pub idle_streams: usize,
    /// How often in a row a stream may fail before it halts. An acknowledgement starts the count again.
    pub attempts: u32,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// The link to SpacetimeDB is up.
    LinkUp(LinkId),
    /// The link is down. What was in flight may or may not have arrived.
    LinkDown,
    /// An operator has repaired the lane: forget every stream, halted ones too.
    Anew,
    /// A look found this. `swept` says which streams the sweep has compared.
    Found { looked: Looked, swept: Coverage },
    /// A page was read.
    Page {
        link: LinkId,
        stream_id: StreamId,
        page: Page,
    },
    /// A page could not be read, for a reason that passes by itself.
    PageFailed { link: LinkId, stream_id: StreamId },
    /// SpacetimeDB has committed a call and made it durable.
    Acked(CallId),
    /// The module refused a call.
    Refused(CallId, Refusal),
    /// A call failed without a refusal. SpacetimeDB may or may not have done it.
    Lost(CallId, String),
    /// What the comparison of a stream found on this link.
    Compared(StreamId, Finding),
    /// The ledger found that a stream cannot continue.
    Halt(StreamId, HaltReason),
    /// The authority shows less of a stream than SpacetimeDB held, and no record is on its way.
    Doubted(StreamId),
    /// Time has passed.
    Tick,
}

/// The result of a comparison or of a refill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// SpacetimeDB's log ends at `held` and the authority's at `head`; the verdict says what to do.
    Compared {
        verdict: Verdict,
        held: Position,
        head: Seq,
    },
    /// The refill is done: the window begins after this seq.
    Filled(Seq),
    /// The stream could not be compared, for a reason that passes by itself.
    NotCompared,
    /// The refill failed. `counts` says whether this is a failure of the stream, so that it halts after too many.
    NotFilled { message: String, counts: bool },
    /// The stream cannot continue until a person repairs it.
    Broken(HaltReason),
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Read a page of the authority's log and cut it into frames.
    Read {
        link: LinkId,
        stream_id: StreamId,
        /// The page begins after this seq.
        after: Seq,
        /// The chain hash at `after`, if it is known.
        base_chain: Option<ChainHash>,
    },
    /// Call `append_sync_events`.
    Append {
        link: LinkId,
        call: CallId,
        stream_id: StreamId,
        frame: ReadyFrame,
    },
    /// Record that SpacetimeDB durably holds the stream up to here.
    Advance { stream_id: StreamId, seq: Seq },
    /// The authority keeps showing less than SpacetimeDB durably held. If no record is on its way, another bridge has set the
    /// published seq back: the streams want [`Input::Doubted`].
    ShownLess(StreamId),
    /// Record that SpacetimeDB's log ends here, even if more was recorded as published.
    SetBack { stream_id: StreamId, seq: Seq },
    /// SpacetimeDB's log ends at the published seq. If the ledger is about to record another seq, that one is outdated.
    Holds { stream_id: StreamId, seq: Seq },
    /// Compare the stream with SpacetimeDB.
    Compare(StreamId),
    /// Refill the stream's window.
    Refill {
        stream_id: StreamId,
        /// SpacetimeDB's head when the stream was compared.
        seen: Position,
        /// The window begins after this seq.
        after: Seq,
    },
    /// Tell the operator that this stream is halted.
    Halted { stream_id: StreamId, reason: HaltReason },
    /// The module refuses every call on this link: give it up and connect again later.
    DropLink(Refusal),
}

/// How much is under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Calls not yet acknowledged.
    pub calls: usize,
    /// Bytes read and not yet acknowledged.
    pub bytes: usize,
    /// Streams on which the bridge is working.
    pub busy_streams: usize,
    /// Streams that are halted.
    pub halted_streams: usize,
}

/// The streams that are busy or halted, and a bounded number of idle ones.
#[derive(Debug)]
pub(crate) struct Streams {
    limits: Limits,
    link: Option<LinkId>,
    streams: Map<StreamId, Stream>,
    /// How many are busy, and how many are halted. Kept up to date with each change, because every turn asks and there may
    /// be very many streams.
    busy: usize,
    halted: usize,
    /// Every idle stream, and some that are busy again; the one that has been idle longest comes first.
    idle: VecDeque<StreamId>,
    /// Streams that may want a page, in the order in which they get one.
    to_read: VecDeque<StreamId>,
    /// Streams that may have a frame to send, in the order in which they send.
    to_send: VecDeque<StreamId>,
    /// Streams that sent something lately, in the order in which they began to. A look brings their next events.
    lively: VecDeque<StreamId>,
    /// Streams that rest, by the time at which the rest ends.
    resting: BTreeSet<(Duration, StreamId)>,
    calls: Map<CallId, StreamId>,
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
            streams: Map::default(),
            busy: 0,
            halted: 0,
            idle: VecDeque::new(),
            to_read: VecDeque::new(),
            to_send: VecDeque::new(),
            lively: VecDeque::new(),
            resting: BTreeSet::new(),
            calls: Map::default(),
            next_call: 0,
            reads: 0,
            bytes: 0,
            draining: false,
        }
    }

    /// Takes in what happened at `now` and adds to `out` what to do about it.
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
            Input::Found { mut looked, swept } => {
                for progress in looked.progress {
                    let frames = looked.frames.remove(&progress.stream_id);
                    self.found(progress, frames.unwrap_or_default(), &swept, out);
                }
            }
            Input::Page { link, stream_id, page } => self.page(now, link, stream_id, page, out),
            Input::PageFailed { link, stream_id } => self.page_failed(now, link, &stream_id),
            Input::Acked(call) => self.acked(call, out),
            Input::Refused(call, refusal) => self.refused(call, refusal, out),
            Input::Lost(call, message) => self.lost(call, message, out),
            Input::Compared(stream_id, finding) => self.compared(now, stream_id, finding, out),
            Input::Halt(stream_id, reason) => self.halt(stream_id, reason, out),
            Input::Doubted(stream_id) => self.doubted(stream_id, out),
            Input::Tick => self.wake(now, out),
        }
        if let Some(stream_id) = about {
            self.count(&stream_id);
        }
        // Sending and reading never make a busy stream idle or an idle one busy.
        self.send(out);
        self.read(out);
    }

    /// The stream that an input changes, if it changes just one. Inputs that change several count each one themselves.
    fn about<'a>(&'a self, input: &'a Input) -> Option<&'a StreamId> {
        match input {
            Input::Page { stream_id, .. }
            | Input::PageFailed { stream_id, .. }
            | Input::Compared(stream_id, _)
            | Input::Halt(stream_id, _)
            | Input::Doubted(stream_id) => Some(stream_id),
            Input::Acked(call) | Input::Refused(call, _) | Input::Lost(call, _) => self.calls.get(call),
            Input::LinkUp(_) | Input::LinkDown | Input::Anew | Input::Found { .. } | Input::Tick => None,
        }
    }

    /// Updates the counts after a change to a stream, and forgets the oldest idle stream if there are too many.
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

    /// Stops reading. The streams send what they have read, and wait for the acknowledgements.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether nothing is under way.
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

    /// Whether a stream is halted.
    pub(crate) fn is_halted(&self, stream_id: &StreamId) -> bool {
        let halted = |stream: &Stream| matches!(stream.mode, Mode::Halted(_));
        // Every look asks this of every dirty stream.
        self.halted > 0 && self.streams.get(stream_id).is_some_and(halted)
    }

    /// Whether a stream needs no comparison by the sweep, because it is compared on this link for itself.
    pub(crate) fn is_met(&self, stream_id: &StreamId) -> bool {
        self.streams
            .get(stream_id)
            .is_some_and(|stream| !matches!(stream.mode, Mode::Halted(_)))
    }

    /// The halted streams, with their reasons.
    pub(crate) fn halted(&self) -> impl Iterator<Item = (&StreamId, &HaltReason)> {
        self.streams
            .iter()
            .filter_map(|(stream_id, stream)| match &stream.mode {
                Mode::Halted(reason) => Some((stream_id, reason)),
                Mode::Flowing | Mode::Landing(_) | Mode::Comparing | Mode::Filling | Mode::Resting(..) => None,
            })
    }

    /// The link has changed: forgets everything but the halted streams.
    fn forget(&mut self) {
        self.streams.retain(|_, stream| {
            stream.forget_underway();
            matches!(stream.mode, Mode::Halted(_))
        });
        self.busy = 0;
        self.idle.clear();
        self.lively.clear();
        self.resting.clear();
        self.to_read.clear();
        self.to_send.clear();
        self.calls.clear();
        self.reads = 0;
        self.bytes = 0;
    }

    fn found(&mut self, progress: StreamProgress, frames: Vec<ReadyFrame>, swept: &Coverage, out: &mut Vec<Effect>) {
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
        if stream.is_shown_less_again(&progress) {
            out.push(Effect::ShownLess(stream_id.clone()));
        }
        if !self.draining && frames.first().is_some_and(|first| stream.continues_with(first)) {
            self.take(stream_id.clone(), frames);
        }
        self.queue_to_read(&stream_id);
        self.count(&stream_id);
    }

    /// What SpacetimeDB holds of a stream may have changed. SpacetimeDB says whether it has.
    fn doubted(&mut self, stream_id: StreamId, out: &mut Vec<Effect>) {
        let stream = self
            .streams
            .entry(stream_id.clone())
            .or_insert_with(|| Stream::new(Seq::ZERO));
        if stream.is_at_rest() {
            stream.mode = Mode::Comparing;
            out.push(Effect::Compare(stream_id));
        }
    }

    /// Leaves a stream alone for a while. Each failure in a row doubles the rest.
    fn rest(&mut self, now: Duration, stream_id: &StreamId, failures: u32, next: Next) {
        if let Some(stream) = self.streams.get_mut(stream_id) {
            let until = now + REST * 2u32.pow(failures.min(6));
            stream.mode = Mode::Resting(until, next);
            self.resting.insert((until, stream_id.clone()));
        }
    }

    /// When the next rest ends.
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

/// How long a stream rests after its first failure.
const REST: Duration = Duration::from_millis(50);

/// Subtracts from a count what was added to it before.
fn less(count: &mut usize, by: usize) {
    debug_assert!(*count >= by, "cannot subtract {by} from {count}");
    *count = count.saturating_sub(by);
}

#[cfg(test)]
mod tests;
