//! Calls of the application. Each gets one answer, whatever happens to the connection. Some are sent at once or not at all;
//! others, which the module does once however often it hears them, are repeated over reconnects until they have an answer or
//! their time is up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::Rng as _;
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{NostrKey, NostrSignature, Refusal};

use super::event::{CallFailure, ConnectionId};
use super::{Command, Session};
use crate::config::limits::LONGEST_TIME;
use crate::error::CallError;
use crate::outbox::{OutboxEvent, OutboxOutcome};
use crate::signal::Signal;
use crate::work::{Capability, ChangeAssignment, OpenAssignment};

/// Most calls that have no answer yet.
const UNDER_WAY: usize = 64;

/// Names a call of the application. A runner never reuses an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// A call of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Make a challenge for a node.
    Challenge {
        /// The node.
        node_id: String,
    },
    /// Bind a key of Nostr to a node.
    Bind {
        /// The node.
        node_id: String,
        /// The challenge.
        challenge: String,
        /// The key.
        key: NostrKey,
        /// Its signature.
        signature: NostrSignature,
    },
    /// Send a signal.
    Signal(Signal),
    /// Publish a capability.
    Publish(Capability),
    /// Open an assignment.
    Open(OpenAssignment),
    /// Change an assignment.
    Change(ChangeAssignment),
    /// Put an event into the outbox.
    Enqueue(OutboxEvent),
    /// Say what became of an event of the outbox.
    Mark(OutboxOutcome),
}

/// What a call answers with: a challenge, if it asks for one.
pub type Called<E> = Result<Option<String>, E>;

/// The calls that have no answer yet.
#[derive(Debug, Default)]
pub(super) struct Calls(BTreeMap<CallId, Pending>);

#[derive(Debug)]
struct Pending {
    /// The connection on which it is under way, and since when.
    sent: Option<(ConnectionId, Instant)>,
    /// What repeats it. `None` if nothing does.
    repeat: Option<Repeat>,
}

#[derive(Debug)]
struct Repeat {
    call: Call,
    /// When its time is up.
    until: Instant,
    /// When to send it again, if it waits for that.
    again_at: Option<Instant>,
    /// How often in a row SpacetimeDB or the module asked for another attempt.
    failures: u32,
    /// What the module said last, if it was a refusal.
    refused: Option<Refusal>,
    /// Why it may have been done although no answer says so.
    uncertain: Option<CallError>,
}

impl Pending {
    /// What is known of a call that gets no answer any more. `unsent` if it was never sent.
    fn outcome(self, unsent: CallError) -> CallError {
        let Some(repeat) = self.repeat else {
            return CallError::Lost;
        };
        if let Some(uncertain) = repeat.uncertain {
            return uncertain;
        }
        match (self.sent, repeat.refused) {
            (Some(_), _) => CallError::Lost,
            (None, Some(refusal)) => CallError::Refused(refusal),
            (None, None) => unsent,
        }
    }
}

impl Session {
    /// The application calls. With `within`, the call is repeated for so long; the module does it once.
    pub(super) fn call(&mut self, id: CallId, call: Call, within: Option<Duration>) {
        let refused = match self.serving() {
            _ if self.calls.0.len() >= UNDER_WAY => CallError::TooMany,
            None if within.is_none() => CallError::NotConnected,
            serving => {
                let repeat = within.map(|within| Repeat {
                    call: call.clone(),
                    until: self.now + within.min(LONGEST_TIME),
                    again_at: None,
                    failures: 0,
                    refused: None,
                    uncertain: None,
                });
                let sent = serving.map(|connection| (connection, self.now));
                self.calls.0.insert(id, Pending { sent, repeat });
                if let Some(connection) = serving {
                    self.commands.push(Command::Call { connection, id, call });
                }
                return;
            }
        };
        let reply = Err(refused);
        self.commands.push(Command::Reply { id, reply });
    }

    /// The module has answered a call, or SpacetimeDB in its place.
    pub(super) fn called(&mut self, from: ConnectionId, id: CallId, answer: Called<CallFailure>) {
        let Some(pending) = self.calls.0.get_mut(&id) else {
            return;
        };
        if pending.sent.is_none_or(|(connection, _)| connection != from) {
            return;
        }
        let has_aged = answer.as_ref().is_err_and(CallFailure::is_of_aged_token);
        if let (Err(failure), Some(repeat)) = (&answer, &mut pending.repeat)
            && failure.may_pass()
        {
            pending.sent = None;
            repeat.failures += 1;
            let pause = self.settings.backoff.delay(repeat.failures, self.dice.random());
            repeat.again_at = Some(self.now + pause);
            match failure {
                CallFailure::Refused(refusal) => repeat.refused = Some(refusal.clone()),
                CallFailure::Failed(said) => repeat.uncertain = Some(CallError::Failed(said.clone())),
            }
        } else {
            self.calls.0.remove(&id);
            let reply = answer.map_err(|failure| match failure {
                CallFailure::Refused(refusal) => CallError::Refused(refusal),
                CallFailure::Failed(said) => CallError::Failed(said),
            });
            self.commands.push(Command::Reply { id, reply });
        }
        self.doubt_token_if(has_aged);
    }

    /// Sees to the calls whose connection is gone, and nobody says what became of them: those that can be repeated are, as
    /// soon as a connection serves.
    pub(super) fn go_on_with_calls(&mut self) {
        if self.calls.0.is_empty() {
            return;
        }
        let alive = [self.serving(), self.handed_over()];
        let is_lost = |pending: &Pending| {
            let sent = pending.sent;
            sent.is_some_and(|(connection, _)| !alive.contains(&Some(connection)))
        };
        self.reply_lost(|pending| is_lost(pending) && pending.repeat.is_none());
        for (id, pending) in &mut self.calls.0 {
            let is_lost = is_lost(pending);
            let Some(repeat) = &mut pending.repeat else { continue };
            if is_lost {
                pending.sent = None;
                repeat.uncertain = Some(CallError::Lost);
            }
            let Some(connection) = alive[0].filter(|_| pending.sent.is_none()) else {
                continue;
            };
            if repeat.again_at.is_none_or(|at| at <= self.now) {
                pending.sent = Some((connection, self.now));
                let call = repeat.call.clone();
                self.commands.push(Command::Call {
                    connection,
                    id: *id,
                    call,
                });
            }
        }
    }

    /// Answers the calls whose time is up.
    pub(super) fn end_late_calls(&mut self) {
        let now = self.now;
        self.reply_lost(|pending| pending.repeat.as_ref().is_some_and(|repeat| repeat.until <= now));
    }

    /// Answers all calls: the session makes none any more.
    pub(super) fn end_calls(&mut self) {
        let all = std::mem::take(&mut self.calls.0);
        self.commands
            .extend(all.into_iter().map(|(id, pending)| Command::Reply {
                id,
                reply: Err(pending.outcome(CallError::Stopped)),
            }));
    }

    fn reply_lost(&mut self, which: impl Fn(&Pending) -> bool) {
        let lost = self.calls.0.extract_if(.., |_, pending| which(pending));
        self.commands.extend(lost.map(|(id, pending)| Command::Reply {
            id,
            reply: Err(pending.outcome(CallError::NotConnected)),
        }));
    }
}

impl Calls {
    /// Since when the connection has owed an answer.
    pub(super) fn asked_at(&self) -> Option<Instant> {
        let sent = self.0.values().filter_map(|pending| pending.sent);
        sent.map(|(_, at)| at).min()
    }
}

impl CallFailure {
    /// Whether the same call may be done later.
    fn may_pass(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.code.class() == RefusalClass::Retry || self.is_of_aged_token(),
            Self::Failed(_) => true,
        }
    }
}
