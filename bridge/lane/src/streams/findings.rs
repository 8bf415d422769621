//! Decides what the result of a comparison or of a refill means for its stream.

use std::time::Duration;

use spacetime_sync_proto::{Seq, StreamId};

use super::reconcile::Verdict;
use super::stream::{HaltReason, Mode, Next, Stream};
use super::{Effect, Finding, Streams};

impl Streams {
    pub(super) fn compared(&mut self, now: Duration, stream_id: StreamId, finding: Finding, out: &mut Vec<Effect>) {
        if self.link.is_none() {
            return;
        }
        let is_of_refill = matches!(finding, Finding::Filled(_) | Finding::NotFilled { .. });
        match self.streams.get(&stream_id).map(|stream| &stream.mode) {
            Some(Mode::Comparing) if !is_of_refill => self.compared_waiting(now, stream_id, finding, out),
            Some(Mode::Filling) if is_of_refill || matches!(finding, Finding::Broken(_)) => {
                self.compared_waiting(now, stream_id, finding, out);
            }
            None => self.compared_idle(now, stream_id, finding, out),
            Some(Mode::Halted(_)) => compared_halted(stream_id, &finding, out),
            // The stream has been compared since and flows, or has failed since: this finding is outdated.
            Some(Mode::Flowing | Mode::Landing(_) | Mode::Comparing | Mode::Filling | Mode::Resting(..)) => {}
        }
    }

    /// For a stream that waits for this finding.
    fn compared_waiting(&mut self, now: Duration, stream_id: StreamId, finding: Finding, out: &mut Vec<Effect>) {
        let most = self.limits.attempts;
        let Some(stream) = self.streams.get_mut(&stream_id) else {
            return;
        };
        let failures = stream.attempts;
        match finding {
            Finding::Compared { verdict, held, head } => {
                stream.wanted = stream.wanted.max(head);
                match verdict {
                    Verdict::InStep(seq) => {
                        stream.restart_at(seq);
                        out.push(holds(&stream_id, seq));
                    }
                    Verdict::Ahead(seq) => {
                        stream.restart_at(seq);
                        out.push(advance(&stream_id, seq));
                    }
                    Verdict::Behind(seq) => {
                        stream.set_back_to(seq);
                        out.push(set_back(&stream_id, seq));
                    }
                    Verdict::Refill(after) => {
                        let seen = held;
                        // Before a forgery stands what this bridge published. The authority may not know all of it yet.
                        let published = stream.durable;
                        let after = if published < held.seq {
                            after.max(published)
                        } else {
                            after
                        };
                        stream.mode = Mode::Filling;
                        return out.push(Effect::Refill { stream_id, seen, after });
                    }
                    Verdict::Unknown => return self.rest(now, &stream_id, failures, Next::Compare),
                    Verdict::Apart(reason) => return self.halt(stream_id, reason, out),
                }
            }
            // The published seq may be past the new head, or before it.
            Finding::Filled(seq) => {
                // What the calls failed for is gone.
                stream.attempts = 0;
                stream.set_back_to(seq);
                out.push(set_back(&stream_id, seq));
            }
            Finding::NotCompared => {
                return self.rest(now, &stream_id, failures.saturating_add(1), Next::Compare);
            }
            Finding::NotFilled { message, counts } => {
                if counts {
                    stream.attempts = stream.attempts.saturating_add(1);
                }
                let attempts = stream.attempts;
                if counts && attempts > most {
                    return self.halt(stream_id, HaltReason::Failing { attempts, message }, out);
                }
                return self.rest(now, &stream_id, attempts, Next::Compare);
            }
            Finding::Broken(reason) => return self.halt(stream_id, reason, out),
        }
        // A stream that failed rests first. One that was only new on this link flows at once.
        if failures > 0 {
            self.rest(now, &stream_id, failures, Next::Flow);
        } else {
            stream.mode = Mode::Flowing;
            self.queue_to_read(&stream_id);
        }
    }

    /// For a stream that the sweep compared and nobody remembers. It is remembered only if there is something to do for it.
    fn compared_idle(&mut self, now: Duration, stream_id: StreamId, finding: Finding, out: &mut Vec<Effect>) {
        match finding {
            Finding::Compared {
                verdict: Verdict::InStep(seq),
                ..
            } => out.push(holds(&stream_id, seq)),
            Finding::Compared {
                verdict: Verdict::Ahead(seq),
                ..
            } => out.push(advance(&stream_id, seq)),
            // Cannot happen: a stream that is being refilled is remembered.
            Finding::Filled(_) | Finding::NotFilled { .. } => {}
            Finding::Compared { .. } | Finding::NotCompared | Finding::Broken(_) => {
                let mut stream = Stream::new(Seq::ZERO);
                stream.mode = Mode::Comparing;
                self.streams.insert(stream_id.clone(), stream);
                self.compared_waiting(now, stream_id, finding, out);
            }
        }
    }
}

/// For a halted stream: the published seq follows what SpacetimeDB holds, and the stream stays halted.
fn compared_halted(stream_id: StreamId, finding: &Finding, out: &mut Vec<Effect>) {
    let Finding::Compared { verdict, .. } = finding else {
        return;
    };
    match verdict {
        Verdict::InStep(seq) => out.push(holds(&stream_id, *seq)),
        Verdict::Ahead(seq) => out.push(advance(&stream_id, *seq)),
        Verdict::Behind(seq) => out.push(set_back(&stream_id, *seq)),
        Verdict::Refill(_) | Verdict::Unknown | Verdict::Apart(_) => {}
    }
}

fn holds(stream_id: &StreamId, seq: Seq) -> Effect {
    let stream_id = stream_id.clone();
    Effect::Holds { stream_id, seq }
}

fn advance(stream_id: &StreamId, seq: Seq) -> Effect {
    let stream_id = stream_id.clone();
    Effect::Advance { stream_id, seq }
}

fn set_back(stream_id: &StreamId, seq: Seq) -> Effect {
    let stream_id = stream_id.clone();
    Effect::SetBack { stream_id, seq }
}
