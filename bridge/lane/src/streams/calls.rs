//! Decides which frame to send next, and what the answer to a call means for its stream.

use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Refusal, RefusalCode, Seq, StreamId};

use super::stream::{Flying, HaltReason, Landed, Mode};
use super::{Effect, Streams, less};
use crate::CallId;

/// Of how many streams a look may bring events.
const LIVELY_STREAMS: usize = 64;

impl Streams {
    /// Sends one frame of each stream in turn, within the limits.
    pub(super) fn send(&mut self, out: &mut Vec<Effect>) {
        let Some(link) = self.link else { return };
        while self.calls.len() < self.limits.calls {
            let Some(stream_id) = self.to_send.pop_front() else {
                return;
            };
            let Some(stream) = self.streams.get_mut(&stream_id) else {
                continue;
            };
            stream.queued_to_send = false;
            let Some(frame) = stream.ready.pop_front() else {
                continue;
            };
            let call = CallId(self.next_call);
            self.next_call += 1;
            stream.in_flight.push_back(Flying {
                call,
                last_seq: frame.row.last_seq,
                bytes: frame.size(),
            });
            if !stream.ready.is_empty() {
                stream.queued_to_send = true;
                self.to_send.push_back(stream_id.clone());
            }
            self.calls.insert(call, stream_id.clone());
            if !self.lively.contains(&stream_id) {
                self.lively.push_back(stream_id.clone());
                if self.lively.len() > LIVELY_STREAMS {
                    self.lively.pop_front();
                }
            }
            out.push(Effect::Append {
                link,
                call,
                stream_id,
                frame,
            });
        }
    }

    /// Removes a call from the books. `None` if it belongs to an earlier link.
    fn landed(&mut self, call: CallId) -> Option<(StreamId, Seq)> {
        let stream_id = self.calls.remove(&call)?;
        let stream = self.streams.get_mut(&stream_id)?;
        let at = stream.in_flight.iter().position(|flying| flying.call == call)?;
        let flying = stream.in_flight.remove(at)?;
        less(&mut self.bytes, flying.bytes);
        Some((stream_id, flying.last_seq))
    }

    pub(super) fn acked(&mut self, call: CallId, out: &mut Vec<Effect>) {
        let Some((stream_id, seq)) = self.landed(call) else {
            return;
        };
        let Some(stream) = self.streams.get_mut(&stream_id) else {
            return;
        };
        stream.attempts = 0;
        stream.durable = stream.durable.max(seq);
        out.push(Effect::Advance {
            stream_id: stream_id.clone(),
            seq: stream.durable,
        });
        self.queue_to_read(&stream_id);
        self.when_landed(stream_id, out);
    }

    pub(super) fn refused(&mut self, call: CallId, refusal: Refusal, out: &mut Vec<Effect>) {
        let Some((stream_id, _)) = self.landed(call) else {
            return;
        };
        let attempts = self.streams.get(&stream_id).map_or(0, |stream| stream.attempts);
        let landed = match refusal.code.class() {
            RefusalClass::Fatal => return out.push(Effect::DropLink(refusal)),
            // SpacetimeDB holds another log. The comparison finds out whose it is, even if all attempts went to other
            // failures.
            RefusalClass::Retry | RefusalClass::Reject
                if is_about_the_log(refusal.code) && attempts <= self.limits.attempts =>
            {
                Landed::Compare
            }
            // The stream is not to blame: a link with a fresh token may succeed.
            RefusalClass::Retry if is_about_the_token(refusal.code) => return out.push(Effect::DropLink(refusal)),
            RefusalClass::Retry if attempts < self.limits.attempts => Landed::Compare,
            RefusalClass::Retry | RefusalClass::Reject => Landed::Halt(HaltReason::Refused(refusal)),
        };
        self.fail(&stream_id, landed);
        self.when_landed(stream_id, out);
    }

    pub(super) fn lost(&mut self, call: CallId, message: String, out: &mut Vec<Effect>) {
        let Some((stream_id, _)) = self.landed(call) else {
            return;
        };
        let Some(stream) = self.streams.get_mut(&stream_id) else {
            return;
        };
        let landed = if stream.attempts >= self.limits.attempts {
            Landed::Halt(HaltReason::Failing {
                attempts: stream.attempts,
                message,
            })
        } else {
            Landed::Compare
        };
        self.fail(&stream_id, landed);
        self.when_landed(stream_id, out);
    }

    /// Stops sending and waits for the calls in flight. Only the first failure counts, because it causes the failures of
    /// the calls behind it.
    fn fail(&mut self, stream_id: &StreamId, landed: Landed) {
        if let Some(stream) = self.streams.get_mut(stream_id)
            && matches!(stream.mode, Mode::Flowing)
        {
            less(&mut self.bytes, stream.drop_ready());
            stream.mode = Mode::Landing(landed);
        }
    }

    /// Moves a stream on once all its calls have landed.
    pub(super) fn when_landed(&mut self, stream_id: StreamId, out: &mut Vec<Effect>) {
        let Some(stream) = self.streams.get_mut(&stream_id) else {
            return;
        };
        if !stream.in_flight.is_empty() || !stream.ready.is_empty() {
            return;
        }
        match std::mem::replace(&mut stream.mode, Mode::Comparing) {
            Mode::Landing(Landed::Compare) => {
                stream.attempts = stream.attempts.saturating_add(1);
                out.push(Effect::Compare(stream_id));
            }
            Mode::Landing(Landed::Halt(reason)) => self.halt(stream_id, reason, out),
            other @ (Mode::Flowing | Mode::Comparing | Mode::Filling | Mode::Resting(..) | Mode::Halted(_)) => {
                stream.mode = other;
            }
        }
    }
}

/// Whether the module refused because the log that it holds is another one, or has no frame there that it could read.
fn is_about_the_log(code: RefusalCode) -> bool {
    matches!(
        code,
        RefusalCode::ChainMismatch | RefusalCode::EventConflict | RefusalCode::BelowWindow
    )
}

/// Whether the module refused the bridge's own token, whatever the call was.
fn is_about_the_token(code: RefusalCode) -> bool {
    matches!(
        code,
        RefusalCode::TokenExpired | RefusalCode::TokenNotYetValid | RefusalCode::TokenTooOld
    )
}
