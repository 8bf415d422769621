//! What the bridge decides: which stream to read next, what to send, what an answer means. Pure: it is told what
//! happened and answers with what to do, does no IO and asks no clock, so the simulation runs the shipped code.
//!
//! A stream is read ahead of what is sent, and sent ahead of what is acknowledged, within [`Limits`]. Only an
//! acknowledgement moves what counts as published. Whatever is not acknowledged when the link breaks is forgotten: the
//! authority's `published_seq` is where everything starts again, and what SpacetimeDB holds already it absorbs.

mod prepare;
mod reconcile;
mod stream;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{ChainHash, Refusal, RefusalCode, Seq, StreamId, StreamProgress};

pub use prepare::{Prepared, prepare};
pub use reconcile::{Verdict, reconcile};
pub use stream::HaltReason;
use stream::{Drain, Mode, Stream};

/// Bounds of what is under way at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Pages being read from the authority, over all streams.
    pub reads: usize,
    /// Calls not yet acknowledged, over all streams.
    pub calls: usize,
    /// Bytes read and not yet acknowledged, over all streams. One page more may be under way for each read.
    pub bytes: usize,
    /// Streams remembered while nothing is to be done for them.
    pub idle_streams: usize,
    /// How often in a row a stream may fail without an acknowledgement in between before it is halted.
    pub attempts: u32,
}

/// Names one call of `append_sync_events`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(u64);

/// Names one life of the link. What belongs to an earlier one is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkEpoch(u64);

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// SpacetimeDB is connected and its heads are reconciled with the authority.
    LinkUp,
    /// SpacetimeDB is gone. What was in flight may or may not have arrived.
    LinkDown,
    /// The link is given up because an operator has put things right: what was halted is looked at anew.
    Anew,
    /// The authority says where these streams stand.
    Positions(Vec<StreamProgress>),
    /// A page was read and prepared.
    Page {
        /// When it was asked for.
        epoch: LinkEpoch,
        /// The stream.
        stream_id: StreamId,
        /// Frames in order, none if the authority holds nothing more; or why the page is no part of a log.
        page: Result<Vec<Prepared>, HaltReason>,
    },
    /// A page could not be read for a reason that passes.
    PageFailed {
        /// When it was asked for.
        epoch: LinkEpoch,
        /// The stream.
        stream_id: StreamId,
    },
    /// A call was committed and is durable.
    Acked(CallId),
    /// A call was refused.
    Refused(CallId, Refusal),
    /// A call failed in a way that is no refusal of ours: what became of it is unknown.
    Lost(CallId, String),
    /// The head of a draining stream was asked for and compared.
    Learned {
        /// When it was asked for.
        epoch: LinkEpoch,
        /// The stream.
        stream_id: StreamId,
        /// What the comparison says.
        verdict: Verdict,
    },
    /// It could not be asked for a reason that passes.
    LearnFailed {
        /// When it was asked for.
        epoch: LinkEpoch,
        /// The stream.
        stream_id: StreamId,
    },
    /// Something outside the core found that a stream cannot go on.
    Halt(StreamId, HaltReason),
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Read a page and prepare it.
    Read {
        /// To be given back with the answer.
        epoch: LinkEpoch,
        /// The stream.
        stream_id: StreamId,
        /// Events after this seq.
        after: Seq,
        /// The chain hash at `after`, where it is known.
        base_chain: Option<ChainHash>,
    },
    /// Call `append_sync_events`.
    Append {
        /// To be given back with the answer.
        call: CallId,
        /// The stream.
        stream_id: StreamId,
        /// The frame.
        prepared: Prepared,
    },
    /// Record that SpacetimeDB durably holds the stream up to here.
    Advance {
        /// The stream.
        stream_id: StreamId,
        /// The last durable seq.
        seq: Seq,
    },
    /// Record that SpacetimeDB holds less than was published.
    Rewind {
        /// The stream.
        stream_id: StreamId,
        /// The last seq it holds.
        to: Seq,
    },
    /// Ask SpacetimeDB for the head of a stream and compare it with the authority.
    Learn {
        /// To be given back with the answer.
        epoch: LinkEpoch,
        /// The stream.
        stream_id: StreamId,
    },
    /// Tell the operator that this stream goes no further.
    Halted {
        /// The stream.
        stream_id: StreamId,
        /// Why.
        reason: HaltReason,
    },
    /// Nothing at all can be appended on this link: drop it and connect anew later.
    DropLink(Refusal),
}

/// How many events wait at each step.
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

/// The bridge's decisions.
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    link: Option<LinkEpoch>,
    epochs: u64,
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

impl Core {
    /// A core that has heard of nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            link: None,
            epochs: 0,
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
    pub fn step(&mut self, now: Duration, input: Input, out: &mut Vec<Effect>) {
        let about = self.about(&input).cloned();
        match input {
            Input::LinkUp => {
                self.forget();
                self.epochs += 1;
                self.link = Some(LinkEpoch(self.epochs));
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
            Input::Positions(positions) => positions.into_iter().for_each(|position| self.found(position)),
            Input::Page { epoch, stream_id, page } => self.page(epoch, stream_id, page, out),
            Input::PageFailed { epoch, stream_id } => self.page_failed(now, epoch, &stream_id),
            Input::Acked(call) => self.acked(call, out),
            Input::Refused(call, refusal) => self.refused(call, refusal, out),
            Input::Lost(call, message) => self.lost(call, message, out),
            Input::Learned {
                epoch,
                stream_id,
                verdict,
            } => self.learned(now, epoch, stream_id, verdict, out),
            Input::LearnFailed { epoch, stream_id } => {
                if self.link == Some(epoch)
                    && let Some(stream) = self.streams.get(&stream_id)
                    && matches!(stream.mode, Mode::Learning)
                {
                    self.rest(now, &stream_id, stream.attempts);
                }
            }
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
            | Input::Learned { stream_id, .. }
            | Input::LearnFailed { stream_id, .. }
            | Input::Halt(stream_id, _) => Some(stream_id),
            Input::Acked(call) | Input::Refused(call, _) | Input::Lost(call, _) => self.calls.get(call),
            Input::LinkUp | Input::LinkDown | Input::Anew | Input::Positions(_) | Input::Tick => None,
        }
    }

    /// Counts a stream as what it has become, and forgets an idle one if there are too many of those.
    fn count(&mut self, stream_id: &StreamId) {
        let Some(stream) = self.streams.get_mut(stream_id) else {
            return;
        };
        let is_busy = stream.is_busy();
        let was_busy = std::mem::replace(&mut stream.counted_busy, is_busy);
        self.busy = self.busy + usize::from(is_busy) - usize::from(was_busy);
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
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether nothing is under way any more.
    pub fn is_drained(&self) -> bool {
        self.calls.is_empty() && self.to_send.is_empty() && self.reads == 0
    }

    /// How much is under way.
    pub fn load(&self) -> Load {
        Load {
            calls: self.calls.len(),
            bytes: self.bytes,
            busy_streams: self.busy,
            halted_streams: self.halted,
        }
    }

    /// Whether a stream goes no further.
    pub fn is_halted(&self, stream_id: &StreamId) -> bool {
        self.streams
            .get(stream_id)
            .is_some_and(|stream| matches!(stream.mode, Mode::Halted(_)))
    }

    /// The streams that go no further, and why.
    pub fn halted(&self) -> impl Iterator<Item = (&StreamId, &HaltReason)> {
        self.streams
            .iter()
            .filter_map(|(stream_id, stream)| match &stream.mode {
                Mode::Halted(reason) => Some((stream_id, reason)),
                Mode::Flowing | Mode::Draining(_) | Mode::Learning | Mode::Resting(_) => None,
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

    fn found(&mut self, position: StreamProgress) {
        if self.link.is_none() {
            return;
        }
        let stream = self
            .streams
            .entry(position.stream_id.clone())
            .or_insert_with(|| Stream::new(position.published_seq));
        stream.found(&position);
        self.queue_to_read(&position.stream_id);
        self.count(&position.stream_id);
    }

    fn read(&mut self, out: &mut Vec<Effect>) {
        let Some(epoch) = self.link else { return };
        while !self.draining && self.reads < self.limits.reads && self.bytes < self.limits.bytes {
            let Some(stream_id) = self.to_read.pop_front() else {
                return;
            };
            let Some(stream) = self.streams.get_mut(&stream_id) else {
                continue;
            };
            stream.queued_to_read = false;
            if stream.wants_page() {
                stream.reading = true;
                self.reads += 1;
                let (after, base_chain) = (stream.read, stream.read_chain);
                out.push(Effect::Read {
                    epoch,
                    stream_id,
                    after,
                    base_chain,
                });
            }
        }
    }

    fn page(
        &mut self,
        epoch: LinkEpoch,
        stream_id: StreamId,
        page: Result<Vec<Prepared>, HaltReason>,
        out: &mut Vec<Effect>,
    ) {
        if self.link != Some(epoch) {
            return;
        }
        self.reads -= 1;
        let Some(stream) = self.streams.get_mut(&stream_id) else {
            return;
        };
        stream.reading = false;
        if !matches!(stream.mode, Mode::Flowing) {
            return;
        }
        match page {
            Err(reason) => {
                // What is in flight is sound and is waited for; what is ready before the bad page goes out first.
                stream.fail(Drain::Halt(reason));
                return self.settle(stream_id, out);
            }
            // Asked for before the stream was set back or forward: not what is wanted any more.
            Ok(frames)
                if frames
                    .first()
                    .is_some_and(|frame| frame.first_seq != stream.read.next()) => {}
            Ok(frames) => {
                stream.failed_pages = 0;
                if frames.is_empty() {
                    stream.wanted = stream.read;
                }
                for prepared in frames {
                    self.bytes += prepared.size();
                    stream.push(prepared);
                }
                if !stream.ready.is_empty() && !stream.queued_to_send {
                    stream.queued_to_send = true;
                    self.to_send.push_back(stream_id.clone());
                }
            }
        }
        self.queue_to_read(&stream_id);
    }

    /// Nothing of the stream is lost: it is read again after a rest, or when what is in flight is acknowledged.
    fn page_failed(&mut self, now: Duration, epoch: LinkEpoch, stream_id: &StreamId) {
        if self.link != Some(epoch) {
            return;
        }
        self.reads -= 1;
        let Some(stream) = self.streams.get_mut(stream_id) else {
            return;
        };
        stream.reading = false;
        if matches!(stream.mode, Mode::Flowing) && !stream.is_underway() {
            let failures = stream.failed_pages;
            stream.failed_pages = failures.saturating_add(1);
            self.rest(now, stream_id, failures);
        }
    }

    fn queue_to_read(&mut self, stream_id: &StreamId) {
        if let Some(stream) = self.streams.get_mut(stream_id)
            && stream.wants_page()
            && !stream.queued_to_read
        {
            stream.queued_to_read = true;
            self.to_read.push_back(stream_id.clone());
        }
    }

    fn send(&mut self, out: &mut Vec<Effect>) {
        if self.link.is_none() {
            return;
        }
        while self.calls.len() < self.limits.calls {
            let Some(stream_id) = self.to_send.pop_front() else {
                return;
            };
            let Some(stream) = self.streams.get_mut(&stream_id) else {
                continue;
            };
            stream.queued_to_send = false;
            let Some(prepared) = stream.ready.pop_front() else {
                continue;
            };
            let call = CallId(self.next_call);
            self.next_call += 1;
            stream.in_flight.push_back(stream::Flying {
                call,
                last_seq: prepared.last_seq,
                bytes: prepared.size(),
            });
            if !stream.ready.is_empty() {
                stream.queued_to_send = true;
                self.to_send.push_back(stream_id.clone());
            }
            self.calls.insert(call, stream_id.clone());
            out.push(Effect::Append {
                call,
                stream_id,
                prepared,
            });
        }
    }

    /// Takes a call out of the books; none if it belongs to an earlier link.
    fn landed(&mut self, call: CallId) -> Option<(StreamId, Seq)> {
        let stream_id = self.calls.remove(&call)?;
        let stream = self.streams.get_mut(&stream_id)?;
        let at = stream.in_flight.iter().position(|flying| flying.call == call)?;
        let flying = stream.in_flight.remove(at)?;
        self.bytes -= flying.bytes;
        Some((stream_id, flying.last_seq))
    }

    fn acked(&mut self, call: CallId, out: &mut Vec<Effect>) {
        let Some((stream_id, seq)) = self.landed(call) else {
            return;
        };
        let Some(stream) = self.streams.get_mut(&stream_id) else {
            return;
        };
        stream.attempts = 0;
        if seq > stream.durable {
            stream.durable = seq;
            out.push(Effect::Advance {
                stream_id: stream_id.clone(),
                seq,
            });
        }
        self.queue_to_read(&stream_id);
        self.settle(stream_id, out);
    }

    fn refused(&mut self, call: CallId, refusal: Refusal, out: &mut Vec<Effect>) {
        let Some((stream_id, _)) = self.landed(call) else {
            return;
        };
        let attempts = self.streams.get(&stream_id).map_or(0, |stream| stream.attempts);
        let drain = match refusal.code.class() {
            RefusalClass::Fatal => return out.push(Effect::DropLink(refusal)),
            // Says nothing about the stream: a link with a fresh token may do.
            RefusalClass::Retry if is_about_the_token(refusal.code) => return out.push(Effect::DropLink(refusal)),
            RefusalClass::Retry if attempts < self.limits.attempts => Drain::Learn,
            RefusalClass::Retry => Drain::Halt(HaltReason::Refused(refusal)),
            RefusalClass::Reject => Drain::Halt(HaltReason::Refused(refusal)),
        };
        self.fail(&stream_id, drain);
        self.settle(stream_id, out);
    }

    fn lost(&mut self, call: CallId, message: String, out: &mut Vec<Effect>) {
        let Some((stream_id, _)) = self.landed(call) else {
            return;
        };
        let Some(stream) = self.streams.get_mut(&stream_id) else {
            return;
        };
        let drain = if stream.attempts >= self.limits.attempts {
            Drain::Halt(HaltReason::Failing {
                attempts: stream.attempts,
                message,
            })
        } else {
            Drain::Learn
        };
        self.fail(&stream_id, drain);
        self.settle(stream_id, out);
    }

    /// A flowing stream drains from here on. The first failure counts: those behind it in flight follow from it.
    fn fail(&mut self, stream_id: &StreamId, drain: Drain) {
        if let Some(stream) = self.streams.get_mut(stream_id)
            && matches!(stream.mode, Mode::Flowing)
        {
            self.bytes -= stream.drop_ready();
            stream.fail(drain);
        }
    }

    /// Ends the draining of a stream with nothing left in flight.
    fn settle(&mut self, stream_id: StreamId, out: &mut Vec<Effect>) {
        let (Some(epoch), Some(stream)) = (self.link, self.streams.get_mut(&stream_id)) else {
            return;
        };
        if !stream.in_flight.is_empty() || !stream.ready.is_empty() {
            return;
        }
        match std::mem::replace(&mut stream.mode, Mode::Learning) {
            Mode::Draining(Drain::Learn) => {
                stream.attempts += 1;
                out.push(Effect::Learn { epoch, stream_id });
            }
            Mode::Draining(Drain::Halt(reason)) => self.halt(stream_id, reason, out),
            other @ (Mode::Flowing | Mode::Learning | Mode::Resting(_) | Mode::Halted(_)) => stream.mode = other,
        }
    }

    fn learned(
        &mut self,
        now: Duration,
        epoch: LinkEpoch,
        stream_id: StreamId,
        verdict: Verdict,
        out: &mut Vec<Effect>,
    ) {
        // Halted meanwhile: what was learned changes nothing.
        if self.link != Some(epoch) || !self.is_learning(&stream_id) {
            return;
        }
        let Some(stream) = self.streams.get_mut(&stream_id) else {
            return;
        };
        match verdict {
            Verdict::InStep(seq) => stream.restart_at(seq),
            Verdict::Ahead(seq) => {
                stream.restart_at(seq);
                out.push(Effect::Advance {
                    stream_id: stream_id.clone(),
                    seq,
                });
            }
            Verdict::Behind(seq) => {
                stream.set_back_to(seq);
                out.push(Effect::Rewind {
                    stream_id: stream_id.clone(),
                    to: seq,
                });
            }
            // The window was begun anew before this was told. What was published may be past it, or before it.
            Verdict::Refill(seq) => {
                stream.set_back_to(seq);
                out.push(Effect::Rewind {
                    stream_id: stream_id.clone(),
                    to: seq,
                });
                out.push(Effect::Advance {
                    stream_id: stream_id.clone(),
                    seq,
                });
            }
            Verdict::Unknown => {}
            Verdict::Apart(reason) => return self.halt(stream_id, reason, out),
        }
        let failures = stream.attempts;
        self.rest(now, &stream_id, failures);
    }

    fn is_learning(&self, stream_id: &StreamId) -> bool {
        self.streams
            .get(stream_id)
            .is_some_and(|stream| matches!(stream.mode, Mode::Learning))
    }

    /// Leaves a stream alone for a moment that grows with every failure in a row.
    fn rest(&mut self, now: Duration, stream_id: &StreamId, failures: u32) {
        if let Some(stream) = self.streams.get_mut(stream_id) {
            let until = now + REST * 2u32.pow(failures.min(6));
            stream.mode = Mode::Resting(until);
            self.resting.insert((until, stream_id.clone()));
        }
    }

    fn wake(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Some(epoch) = self.link else { return };
        while let Some((until, stream_id)) = self.resting.pop_first() {
            if until > now {
                self.resting.insert((until, stream_id));
                return;
            }
            let Some(stream) = self.streams.get_mut(&stream_id) else {
                continue;
            };
            if !matches!(stream.mode, Mode::Resting(mine) if mine == until) {
                continue;
            }
            if stream.durable == stream.read {
                stream.mode = Mode::Flowing;
                self.queue_to_read(&stream_id);
                self.count(&stream_id);
            } else {
                // Its head could not be learned: ask again.
                stream.mode = Mode::Learning;
                out.push(Effect::Learn { epoch, stream_id });
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
        self.bytes -= stream.drop_ready();
        stream.mode = Mode::Halted(reason.clone());
        self.halted += 1;
        out.push(Effect::Halted { stream_id, reason });
    }
}

/// The shortest rest of a stream that failed.
const REST: Duration = Duration::from_millis(50);

/// Whether a refusal was for the bridge's own credential, whatever was asked.
fn is_about_the_token(code: RefusalCode) -> bool {
    matches!(
        code,
        RefusalCode::TokenExpired | RefusalCode::TokenNotYetValid | RefusalCode::TokenTooOld
    )
}

/// What a refusal means that is none: a text that is not ours.
pub fn foreign_refusal(text: &str) -> Refusal {
    Refusal::new(
        RefusalCode::InvalidArgument,
        format!("the module answered with no refusal of the lane: {text}"),
    )
}

#[cfg(test)]
mod tests;
