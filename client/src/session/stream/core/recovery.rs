//! What a stream does when the lane does not continue what was applied. A ladder:
//!
//! 1. The lane holds what comes next no longer: it is read from the authority, up to where the lane begins.
//! 2. The lane is behind what was applied, or says that it is another log: the authority is asked whether our position is
//!    one of its log. If it is, the lane is behind or wrong, and is given time; what the authority has meanwhile is
//!    applied.
//! 3. The authority says that the position leads nowhere: the cursor is stale. The configured answer follows, and not more
//!    often than is allowed.
//!
//! Nothing here moves a cursor but events that follow the chain, and a beginning that the store and the handler have
//! saved.

use spacetime_sync_proto::page::Snapshot;
use spacetime_sync_proto::{Position, Refusal, Seq, StaleCursor};

use super::{Mode, Stream};
use crate::config::{StaleAnswer, WithoutDocument};
use crate::session::stream::{Beginning, Counters, Effect, Page, StreamStop, may_be_granted_later};

/// Where a stream is on its way back onto the lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rung {
    /// Reads from the authority what the lane holds no longer.
    Replay {
        /// The first event that the lane holds.
        until: Seq,
        /// What the stream would stop with if nobody could be asked.
        lane: StreamStop,
    },
    /// Asks the authority whether what was applied is part of its log, for the lane says otherwise.
    Consult(StreamStop),
    /// The authority says that it is: the lane is asked again after a pause.
    AwaitLane(StreamStop),
    /// The authority did not answer; all is asked again after a pause.
    AwaitAuthority,
    /// Fetches the document that stands for the events that are gone.
    Document(Box<StaleCursor>),
    /// Store and handler start over.
    StartOver(Box<StaleCursor>),
}

impl Rung {
    /// A word for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Replay { .. } => "replay",
            Self::Consult(_) => "consult",
            Self::AwaitLane(_) => "await_lane",
            Self::AwaitAuthority => "await_authority",
            Self::Document(_) => "document",
            Self::StartOver(_) => "start_over",
        }
    }
}

/// What was asked of the authority, or of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asking {
    /// What follows this position.
    ForEvents(Position),
    ForDocument,
    ToBegin {
        from_document: bool,
    },
}

/// How far the ladder was climbed since the stream was last live for a while.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Recovery {
    /// Pauses in a row.
    pub(super) waits: u32,
    /// Times that the authority agreed with us where the lane holds another log.
    contradictions: u32,
    /// Stale cursors that were answered with a new beginning.
    answers: u32,
    /// How often the stream has started over at all.
    pub(super) begun: u32,
}

impl Stream {
    /// How often the present rung was tried; 0 on none.
    pub fn recovery_attempt(&self) -> u32 {
        match &self.mode {
            Mode::Recovering(Rung::Document(_) | Rung::StartOver(_)) => self.recovery.answers,
            Mode::Recovering(Rung::Replay { .. } | Rung::Consult(_) | Rung::AwaitLane(_) | Rung::AwaitAuthority) => {
                self.recovery.waits.max(1)
            }
            Mode::Offline
            | Mode::Paging
            | Mode::Subscribing(_)
            | Mode::Live(_)
            | Mode::Renewing { .. }
            | Mode::Refused(_)
            | Mode::Unanswered
            | Mode::Retrying { .. }
            | Mode::Stopped(_) => 0,
        }
    }

    /// The stream has been live for a while: what comes next is a new trouble.
    pub(super) fn note_stable(&mut self) {
        self.recovery = Recovery {
            begun: self.recovery.begun,
            ..Recovery::default()
        };
    }

    /// What the lane brought does not continue what was applied.
    pub(super) fn contradicted(&mut self, stop: StreamStop, effects: &mut Vec<Effect>) {
        let rung = match &stop {
            StreamStop::BelowWindow { oldest, .. } => Rung::Replay {
                until: *oldest,
                lane: stop.clone(),
            },
            StreamStop::AheadOfLane { .. } | StreamStop::ChainMismatch { .. } => Rung::Consult(stop.clone()),
            StreamStop::PayloadMismatch { .. }
            | StreamStop::BadFrame { .. }
            | StreamStop::FrameExtent { .. }
            | StreamStop::DurableReads
            | StreamStop::Handler { .. }
            | StreamStop::StaleCursor(_)
            | StreamStop::Refused(_) => return self.stop(stop, effects),
        };
        if self.bounds.history {
            self.claim = None;
            self.climb(rung, effects);
        } else {
            self.stop(stop, effects);
        }
    }

    fn climb(&mut self, rung: Rung, effects: &mut Vec<Effect>) {
        if !self.is_stopped() {
            self.leave(Mode::Recovering(rung), effects);
        }
    }

    /// Asks for whatever the present rung lacks.
    pub(super) fn recover(&mut self, effects: &mut Vec<Effect>) {
        let Mode::Recovering(rung) = &self.mode else { return };
        if self.asking.is_some() {
            return;
        }
        let asking = match rung {
            Rung::Replay { .. } | Rung::Consult(_) => {
                effects.push(Effect::ReadHistory { after: self.cursor });
                Asking::ForEvents(self.cursor)
            }
            Rung::Document(_) => {
                effects.push(Effect::ReadDocument);
                Asking::ForDocument
            }
            Rung::StartOver(_) => {
                // What was handed out is saved first: until then it is not known where the store stands.
                let saved = self.applied == self.cursor;
                let Some(beginning) = self.beginning.take_if(|_| saved) else {
                    return;
                };
                let from_document = beginning.document.is_some();
                effects.push(Effect::StartOver(beginning));
                Asking::ToBegin { from_document }
            }
            Rung::AwaitLane(_) | Rung::AwaitAuthority => return,
        };
        self.asking = Some(asking);
    }

    pub(super) fn history_page(&mut self, page: Page, counters: &mut Counters, effects: &mut Vec<Effect>) {
        self.asking = None;
        counters.history_pages += 1;
        let Mode::Recovering(rung @ (Rung::Replay { .. } | Rung::Consult(_))) = &self.mode else {
            return;
        };
        let rung = rung.clone();
        let (before, head) = (self.cursor, page.head);
        if let Err(stop) = self.take_history(page, counters, effects) {
            return self.stop(stop, effects);
        }
        let (moved, at_head) = (self.cursor != before, self.cursor.seq == head.seq);
        match rung {
            Rung::Replay { until, .. } if self.cursor.seq.next() >= until => self.mode = Mode::Paging,
            Rung::Replay { lane, .. } | Rung::Consult(lane) if at_head => self.await_lane(lane, effects),
            Rung::Replay { .. } | Rung::Consult(_) if moved => {}
            // It leads nowhere: asking at once would only bring it again.
            Rung::Replay { .. }
            | Rung::Consult(_)
            | Rung::AwaitLane(_)
            | Rung::AwaitAuthority
            | Rung::Document(_)
            | Rung::StartOver(_) => self.pause(Rung::AwaitAuthority, effects),
        }
    }

    fn take_history(
        &mut self,
        page: Page,
        counters: &mut Counters,
        effects: &mut Vec<Effect>,
    ) -> Result<(), StreamStop> {
        let (head, cursor) = (page.head, self.cursor);
        if head.seq == cursor.seq && head.chain != cursor.chain {
            return Err(StreamStop::ChainMismatch {
                seq: cursor.seq,
                expected: cursor.chain,
                found: head.chain,
            });
        }
        self.known = self.known.max(Some(head.seq));
        self.claim = Some(head).filter(|head| head.seq > cursor.seq);
        for frame in page.frames {
            self.take(frame, counters, effects)?;
        }
        // It holds for these pages; the lane speaks for itself.
        self.claim = None;
        Ok(())
    }

    fn await_lane(&mut self, lane: StreamStop, effects: &mut Vec<Effect>) {
        // A lane that is behind is filled in the time that it takes. One that holds another log than the authority is not
        // mended by waiting for long.
        if !matches!(lane, StreamStop::AheadOfLane { .. }) {
            self.recovery.contradictions += 1;
        }
        if self.recovery.contradictions > self.bounds.recovery_attempts {
            return self.stop(lane, effects);
        }
        self.pause(Rung::AwaitLane(lane), effects);
    }

    fn pause(&mut self, rung: Rung, effects: &mut Vec<Effect>) {
        self.recovery.waits = self.recovery.waits.saturating_add(1);
        let attempt = self.recovery.waits;
        self.climb(rung, effects);
        effects.push(Effect::RecoverLater { attempt });
    }

    pub(super) fn history_refused(&mut self, refusal: Refusal, counters: &mut Counters, effects: &mut Vec<Effect>) {
        self.asking = None;
        counters.history_failures += 1;
        if !matches!(self.mode, Mode::Recovering(_)) {
            return;
        }
        if may_be_granted_later(refusal.code) {
            self.ask_later(Mode::Refused(refusal.code), effects);
        } else {
            self.stop(StreamStop::Refused(refusal), effects);
        }
    }

    pub(super) fn history_failed(&mut self, counters: &mut Counters, effects: &mut Vec<Effect>) {
        self.asking = None;
        counters.history_failures += 1;
        match &self.mode {
            Mode::Recovering(Rung::Replay { .. } | Rung::Consult(_) | Rung::Document(_)) => {
                self.pause(Rung::AwaitAuthority, effects);
            }
            Mode::Recovering(Rung::AwaitLane(_) | Rung::AwaitAuthority | Rung::StartOver(_))
            | Mode::Offline
            | Mode::Paging
            | Mode::Subscribing(_)
            | Mode::Live(_)
            | Mode::Renewing { .. }
            | Mode::Refused(_)
            | Mode::Unanswered
            | Mode::Retrying { .. }
            | Mode::Stopped(_) => {}
        }
    }

    /// The authority says that the position leads nowhere.
    pub(super) fn stale(&mut self, stale: Box<StaleCursor>, counters: &mut Counters, effects: &mut Vec<Effect>) {
        let asked = self.asking.take();
        let (Mode::Recovering(Rung::Replay { .. } | Rung::Consult(_)), Some(Asking::ForEvents(after))) =
            (&self.mode, asked)
        else {
            return;
        };
        // This is about an earlier position: the stream asks about the present one.
        if after != self.cursor || stale.requested_after_seq != after.seq {
            return;
        }
        counters.stale_cursors += 1;
        let answer = self.bounds.on_stale;
        if answer == StaleAnswer::Stop || self.recovery.answers >= self.bounds.recovery_attempts {
            return self.stop(StreamStop::StaleCursor(stale), effects);
        }
        self.recovery.answers += 1;
        match answer {
            StaleAnswer::Rebootstrap(_) if stale.snapshot_cursor.is_some() => {
                self.climb(Rung::Document(stale), effects);
            }
            StaleAnswer::Stop | StaleAnswer::Restart | StaleAnswer::Rebootstrap(_) => {
                self.without_document(stale, effects);
            }
        }
    }

    fn without_document(&mut self, stale: Box<StaleCursor>, effects: &mut Vec<Effect>) {
        match self.bounds.on_stale {
            StaleAnswer::Stop | StaleAnswer::Rebootstrap(WithoutDocument::Stop) => {
                self.stop(StreamStop::StaleCursor(stale), effects);
            }
            StaleAnswer::Restart | StaleAnswer::Rebootstrap(WithoutDocument::Restart) => {
                let at = Position {
                    seq: stale.oldest_available_cursor,
                    chain: stale.oldest_available_chain,
                };
                self.begin(at, None, stale, effects);
            }
        }
    }

    /// The document, or the news that the stream has none after all.
    pub(super) fn document(&mut self, document: Option<Box<Snapshot>>, effects: &mut Vec<Effect>) {
        self.asking = None;
        let Mode::Recovering(Rung::Document(stale)) = &self.mode else {
            return;
        };
        let stale = stale.clone();
        let Some(document) = document else {
            return self.without_document(stale, effects);
        };
        let at = Position {
            seq: document.seq,
            chain: document.chain_hash,
        };
        self.begin(at, Some(*document), stale, effects);
    }

    fn begin(&mut self, at: Position, document: Option<Snapshot>, stale: Box<StaleCursor>, effects: &mut Vec<Effect>) {
        self.beginning = Some(Box::new(Beginning {
            from: self.cursor,
            at,
            document,
            stale: (*stale).clone(),
        }));
        self.climb(Rung::StartOver(stale), effects);
    }

    /// Store and handler stand at the new beginning.
    pub(super) fn started_over(&mut self, at: Position, counters: &mut Counters) {
        match self.asking.take() {
            Some(Asking::ToBegin { from_document: true }) => counters.rebootstraps += 1,
            Some(Asking::ToBegin { from_document: false } | Asking::ForEvents(_) | Asking::ForDocument) | None => {
                counters.restarts += 1;
            }
        }
        (self.applied, self.cursor) = (at, at);
        (self.claim, self.known) = (None, None);
        self.recent.clear();
        self.failures = 0;
        self.recovery.begun = self.recovery.begun.wrapping_add(1);
        if let Mode::Recovering(_) = self.mode {
            self.mode = if self.connected { Mode::Paging } else { Mode::Offline };
        }
    }
}
