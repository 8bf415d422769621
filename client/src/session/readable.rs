//! Which streams the session may read. As long as the application wants to know, the session asks the module on each connection that
//! serves, and again whenever its grants change. A module that cannot tell is not asked: then the session tells what it knows by itself.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::Rng as _;
use spacetime_sync_proto::contract::READABLE_STREAMS_SINCE;
use spacetime_sync_proto::{StreamId, limit};

use super::connection::Connection;
use super::event::{CallFailure, ConnectionId, QuestionId};
use super::{Command, Session};
use crate::readable::ReadableStreams;
use crate::watched::Freshness;

/// The shortest time between two questions, however often the grants change.
const PAUSE: Duration = Duration::from_secs(1);
/// When grants change, the question waits for a random part of this: one act can change the grants of many sessions.
pub(super) const SPREAD: Duration = Duration::from_secs(1);
/// The pause after a question without an answer doubles this many times at most.
const PAUSE_DOUBLES: u32 = 6;
/// Most pages of one answer: each has a name, and a session has no more grants.
const PAGES: usize = limit::SESSION_GRANTS + 1;

/// What the application hears of it.
#[derive(Debug)]
pub(super) struct Readable {
    /// Whether the application wants to know.
    is_wanted: bool,
    /// The question under way.
    asking: Option<Asking>,
    /// When to ask next, because what was told may be out of date.
    ask_at: Option<Instant>,
    /// When the session asked last.
    asked_at: Option<Instant>,
    /// How many questions in a row had no answer when their connection ended. A gate of an earlier release ends a connection for the
    /// question: the streams go on meanwhile.
    unanswered: u32,
    freshness: Freshness,
}

#[derive(Debug)]
struct Asking {
    question: QuestionId,
    connection: ConnectionId,
    /// The last name that was told.
    after: String,
    found: BTreeSet<StreamId>,
    pages: usize,
    asked_at: Instant,
}

impl Default for Readable {
    fn default() -> Self {
        Self {
            is_wanted: false,
            asking: None,
            ask_at: None,
            asked_at: None,
            unanswered: 0,
            freshness: Freshness::Unseen,
        }
    }
}

impl Readable {
    /// Since when the connection has owed an answer.
    pub(super) fn owed_since(&self) -> Option<Instant> {
        self.asking.as_ref().map(|asking| asking.asked_at)
    }
}

impl Session {
    /// The application wants to know, from now on.
    pub(super) fn want_readable(&mut self) {
        if !std::mem::replace(&mut self.readable.is_wanted, true) {
            self.readable.ask_at = Some(self.now);
        }
    }

    /// What was told may be out of date.
    pub(super) fn readable_changed(&mut self) {
        if self.readable.is_wanted && self.readable.ask_at.is_none() {
            let rested = self.readable.asked_at.map_or(self.now, |at| at + PAUSE);
            let asks = matches!(&self.connection, Connection::Up(up) if up.speaks >= READABLE_STREAMS_SINCE);
            let spread = if asks {
                SPREAD.mul_f64(self.dice.random())
            } else {
                Duration::ZERO
            };
            self.readable.ask_at = Some(rested.max(self.now) + spread);
        }
    }

    /// Asks, or tells what the session knows, when it is time.
    pub(super) fn ask_readable(&mut self) {
        let Connection::Up(up) = &self.connection else { return };
        if self.readable.asking.is_some() || self.readable.ask_at.is_none_or(|at| at > self.now) {
            return;
        }
        let (connection, speaks) = (up.id, up.speaks);
        self.readable.ask_at = None;
        self.readable.asked_at = Some(self.now);
        if speaks < READABLE_STREAMS_SINCE {
            let readable = self.followers.iter().filter(|follower| follower.is_readable());
            let streams = readable.map(|follower| follower.id.clone()).collect();
            return self.show_readable(ReadableStreams {
                streams,
                is_complete: false,
            });
        }
        let asking = Asking {
            question: QuestionId(self.next_id()),
            connection,
            after: String::new(),
            found: BTreeSet::new(),
            pages: 0,
            asked_at: self.now,
        };
        self.ask_for_page(asking);
    }

    fn ask_for_page(&mut self, asking: Asking) {
        self.commands.push(Command::AskReadable {
            connection: asking.connection,
            question: asking.question,
            after: asking.after.clone(),
        });
        self.readable.asking = Some(asking);
    }

    /// The module has told a page of names, or has not.
    pub(super) fn readable_told(
        &mut self,
        from: ConnectionId,
        question: QuestionId,
        answer: Result<Vec<String>, CallFailure>,
    ) {
        let asked = |asking: &mut Asking| asking.question == question && asking.connection == from;
        let Some(mut asking) = self.readable.asking.take_if(asked) else {
            return;
        };
        let names = match answer {
            Ok(names) => names,
            Err(failure) => {
                tracing::warn!(?failure, "the module does not say which streams the session may read");
                self.doubt_token_if(failure.is_of_aged_token());
                self.readable_is_stale();
                self.readable.ask_at = Some(self.now + self.settings.limits.ask_again_after);
                return;
            }
        };
        // A newer module may have names of a form that this release does not know.
        let known = names.iter().filter_map(|name| StreamId::new(name).ok());
        asking.found.extend(known);
        asking.pages += 1;
        match names.into_iter().next_back().filter(|last| *last > asking.after) {
            Some(last) if asking.pages < PAGES => {
                let question = QuestionId(self.next_id());
                self.ask_for_page(Asking {
                    question,
                    after: last,
                    asked_at: self.now,
                    ..asking
                });
            }
            after => self.show_readable(ReadableStreams {
                streams: asking.found,
                is_complete: after.is_none(),
            }),
        }
    }

    fn show_readable(&mut self, readable: ReadableStreams) {
        self.readable.unanswered = 0;
        self.readable.freshness = Freshness::Live;
        self.commands.push(Command::ShowReadable {
            readable: Some(readable),
            freshness: Freshness::Live,
        });
    }

    /// Nothing says any more what changes. The next connection that serves is asked at once, or later if this one ended without an
    /// answer.
    pub(super) fn readable_is_stale(&mut self) {
        let mut pause = Duration::ZERO;
        if self.readable.asking.take().is_some() {
            let doubled = 2_u32.pow(self.readable.unanswered.min(PAUSE_DOUBLES));
            pause = self.settings.limits.ask_again_after.saturating_mul(doubled);
            self.readable.unanswered += 1;
        }
        let at = self.now + pause;
        // A pause that has begun is not cut short.
        let at = self.readable.ask_at.map_or(at, |before| before.max(at));
        self.readable.ask_at = self.readable.is_wanted.then_some(at);
        if self.readable.freshness == Freshness::Live {
            self.readable.freshness = Freshness::Stale { since: self.now };
            self.commands.push(Command::ShowReadable {
                readable: None,
                freshness: self.readable.freshness,
            });
        }
    }
}
