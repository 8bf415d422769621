//! What a stream does when SpacetimeDB does not continue what was applied. It climbs a ladder:
//!
//! 1. SpacetimeDB no longer holds the next event: the stream reads from the authority up to where the window begins.
//! 2. SpacetimeDB's head is before the cursor, or its log is another one: the stream asks the authority whether its log
//!    contains the cursor. If it does, SpacetimeDB is behind or wrong and is given time; meanwhile the stream applies
//!    what the authority has.
//! 3. The authority does not continue from the cursor either: the cursor is stale. The stream does what is configured
//!    for that, but not more often than allowed.
//!
//! A stream of documents begins with its documents (`documents.rs`), and does so again where others would replay or start over.
//!
//! Only two things move a cursor here: events that follow the chain, and a new beginning that store and handler have
//! saved.

use spacetime_sync_proto::page::Snapshot;
use spacetime_sync_proto::{Position, Refusal, Seq, StaleCursor};

use super::{Mode, Stream};
use crate::config::{StaleAnswer, WithoutDocument};
use crate::session::stream::{Beginning, Counters, Effect, Page, StreamStop, may_be_granted_later};

/// How far a stream is on its way back to SpacetimeDB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rung {
    /// Reads from the authority what SpacetimeDB no longer holds.
    Replay {
        /// The first event that SpacetimeDB holds.
        until: Seq,
        /// Why the stream would stop if there were no authority to ask.
        lane: StreamStop,
    },
    /// Asks the authority whether its log contains what was applied, because SpacetimeDB contradicts it.
    Consult(StreamStop),
    /// The authority confirmed it. The stream asks SpacetimeDB again after a pause.
    AwaitLane(StreamStop),
    /// The authority did not answer. The stream begins again after a pause.
    AwaitAuthority,
    /// Fetches the document that stands for the purged events.
    Document(Box<StaleCursor>),
    /// Store and handler start over.
    StartOver(Box<StaleCursor>),
    /// Fetches the documents with which the stream begins.
    Documents {
        /// How many have come.
        fetched: u64,
    },
}

impl Rung {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Replay { .. } => "replay",
            Self::Consult(_) => "consult",
            Self::AwaitLane(_) => "await_lane",
            Self::AwaitAuthority => "await_authority",
            Self::Document(_) => "document",
            Self::StartOver(_) => "start_over",
            Self::Documents { .. } => "documents",
        }
    }
}

/// The question that the authority or the store has yet to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asking {
    /// The events after this position.
    ForEvents(Position),
    ForDocument,
    ForDocuments,
    ToBegin {
        from_document: bool,
    },
}

/// How far the stream climbed since it was last live for a while.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Recovery {
    /// Pauses in a row.
    pub(super) waits: u32,
    /// Times in a row that SpacetimeDB delivered events that the bridge has not sealed, or a damaged row.
    unproven: u32,
    /// Stale cursors after which the stream started over.
    pub(super) answers: u32,
    /// How often the stream has ever started over.
    pub(super) begun: u32,
}

impl Stream {
    /// How often the present rung was tried; 0 without one.
    pub fn recovery_attempt(&self) -> u32 {
        match &self.mode {
            Mode::Recovering(Rung::Document(_) | Rung::StartOver(_) | Rung::Documents { .. }) => self.recovery.answers,
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

    /// The stream has been live for a while: its next failure counts as the first.
    pub(super) fn note_stable(&mut self) {
        self.recovery = Recovery {
            begun: self.recovery.begun,
            ..Recovery::default()
        };
    }

    /// SpacetimeDB contradicts what was applied, or does not hold what it should.
    pub(super) fn contradicted(&mut self, stop: StreamStop, effects: &mut Vec<Effect>) {
        // Where it begins does not depend on what was applied.
        if self.fetch.is_some() {
            return self.fetch_later(effects);
        }
        let rung = match &stop {
            // Unless it has just begun: then the little that is missing is replayed.
            StreamStop::BelowWindow { .. } if self.carries_documents() && self.recovery.answers == 0 => {
                return self.begin_with_documents(effects);
            }
            StreamStop::BelowWindow { oldest, .. } => Rung::Replay {
                until: *oldest,
                lane: stop.clone(),
            },
            StreamStop::AheadOfLane { .. }
            | StreamStop::ChainMismatch { .. }
            | StreamStop::PayloadMismatch { .. }
            | StreamStop::BadFrame { .. }
            | StreamStop::FrameExtent { .. }
            | StreamStop::Unproven { .. }
            | StreamStop::Withheld { .. } => Rung::Consult(stop.clone()),
            StreamStop::DurableReads
            | StreamStop::Handler { .. }
            | StreamStop::StaleCursor(_)
            | StreamStop::Refused(_) => return self.stop(stop, effects),
        };
        if self.bounds.history {
            self.claim = None;
            if matches!(rung, Rung::Consult(_)) {
                effects.push(Effect::Report);
            }
            self.climb(rung, effects);
        } else if matches!(stop, StreamStop::BadFrame { .. } | StreamStop::FrameExtent { .. }) {
            self.damaged(&stop, effects);
        } else {
            self.stop(stop, effects);
        }
    }

    /// A row is damaged, and the authority cannot be asked what it should be. The stream asks SpacetimeDB again, from where
    /// it is: what was handed out before is not in doubt.
    fn damaged(&mut self, stop: &StreamStop, effects: &mut Vec<Effect>) {
        self.claim = None;
        self.recovery.unproven = self.recovery.unproven.saturating_add(1);
        let (message, attempt) = (stop.to_string(), self.recovery.unproven);
        self.leave(Mode::Retrying { message }, effects);
        effects.push(Effect::RetryLater { attempt });
    }

    pub(super) fn climb(&mut self, rung: Rung, effects: &mut Vec<Effect>) {
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
            // What was handed out may be forged until it is saved: the authority is not asked about that.
            Rung::Replay { .. } | Rung::Consult(_) if self.cursor != self.applied && self.cursor != self.proven => {
                return;
            }
            Rung::Replay { .. } | Rung::Consult(_) => {
                effects.push(Effect::ReadHistory { after: self.cursor });
                Asking::ForEvents(self.cursor)
            }
            Rung::Document(_) => {
                effects.push(Effect::ReadDocument);
                Asking::ForDocument
            }
            Rung::StartOver(_) => {
                // Everything handed out must be saved first: until then nobody knows where the store stands.
                let saved = self.applied == self.cursor;
                let Some(beginning) = self.beginning.take_if(|_| saved) else {
                    return;
                };
                let from_document = beginning.document.is_some();
                effects.push(Effect::StartOver(beginning));
                Asking::ToBegin { from_document }
            }
            Rung::Documents { .. } => match self.fetch_some(effects) {
                Some(asking) => asking,
                None => return,
            },
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
            Rung::Replay { lane, .. } | Rung::Consult(lane) if at_head => {
                // The authority agrees with what was applied. What SpacetimeDB holds, the bridge mends, however long it takes.
                self.pause(Rung::AwaitLane(lane), effects);
            }
            Rung::Replay { .. } | Rung::Consult(_) if moved => {}
            // The page leads nowhere: asking again at once would only bring the same page.
            Rung::Replay { .. }
            | Rung::Consult(_)
            | Rung::AwaitLane(_)
            | Rung::AwaitAuthority
            | Rung::Document(_)
            | Rung::StartOver(_)
            | Rung::Documents { .. } => self.pause(Rung::AwaitAuthority, effects),
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
        self.claim = Some(head);
        for frame in page.frames {
            self.take(frame, true, counters, effects)?;
        }
        // The claim holds for the authority's pages only.
        self.claim = None;
        Ok(())
    }

    /// Events that the applier was handed are not proven: nothing of them is saved.
    pub(super) fn unproven(&mut self, stop: StreamStop, effects: &mut Vec<Effect>) {
        if self.is_stopped() {
            return;
        }
        self.cursor = self.applied;
        // What was handed out may be forged, and the true events are other ones.
        self.recent.retain(|known| known.seq <= self.applied.seq);
        self.claim = None;
        self.recovery.unproven = self.recovery.unproven.saturating_add(1);
        if self.bounds.history {
            self.contradicted(stop, effects);
        } else {
            self.try_again(stop.to_string(), self.recovery.unproven, effects);
        }
    }

    /// SpacetimeDB has not brought in time what the authority has.
    pub(super) fn overdue(&mut self, head: Seq, counters: &mut Counters, effects: &mut Vec<Effect>) {
        let cursor = self.cursor.seq;
        if cursor < head && self.awaits_events() {
            counters.withheld += 1;
            self.contradicted(StreamStop::Withheld { cursor, head }, effects);
        }
    }

    pub(super) fn pause(&mut self, rung: Rung, effects: &mut Vec<Effect>) {
        // A page ends the waits when it arrives, and only then is the seal of its events checked. So pauses also grow with
        // the number of forgeries.
        self.recovery.waits = self.recovery.waits.saturating_add(1).max(self.recovery.unproven);
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
            Mode::Recovering(Rung::Replay { .. } | Rung::Consult(_) | Rung::Document(_) | Rung::Documents { .. }) => {
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

    /// The authority does not continue from the position.
    pub(super) fn stale(&mut self, stale: Box<StaleCursor>, counters: &mut Counters, effects: &mut Vec<Effect>) {
        let asked = self.asking.take();
        if asked == Some(Asking::ForDocuments) {
            return self.documents_are_stale(&stale, counters, effects);
        }
        let (Mode::Recovering(Rung::Replay { .. } | Rung::Consult(_)), Some(Asking::ForEvents(after))) =
            (&self.mode, asked)
        else {
            return;
        };
        // The answer concerns an earlier position: the stream asks again about the present one.
        if after != self.cursor || stale.requested_after_seq != after.seq {
            return;
        }
        counters.stale_cursors += 1;
        if self.carries_documents() {
            return self.begin_with_documents(effects);
        }
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

    /// The document has arrived, or the stream has none after all.
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

    /// Store and handler have started over.
    pub(super) fn started_over(&mut self, at: Position, counters: &mut Counters) {
        match self.asking.take() {
            Some(Asking::ToBegin { from_document: true }) => counters.rebootstraps += 1,
            Some(
                Asking::ToBegin { from_document: false }
                | Asking::ForEvents(_)
                | Asking::ForDocument
                | Asking::ForDocuments,
            )
            | None => {
                counters.restarts += 1;
            }
        }
        (self.applied, self.cursor) = (at, at);
        (self.claim, self.known) = (None, None);
        if self.fetch.take().is_some() {
            self.recovery.answers = self.recovery.answers.max(1);
        }
        self.recent.clear();
        self.failures = 0;
        self.recovery.begun = self.recovery.begun.wrapping_add(1);
        if let Mode::Recovering(_) = self.mode {
            self.mode = self.resumed();
        }
    }
}
