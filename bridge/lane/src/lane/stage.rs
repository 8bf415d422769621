//! The stages of a bridge, from the first connection to the authority until its end, and what leads from one to the next.

use std::time::Duration;

use spacetime_sync_proto::refusal::RefusalClass;

use super::Lane;
use crate::RequestId;
use crate::beats::Beats;
use crate::compare::Compare;
use crate::health::Role;
use crate::ids::Ids;
use crate::ledger::Ledger;
use crate::link::Link;
use crate::look::Look;
use crate::message::{Command, Failure};
use crate::notice::Notice;
use crate::streams::{Input, Streams};
use crate::wake::Wake;

/// How long a standby waits before it asks for the lead again.
const LEAD_EVERY: Duration = Duration::from_millis(500);
/// How long a bridge that stops may take to record what is published.
const RECORD: Duration = Duration::from_secs(5);

/// What the bridge is doing.
#[derive(Debug)]
pub(super) enum Stage {
    /// It connects to the authority and checks the schema.
    Opening(Attempt),
    /// It asks for the lead, which another bridge may have.
    Standby(Attempt),
    /// It has the lead and carries events.
    Leading,
    /// It was told to stop: it sends what it has read, and waits for the acknowledgements.
    Draining { by: Duration },
    /// It was told to stop: it records what is published.
    Recording { by: Duration },
    /// It is done.
    Ended,
}

/// A question that is repeated until it succeeds.
#[derive(Debug)]
pub(super) enum Attempt {
    /// Ask at this time.
    Waiting(Duration),
    /// Asked, and not answered yet.
    Asked(RequestId),
}

impl Lane {
    pub(super) fn do_what_is_due(&mut self, now: Duration, out: &mut Vec<Command>) {
        match &mut self.stage {
            Stage::Opening(attempt) => {
                if let Some(request) = attempt.due(now, &mut self.ids) {
                    out.push(Command::OpenAuthority(request));
                }
            }
            Stage::Standby(attempt) => {
                if let Some(request) = attempt.due(now, &mut self.ids) {
                    out.push(Command::AskForLead(request));
                }
            }
            Stage::Leading => {
                self.carry(now, out);
                self.look.turn(now, || self.streams.read_up_to(), &mut self.ids, out);
                self.wake.turn(now, &mut self.ids, out);
                self.wake.sleeps(self.look.is_asleep(), &mut self.ids, out);
            }
            Stage::Draining { by } => {
                let by = *by;
                if by <= now || self.streams.is_drained() || self.link.up().is_none() {
                    self.link.turn_off(out);
                    self.feed(now, Input::LinkDown, out);
                    self.ledger.flush(now);
                    self.stage = Stage::Recording { by: now + RECORD };
                    return self.do_what_is_due(now, out);
                }
                self.carry(now, out);
            }
            Stage::Recording { by } => {
                let late = *by <= now;
                self.ledger.turn(now, &mut self.ids, out);
                if late || self.ledger.is_empty() {
                    if late {
                        let streams = self.ledger.len();
                        out.push(Command::Tell(Notice::LeftUnrecorded { streams }));
                    }
                    self.end(Ok(()), out);
                }
            }
            Stage::Ended => {}
        }
    }

    pub(super) fn opened(
        &mut self,
        now: Duration,
        request: RequestId,
        opened: Result<(), Failure>,
        out: &mut Vec<Command>,
    ) {
        match &mut self.stage {
            Stage::Opening(attempt) if attempt.is(request) => match opened {
                Ok(()) => {
                    self.authority_here(out);
                    if self.settings.lead {
                        self.stage = Stage::Standby(Attempt::Waiting(now));
                    } else {
                        self.begin_lead(now, out);
                    }
                }
                // The bridge waits for a database that is away. If the database is wrong, the bridge ends.
                Err(failure) if failure.class == RefusalClass::Retry => {
                    *attempt = Attempt::Waiting(now + self.authority.next(&mut self.dice));
                    self.authority_away(now, failure.text, out);
                }
                Err(failure) => self.end(Err(failure), out),
            },
            Stage::Opening(_)
            | Stage::Standby(_)
            | Stage::Leading
            | Stage::Draining { .. }
            | Stage::Recording { .. }
            | Stage::Ended => {}
        }
    }

    pub(super) fn asked_for_lead(
        &mut self,
        now: Duration,
        request: RequestId,
        lead: Result<bool, Failure>,
        out: &mut Vec<Command>,
    ) {
        match &mut self.stage {
            Stage::Standby(attempt) if attempt.is(request) => match lead {
                Ok(true) => {
                    self.authority_here(out);
                    self.begin_lead(now, out);
                }
                Ok(false) => {
                    *attempt = Attempt::Waiting(now + LEAD_EVERY);
                    if !std::mem::replace(&mut self.stands_by, true) {
                        out.push(Command::Tell(Notice::StandingBy));
                    }
                    self.vitals.role(Role::Standby);
                    self.authority_here(out);
                }
                Err(failure) => {
                    *attempt = Attempt::Waiting(now + self.authority.next(&mut self.dice));
                    self.authority_away(now, failure.text, out);
                }
            },
            Stage::Opening(_)
            | Stage::Standby(_)
            | Stage::Leading
            | Stage::Draining { .. }
            | Stage::Recording { .. }
            | Stage::Ended => {}
        }
    }

    fn begin_lead(&mut self, now: Duration, out: &mut Vec<Command>) {
        out.push(Command::Tell(Notice::Leading));
        out.push(Command::BeginLead);
        self.stage = Stage::Leading;
        self.stands_by = false;
        self.vitals.lead_begun(now);
        self.link.want(now);
        self.look.woken(now);
        self.wake = Wake::new(now);
    }

    /// Forgets the lane's state: the next leader compares both sides anyway.
    /// As far as this bridge knows, SpacetimeDB leads to the right database again.
    pub(super) fn found_its_way(&mut self, out: &mut Vec<Command>) {
        if std::mem::take(&mut self.strayed) {
            out.push(Command::Strayed(false));
        }
    }

    pub(super) fn lead_lost(&mut self, now: Duration, out: &mut Vec<Command>) {
        match self.stage {
            Stage::Leading => {
                out.push(Command::Tell(Notice::LeadLost));
                self.link.turn_off(out);
                out.push(Command::EndLead);
                // Whoever leads now looks where SpacetimeDB leads. Tokens name the right database in any case.
                self.found_its_way(out);
                let settings = &self.settings;
                self.streams = Streams::new(settings.limits);
                self.link = Link::new(settings.connect_deadline, settings.ack_deadline);
                self.compare = Compare::new(settings.compared_streams, settings.compare_every);
                self.ledger = Ledger::new();
                self.look = Look::new(settings.idle_poll, settings.dirty_streams);
                self.beats = Beats::new(settings.beat_every, settings.policy_every, settings.applies_windows);
                self.journal.link_down();
                self.stage = Stage::Standby(Attempt::Waiting(now));
                self.vitals.lead_lost(now, "the connection that held the lead is lost");
            }
            // Without the lead this bridge may not send or record anything.
            Stage::Draining { .. } | Stage::Recording { .. } => {
                self.link.turn_off(out);
                self.end(Ok(()), out);
            }
            Stage::Opening(_) | Stage::Standby(_) | Stage::Ended => {}
        }
    }

    pub(super) fn stop(&mut self, now: Duration, out: &mut Vec<Command>) {
        match self.stage {
            Stage::Opening(_) | Stage::Standby(_) => self.end(Ok(()), out),
            Stage::Leading => {
                out.push(Command::Tell(Notice::Stopping));
                self.vitals.role(Role::Draining);
                self.streams.drain();
                self.stage = Stage::Draining {
                    by: now + self.settings.drain,
                };
            }
            Stage::Draining { .. } | Stage::Recording { .. } | Stage::Ended => {}
        }
    }

    fn end(&mut self, ended: Result<(), Failure>, out: &mut Vec<Command>) {
        self.stage = Stage::Ended;
        out.push(Command::End(ended));
    }
}

impl Attempt {
    /// Begins the next attempt if it is due.
    fn due(&mut self, now: Duration, ids: &mut Ids) -> Option<RequestId> {
        match self {
            Self::Waiting(until) if *until <= now => {
                let request = ids.request();
                *self = Self::Asked(request);
                Some(request)
            }
            Self::Waiting(_) | Self::Asked(_) => None,
        }
    }

    fn is(&self, request: RequestId) -> bool {
        matches!(self, Self::Asked(asked) if *asked == request)
    }
}
