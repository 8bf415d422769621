//! What arrives from SpacetimeDB: pages, rows, and answers to subscriptions.

use super::{Mode, RECENT, Reading, Stream};
use crate::config::Reads;
use crate::session::stream::intake::{self, Intake};
use crate::session::stream::{Counters, Effect, Page, StreamStop, SubscriptionId};
use spacetime_sync_proto::FrameRow;

impl Stream {
    pub(super) fn page(&mut self, page: Page, counters: &mut Counters, effects: &mut Vec<Effect>) {
        let Some(reading) = self.reading.take() else { return };
        counters.pages += 1;
        match self.mode {
            Mode::Offline
            | Mode::Refused(_)
            | Mode::Unanswered
            | Mode::Recovering(_)
            | Mode::Retrying { .. }
            | Mode::Stopped(_) => return,
            Mode::Paging | Mode::Subscribing(_) | Mode::Live(_) | Mode::Renewing { .. } => {}
        }
        // The stream has started over since it asked.
        if reading.begun != self.recovery.begun {
            return;
        }
        if let Err(stop) = self.take_page(reading, page, counters, effects) {
            self.contradicted(stop, effects);
        }
    }

    fn take_page(
        &mut self,
        reading: Reading,
        page: Page,
        counters: &mut Counters,
        effects: &mut Vec<Effect>,
    ) -> Result<(), StreamStop> {
        match self.bounds.reads {
            Reads::Early if page.durable_reads => return Err(StreamStop::DurableReads),
            Reads::Early | Reads::Confirmed => {}
        }
        let (after, head) = (reading.after, page.head);
        if head.seq < after.seq {
            return Err(StreamStop::AheadOfLane {
                applied: after.seq,
                head: head.seq,
            });
        }
        if head.seq == after.seq && head.chain != after.chain {
            let (expected, found) = (after.chain, head.chain);
            return Err(StreamStop::ChainMismatch {
                seq: after.seq,
                expected,
                found,
            });
        }
        if head.seq > self.cursor.seq && page.oldest_seq > self.cursor.seq.next() {
            return Err(StreamStop::BelowWindow {
                applied: self.cursor.seq,
                oldest: page.oldest_seq,
            });
        }
        let heard_since = self.known.filter(|known| Some(*known) > reading.known);
        self.known = Some(heard_since.unwrap_or(head.seq).max(head.seq).max(self.cursor.seq));
        self.fresh = true;
        self.claim = Some(head);
        let (mut bytes, mut events) = (0, 0_u64);
        for frame in page.frames {
            bytes += frame.bytes.len() as u64;
            events = events.saturating_add(frame.claimed_events());
            self.take(frame, false, counters, effects)?;
        }
        if events > 0 {
            self.bytes_per_event = bytes.div_ceil(events);
        }
        self.recovery.waits = 0;
        if self.cursor.seq < head.seq && self.cursor.seq == after.seq {
            // The page leads nowhere: asking again at once would only bring the same page.
            self.ask_later(Mode::Unanswered, effects);
        }
        Ok(())
    }

    pub(super) fn live_frame(&mut self, frame: FrameRow, counters: &mut Counters, effects: &mut Vec<Effect>) {
        self.known = self.known.max(Some(frame.last_seq));
        // A larger event raises the estimate at once, smaller ones lower it little by little: the reach errs towards
        // small.
        let slowly = self.bytes_per_event - self.bytes_per_event / 8;
        let bytes = frame.bytes.len() as u64;
        self.bytes_per_event = bytes.div_ceil(frame.claimed_events()).max(slowly);
        match self.mode {
            // The row is left over from a subscription that was given up. The stream pages up to the head that the row
            // reveals.
            Mode::Offline
            | Mode::Paging
            | Mode::Refused(_)
            | Mode::Unanswered
            | Mode::Recovering(_)
            | Mode::Retrying { .. }
            | Mode::Stopped(_) => return,
            Mode::Subscribing(_) | Mode::Live(_) | Mode::Renewing { .. } => {}
        }
        match self.take(frame, false, counters, effects) {
            Err(stop) => self.contradicted(stop, effects),
            Ok(()) if self.unapplied_bytes > self.bounds.unapplied_bytes => self.overrun(counters, effects),
            Ok(()) => {}
        }
    }

    pub(super) fn take(
        &mut self,
        frame: FrameRow,
        from_authority: bool,
        counters: &mut Counters,
        effects: &mut Vec<Effect>,
    ) -> Result<(), StreamStop> {
        counters.frames += 1;
        match intake::take(frame, self.cursor, self.claim, &self.recent, from_authority)? {
            Intake::Hole => {}
            Intake::Repeated { events, compared } => {
                counters.duplicates_dropped += events;
                self.doubtful |= !compared && self.is_delivering();
            }
            Intake::Next { batch, repeated } => {
                counters.duplicates_dropped += repeated;
                self.cursor = batch.to;
                if from_authority {
                    self.proven = batch.to;
                }
                if self.recent.len() == RECENT {
                    self.recent.pop_front();
                }
                self.recent.push_back(batch.to);
                self.unapplied_bytes += batch.bytes;
                effects.push(Effect::Apply(batch));
            }
        }
        Ok(())
    }

    pub(super) fn subscribed(&mut self, id: SubscriptionId, effects: &mut Vec<Effect>) {
        match self.mode {
            Mode::Subscribing(asked) if asked == id => self.mode = Mode::Live(id),
            Mode::Renewing { old, new } if new == id => {
                effects.push(Effect::Unsubscribe { id: old });
                self.mode = Mode::Live(new);
            }
            // This subscription was given up before it began.
            Mode::Subscribing(_) | Mode::Renewing { .. } => {}
            Mode::Offline
            | Mode::Paging
            | Mode::Live(_)
            | Mode::Refused(_)
            | Mode::Unanswered
            | Mode::Recovering(_)
            | Mode::Retrying { .. }
            | Mode::Stopped(_) => {}
        }
    }

    pub(super) fn renew(&mut self, counters: &mut Counters, effects: &mut Vec<Effect>) {
        match self.mode {
            Mode::Live(old) => {
                let new = self.subscribe(effects);
                counters.resubscriptions += 1;
                self.mode = Mode::Renewing { old, new };
            }
            Mode::Offline
            | Mode::Paging
            | Mode::Subscribing(_)
            | Mode::Renewing { .. }
            | Mode::Refused(_)
            | Mode::Unanswered
            | Mode::Recovering(_)
            | Mode::Retrying { .. }
            | Mode::Stopped(_) => {}
        }
    }

    pub(super) fn overrun(&mut self, counters: &mut Counters, effects: &mut Vec<Effect>) {
        match self.mode {
            Mode::Subscribing(_) | Mode::Live(_) | Mode::Renewing { .. } => {
                counters.overruns += 1;
                self.leave(Mode::Paging, effects);
            }
            Mode::Offline
            | Mode::Paging
            | Mode::Refused(_)
            | Mode::Unanswered
            | Mode::Recovering(_)
            | Mode::Retrying { .. }
            | Mode::Stopped(_) => {}
        }
    }
}
