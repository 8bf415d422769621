//! The modes of one stream and how each input moves it between them.

mod arrivals;
mod documents;
mod recovery;

use std::collections::VecDeque;

use spacetime_sync_proto::limit::SUBSCRIPTION_EVENTS;
use spacetime_sync_proto::{Position, RefusalCode, Seq};

use super::{ApplyFailure, Beginning, Counters, Effect, Input, StreamStop, SubscriptionId, may_be_granted_later};
use crate::config::{Carries, StreamBounds};

use documents::Fetch;
pub use recovery::Rung;
use recovery::{Asking, Recovery};

/// What a stream is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// No connection.
    Offline,
    /// Reading pages until the head is near.
    Paging,
    /// Waiting for a subscription from the cursor to begin.
    Subscribing(SubscriptionId),
    /// The subscription delivers.
    Live(SubscriptionId),
    /// The subscription delivers while a newer one begins.
    Renewing {
        /// The one that delivers.
        old: SubscriptionId,
        /// The one that will take over.
        new: SubscriptionId,
    },
    /// The module refused. The stream asks again later.
    Refused(RefusalCode),
    /// A read failed. The stream asks again later.
    Unanswered,
    /// SpacetimeDB does not continue what was applied. The stream finds out what does.
    Recovering(Rung),
    /// Applying failed, or a row is damaged. The stream tries again later, after a failure from what is saved.
    Retrying {
        /// What went wrong last.
        message: String,
    },
    /// The stream goes no further.
    Stopped(StreamStop),
}

/// The assumed size of an event before one was seen.
pub(super) const UNKNOWN_EVENT_BYTES: u64 = 4_096;
/// How many ends of batches to remember.
const RECENT: usize = 64;

/// A page that was asked for.
#[derive(Debug, Clone, Copy)]
struct Reading {
    after: Position,
    /// The head as known at that time: what was heard since is newer than the page may be.
    known: Option<Seq>,
    /// How often the stream had started over at that time.
    begun: u32,
}

/// One stream of a client.
#[derive(Debug)]
pub struct Stream {
    bounds: StreamBounds,
    mode: Mode,
    connected: bool,
    /// Up to where events were handed out for applying.
    cursor: Position,
    /// Up to where events are saved.
    applied: Position,
    /// Up to where the authority itself sent events last.
    proven: Position,
    /// The head, as far as it was heard on this connection.
    known: Option<Seq>,
    /// What the last page said about its head.
    claim: Option<Position>,
    reading: Option<Reading>,
    /// Whether a page has just told the head: only then is it known how much a subscription would bring.
    fresh: bool,
    unapplied_bytes: usize,
    bytes_per_event: u64,
    /// Where the present subscription is half used up.
    renew_at: Seq,
    failures: u32,
    subscriptions: u32,
    /// Where the last batches ended, to compare repeated frames with.
    recent: VecDeque<Position>,
    /// Whether something arrived that only the head can explain.
    doubtful: bool,
    /// The question that the authority or the store has yet to answer.
    asking: Option<Asking>,
    /// Where store and handler are to start over.
    beginning: Option<Box<Beginning>>,
    recovery: Recovery,
    /// The documents with which the stream has yet to begin.
    fetch: Option<Fetch>,
    /// How many fetches there were.
    fetches: u32,
}

impl Stream {
    /// A stream that continues from what is saved.
    pub fn new(applied: Position, bounds: StreamBounds) -> Self {
        let begins = bounds.carries == Carries::Documents { are_held: false };
        let mut stream = Self {
            bounds,
            mode: Mode::Offline,
            connected: false,
            cursor: applied,
            applied,
            proven: applied,
            known: None,
            claim: None,
            reading: None,
            fresh: false,
            unapplied_bytes: 0,
            bytes_per_event: 0,
            renew_at: Seq::ZERO,
            failures: 0,
            subscriptions: 0,
            recent: VecDeque::new(),
            doubtful: false,
            asking: None,
            beginning: None,
            recovery: Recovery::default(),
            fetch: None,
            fetches: 0,
        };
        if begins {
            stream.new_fetch();
        }
        stream
    }

    /// What the stream is doing.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Up to where events were handed out for applying.
    pub fn cursor(&self) -> Position {
        self.cursor
    }

    /// Whether it is SpacetimeDB's turn to bring events, and not the application's to apply some.
    pub fn awaits_events(&self) -> bool {
        match self.mode {
            Mode::Paging
            | Mode::Subscribing(_)
            | Mode::Live(_)
            | Mode::Renewing { .. }
            | Mode::Refused(_)
            | Mode::Unanswered => self.unapplied_bytes <= self.bounds.resume_bytes,
            Mode::Offline | Mode::Recovering(_) | Mode::Retrying { .. } | Mode::Stopped(_) => false,
        }
    }

    /// Up to where events are saved.
    pub fn applied(&self) -> Position {
        self.applied
    }

    /// The head, as far as it was heard on this connection.
    pub fn known_head(&self) -> Option<Seq> {
        self.known
    }

    /// Bytes of frames that were handed out and are not saved yet.
    pub fn unapplied_bytes(&self) -> usize {
        self.unapplied_bytes
    }

    /// Whether a page is under way.
    pub fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Whether every known event is applied and a subscription delivers the next ones.
    pub fn is_current(&self) -> bool {
        self.is_delivering() && self.known == Some(self.applied.seq)
    }

    /// Whether a subscription delivers.
    pub fn is_delivering(&self) -> bool {
        match self.mode {
            Mode::Live(_) | Mode::Renewing { .. } => true,
            Mode::Offline
            | Mode::Paging
            | Mode::Subscribing(_)
            | Mode::Refused(_)
            | Mode::Unanswered
            | Mode::Recovering(_)
            | Mode::Retrying { .. }
            | Mode::Stopped(_) => false,
        }
    }

    /// Handles one input and returns the effects, in order.
    pub fn step(&mut self, input: Input, counters: &mut Counters) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.fresh = false;
        match input {
            Input::Connected => self.connected(),
            Input::Disconnected => self.disconnected(),
            Input::Page(page) => self.page(page, counters, &mut effects),
            Input::ReadRefused(refusal) => {
                self.reading = None;
                counters.reads_refused += 1;
                if may_be_granted_later(refusal.code) {
                    self.ask_later(Mode::Refused(refusal.code), &mut effects);
                } else {
                    self.stop(StreamStop::Refused(refusal), &mut effects);
                }
            }
            Input::ReadFailed => {
                self.reading = None;
                counters.reads_refused += 1;
                self.ask_later(Mode::Unanswered, &mut effects);
            }
            Input::AskAgain => self.ask_again(),
            Input::Frame(frame) => self.live_frame(frame, counters, &mut effects),
            Input::Subscribed(id) => self.subscribed(id, &mut effects),
            Input::SubscriptionFailed(id) => {
                if self.owns(id) {
                    self.ask_later(Mode::Unanswered, &mut effects);
                }
            }
            Input::GrantLost => self.ask_later(Mode::Refused(RefusalCode::ForbiddenStream), &mut effects),
            Input::Overrun => self.overrun(counters, &mut effects),
            Input::Renew => self.renew(counters, &mut effects),
            Input::Verify => {
                if self.is_delivering() && self.reading.is_none() {
                    self.read(&mut effects);
                }
            }
            // A rewind removes the events applied last; retention never does.
            Input::Gone { last_seq } => self.doubtful |= self.is_delivering() && last_seq >= self.cursor.seq,
            Input::Overdue { head } => self.overdue(head, counters, &mut effects),
            Input::Stable => self.note_stable(),
            Input::HistoryPage(page) => self.history_page(page, counters, &mut effects),
            Input::HistoryRefused(refusal) => self.history_refused(refusal, counters, &mut effects),
            Input::HistoryFailed => self.history_failed(counters, &mut effects),
            Input::Stale(stale) => self.stale(stale, counters, &mut effects),
            Input::Document(document) => self.document(document, &mut effects),
            Input::Documents(page) => self.documents(*page, counters, &mut effects),
            Input::Staged { fetch, released } => self.staged(fetch, released),
            Input::StartedOver(at) => self.started_over(at, counters),
            Input::Applied { to, released } => {
                counters.events_applied += to.seq.since(self.applied.seq);
                self.applied = to;
                self.failures = 0;
                self.release(released);
            }
            Input::Dropped { released } => self.release(released),
            Input::ApplyFailed { failure, released } => {
                self.release(released);
                counters.apply_failures += 1;
                self.apply_failed(failure, &mut effects);
            }
        }
        if matches!(self.mode, Mode::Live(_)) && self.cursor.seq >= self.renew_at {
            self.renew(counters, &mut effects);
        }
        self.pursue(counters, &mut effects);
        effects
    }

    fn connected(&mut self) {
        self.connected = true;
        self.known = None;
        match self.mode {
            Mode::Offline => self.mode = self.resumed(),
            Mode::Paging
            | Mode::Subscribing(_)
            | Mode::Live(_)
            | Mode::Renewing { .. }
            | Mode::Refused(_)
            | Mode::Unanswered
            | Mode::Recovering(_)
            | Mode::Retrying { .. }
            | Mode::Stopped(_) => {}
        }
    }

    fn disconnected(&mut self) {
        self.connected = false;
        self.reading = None;
        self.claim = None;
        // The store starts over even without a connection.
        if !self.is_beginning() {
            self.asking = None;
        }
        match self.mode {
            Mode::Offline | Mode::Retrying { .. } | Mode::Stopped(_) => {}
            Mode::Recovering(_) if self.asking.is_some() => {}
            Mode::Recovering(_)
            | Mode::Paging
            | Mode::Subscribing(_)
            | Mode::Live(_)
            | Mode::Renewing { .. }
            | Mode::Refused(_)
            | Mode::Unanswered => self.mode = Mode::Offline,
        }
    }

    fn ask_again(&mut self) {
        match self.mode {
            Mode::Refused(_)
            | Mode::Unanswered
            | Mode::Retrying { .. }
            | Mode::Recovering(Rung::AwaitLane(_) | Rung::AwaitAuthority) => {
                self.mode = self.resumed();
                self.known = None;
            }
            Mode::Offline
            | Mode::Paging
            | Mode::Subscribing(_)
            | Mode::Live(_)
            | Mode::Renewing { .. }
            | Mode::Recovering(
                Rung::Replay { .. }
                | Rung::Consult(_)
                | Rung::Document(_)
                | Rung::StartOver(_)
                | Rung::Documents { .. },
            )
            | Mode::Stopped(_) => {}
        }
    }

    fn apply_failed(&mut self, failure: ApplyFailure, effects: &mut Vec<Effect>) {
        match failure {
            ApplyFailure::Payload {
                seq,
                expected,
                found,
                from_authority,
            } => {
                let stop = StreamStop::PayloadMismatch { seq, expected, found };
                if from_authority || !self.bounds.history {
                    self.stop(stop, effects);
                } else {
                    self.unproven(stop, effects);
                }
            }
            ApplyFailure::Unproven { to, why } => self.unproven(StreamStop::Unproven { to, why }, effects),
            ApplyFailure::Stop { message } => {
                self.stop(
                    StreamStop::Handler {
                        attempts: self.failures + 1,
                        message,
                    },
                    effects,
                );
            }
            ApplyFailure::Retry { message } => {
                self.failures += 1;
                if self.failures >= self.bounds.apply_attempts {
                    self.stop(
                        StreamStop::Handler {
                            attempts: self.failures,
                            message,
                        },
                        effects,
                    );
                } else {
                    self.try_again(message, self.failures, effects);
                }
            }
            // Not counted as a failure, and tried again as rarely as the backoff allows.
            ApplyFailure::Full { message } => self.try_again(message, self.bounds.apply_attempts, effects),
        }
    }

    /// Goes back to what is saved, after a pause.
    fn try_again(&mut self, message: String, attempt: u32, effects: &mut Vec<Effect>) {
        if !self.is_stopped() {
            self.cursor = self.applied;
            self.claim = None;
            self.asking = None;
            self.fetch_anew();
            self.leave(Mode::Retrying { message }, effects);
            effects.push(Effect::RetryLater { attempt });
        }
    }

    /// What a stream does that waits for nothing.
    fn resumed(&self) -> Mode {
        match &self.fetch {
            _ if !self.connected => Mode::Offline,
            Some(fetch) => fetch.mode(),
            None => Mode::Paging,
        }
    }

    fn ask_later(&mut self, mode: Mode, effects: &mut Vec<Effect>) {
        match self.mode {
            Mode::Offline | Mode::Retrying { .. } | Mode::Stopped(_) => {}
            // The stream reads again after it has started over, and meets the refusal then.
            Mode::Recovering(_) if self.is_beginning() => {}
            Mode::Paging
            | Mode::Subscribing(_)
            | Mode::Live(_)
            | Mode::Renewing { .. }
            | Mode::Recovering(_)
            | Mode::Refused(_)
            | Mode::Unanswered => {
                self.leave(mode, effects);
                effects.push(Effect::AskLater);
            }
        }
    }

    fn stop(&mut self, stop: StreamStop, effects: &mut Vec<Effect>) {
        if !self.is_stopped() {
            self.leave(Mode::Stopped(stop), effects);
        }
    }

    /// Changes the mode and gives up the subscriptions of the present one.
    fn leave(&mut self, next: Mode, effects: &mut Vec<Effect>) {
        self.doubtful = false;
        match self.mode {
            Mode::Subscribing(id) | Mode::Live(id) => effects.push(Effect::Unsubscribe { id }),
            Mode::Renewing { old, new } => {
                effects.push(Effect::Unsubscribe { id: old });
                effects.push(Effect::Unsubscribe { id: new });
            }
            Mode::Offline
            | Mode::Paging
            | Mode::Refused(_)
            | Mode::Unanswered
            | Mode::Recovering(_)
            | Mode::Retrying { .. }
            | Mode::Stopped(_) => {}
        }
        self.mode = next;
    }

    /// Asks for whatever the state lacks. Runs after every input, so that no input needs to take care of it.
    fn pursue(&mut self, counters: &mut Counters, effects: &mut Vec<Effect>) {
        self.recover(effects);
        if self.reading.is_some() {
            return;
        }
        match self.mode {
            Mode::Paging => match self.known {
                // Applying lags. The next `Applied` input comes back here.
                Some(known) if self.is_near(known) && self.unapplied_bytes > self.bounds.resume_bytes => {}
                Some(known) if self.is_near(known) && self.fresh => {
                    let id = self.subscribe(effects);
                    self.mode = Mode::Subscribing(id);
                }
                Some(_) | None => self.read(effects),
            },
            Mode::Live(_) | Mode::Renewing { .. } => {
                let hole = self.known.is_some_and(|known| known > self.cursor.seq);
                counters.holes_paged += u64::from(hole);
                if hole || std::mem::take(&mut self.doubtful) {
                    self.read(effects);
                }
            }
            Mode::Offline
            | Mode::Subscribing(_)
            | Mode::Refused(_)
            | Mode::Unanswered
            | Mode::Recovering(_)
            | Mode::Retrying { .. }
            | Mode::Stopped(_) => {}
        }
    }

    fn is_near(&self, known: Seq) -> bool {
        let behind = known.since(self.cursor.seq);
        behind == 0
            || (behind <= self.bounds.subscribe_within_events
                && behind.saturating_mul(self.bytes_per_event) <= self.bounds.subscribe_within_bytes)
    }

    fn read(&mut self, effects: &mut Vec<Effect>) {
        self.reading = Some(Reading {
            after: self.cursor,
            known: self.known,
            begun: self.recovery.begun,
        });
        self.doubtful = false;
        effects.push(Effect::Read { after: self.cursor.seq });
    }

    fn subscribe(&mut self, effects: &mut Vec<Effect>) -> SubscriptionId {
        self.subscriptions += 1;
        let id = SubscriptionId(self.subscriptions);
        let (after, reach) = (self.cursor.seq, self.reach());
        self.renew_at = after.plus(reach.div_ceil(2));
        effects.push(Effect::Subscribe {
            id,
            after,
            to: after.plus(reach),
        });
        id
    }

    /// How many seqs a subscription covers. A gate lets no longer one pass.
    fn reach(&self) -> u64 {
        let each = if self.bytes_per_event == 0 {
            UNKNOWN_EVENT_BYTES
        } else {
            self.bytes_per_event
        };
        (self.bounds.reach_bytes as u64 / each).clamp(1, SUBSCRIPTION_EVENTS)
    }

    fn owns(&self, id: SubscriptionId) -> bool {
        match self.mode {
            Mode::Subscribing(own) | Mode::Live(own) => own == id,
            Mode::Renewing { old, new } => old == id || new == id,
            Mode::Offline
            | Mode::Paging
            | Mode::Refused(_)
            | Mode::Unanswered
            | Mode::Recovering(_)
            | Mode::Retrying { .. }
            | Mode::Stopped(_) => false,
        }
    }

    fn release(&mut self, bytes: usize) {
        self.unapplied_bytes = self.unapplied_bytes.saturating_sub(bytes);
    }

    /// Whether the store was asked to start over and has not answered.
    pub fn is_beginning(&self) -> bool {
        matches!(self.asking, Some(Asking::ToBegin { .. }))
    }

    fn is_stopped(&self) -> bool {
        matches!(self.mode, Mode::Stopped(_))
    }
}
