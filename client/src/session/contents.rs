//! Contents of documents that are too large for events: one after the other of each stream, a few over all streams. A content that
//! cannot be had now is passed over and tried again later, so it never stands in the way of the others.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::Rng as _;
use spacetime_sync_proto::document::Pointer;

use super::connection::Connection;
use super::counted::less;
use super::ending::Life;
use super::event::{Answer, Content, Filled, Question, QuestionId};
use super::status::StopReason;
use super::stream::ApplyFailure;
use super::{Command, Session, Work, token};

/// Most questions for contents under way, over all streams. A content may have 16 MiB.
const UNDER_WAY: usize = 2;

/// Questions of all streams.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Streams that wait for their turn to ask.
    waiting: VecDeque<usize>,
    under_way: usize,
}

/// How far a stream is with the contents that it lacks.
#[derive(Debug, Default)]
pub(super) struct Search {
    step: Step,
    /// Whether more pointers have come since it began.
    again: bool,
    /// Whether a content was passed over.
    passed_over: bool,
    /// Searches in a row that had to pass something over.
    attempt: u32,
}

#[derive(Debug, Default)]
enum Step {
    #[default]
    Idle,
    /// The store looks for the next pointer.
    Looking,
    /// The stream waits for its turn to ask.
    Waiting(Content),
    Asking(QuestionId, Content),
    /// The store saves it.
    Saving(Content),
    /// What failed or was passed over is tried again at this time, after this key or from the beginning on.
    Paused(Instant, Option<String>),
}

impl Search {
    /// Whether nothing that is still to come could be taken for another stream's.
    pub(super) fn is_over(&self) -> bool {
        match self.step {
            Step::Idle | Step::Paused(..) => true,
            Step::Looking | Step::Waiting(_) | Step::Asking(..) | Step::Saving(_) => false,
        }
    }
}

impl Session {
    /// There may be contents that a stream lacks.
    pub(super) fn search(&mut self, at: usize) {
        let follower = &mut self.followers[at];
        if !follower.is_followed() || !follower.stream.carries_documents() {
            return;
        }
        match follower.search.step {
            Step::Idle => self.look(at, None),
            // What cannot be had must not be asked for whenever another pointer comes.
            Step::Looking | Step::Waiting(_) | Step::Asking(..) | Step::Saving(_) | Step::Paused(..) => {
                follower.search.again = true;
            }
        }
    }

    fn look(&mut self, at: usize, after: Option<String>) {
        match self.life {
            Life::Running => {}
            // The session is ending and begins nothing new.
            Life::Draining { .. } | Life::Leaving { .. } | Life::Ended => return,
        }
        let search = &mut self.followers[at].search;
        if after.is_none() {
            (search.again, search.passed_over) = (false, false);
        }
        search.step = Step::Looking;
        self.commands.push(Command::Apply {
            stream: at,
            work: Work::NextPointer { after },
        });
    }

    /// The store has looked for a pointer.
    pub(super) fn pointer_found(&mut self, at: usize, found: Result<Option<(String, Pointer)>, ApplyFailure>) {
        let follower = &mut self.followers[at];
        let is_followed = follower.is_followed();
        let search = &mut follower.search;
        let found = match found {
            Ok(found) => found,
            Err(failure) => {
                tracing::warn!(stream = %follower.id, ?failure, "the store cannot say which contents it lacks");
                search.step = Step::Idle;
                if is_followed {
                    self.pause_search(at, None, None);
                }
                return;
            }
        };
        match found {
            _ if !is_followed => search.step = Step::Idle,
            Some((key, Pointer { hash, .. })) => {
                search.step = Step::Waiting(Content { key, hash });
                self.contents.waiting.push_back(at);
            }
            None if search.passed_over => self.pause_search(at, None, None),
            None if search.again => self.look(at, None),
            None => *search = Search::default(),
        }
    }

    fn pause_search(&mut self, at: usize, after: Option<String>, wait: Option<Duration>) {
        let search = &mut self.followers[at].search;
        search.attempt = search.attempt.saturating_add(1);
        let pause = self.settings.backoff.delay_of(search.attempt, wait, self.dice.random());
        search.step = Step::Paused(self.now + pause, after);
    }

    /// Starts questions in the order in which they were queued.
    pub(super) fn start_contents(&mut self) {
        while let Some(at) = self.contents.waiting.front().copied() {
            let Connection::Up(up) = &self.connection else { return };
            if self.contents.under_way >= UNDER_WAY {
                return;
            }
            let token = self.token_of(up);
            self.contents.waiting.pop_front();
            let Step::Waiting(content) = &self.followers[at].search.step else {
                continue;
            };
            let content = content.clone();
            let question = QuestionId(self.next_id());
            self.contents.under_way += 1;
            self.commands.push(Command::Ask {
                question,
                stream: at,
                token,
                about: Question::Content(content.clone()),
            });
            self.followers[at].search.step = Step::Asking(question, content);
        }
    }

    /// Takes an answer, if it is about a content.
    pub(super) fn content_came(
        &mut self,
        question: QuestionId,
        at: usize,
        answer: Answer,
    ) -> Result<Option<Answer>, StopReason> {
        let follower = &mut self.followers[at];
        let content = match std::mem::take(&mut follower.search.step) {
            Step::Asking(asked, content) if asked == question => content,
            other => {
                follower.search.step = other;
                return Ok(Some(answer));
            }
        };
        if !matches!(answer, Answer::Content(Some(_))) {
            less(&mut self.contents.under_way, 1);
        }
        let mut wait = None;
        let (stream, key) = (&follower.id, content.key.as_str());
        match answer {
            // It counts as under way until it is saved: it may be large.
            Answer::Content(Some(bytes)) => {
                self.save_content(at, content, bytes);
                return Ok(None);
            }
            // There is a newer version by now, of which an event tells.
            Answer::Content(None) => {
                tracing::info!(%stream, key, "the content of a document is superseded");
                self.counters.documents_refused += 1;
                self.followers[at].search.passed_over = true;
                self.look(at, Some(content.key));
                return Ok(None);
            }
            Answer::Unauthorized(refusal) | Answer::Refused(refusal) if token::ends_session(refusal.code) => {
                return Err(StopReason::Refused(refusal));
            }
            Answer::Unauthorized(refusal) => {
                tracing::warn!(%stream, key, %refusal, "the bridge does not accept the token");
                self.doubt_token_if(true);
            }
            Answer::Refused(refusal) => tracing::warn!(%stream, key, %refusal, "the bridge refuses the content"),
            Answer::Failed { message, retry_after } => {
                tracing::warn!(%stream, key, message, "a question for a content failed");
                wait = retry_after;
            }
            Answer::Page(_) | Answer::Stale(_) | Answer::Document(_) | Answer::Documents(_) => {
                tracing::warn!(%stream, key, "the answer to a question for a content is about something else");
            }
        }
        self.counters.history_failures += 1;
        self.followers[at].search.passed_over = true;
        self.pause_search(at, Some(content.key), wait);
        Ok(None)
    }

    fn save_content(&mut self, at: usize, content: Content, bytes: Bytes) {
        self.followers[at].search.step = Step::Saving(content.clone());
        self.commands.push(Command::Apply {
            stream: at,
            work: Work::Fill { content, bytes },
        });
    }

    /// The store has saved a content, or could not.
    pub(super) fn filled(&mut self, at: usize, filled: Filled) {
        let follower = &mut self.followers[at];
        let is_followed = follower.is_followed();
        let Step::Saving(content) = std::mem::take(&mut follower.search.step) else {
            return;
        };
        less(&mut self.contents.under_way, 1);
        match filled {
            Filled::Saved => self.counters.contents += 1,
            Filled::Altered | Filled::NotSaved => {
                follower.search.passed_over = true;
                self.counters.documents_refused += 1;
            }
        }
        if is_followed {
            self.look(at, Some(content.key));
        }
    }

    /// What was passed over is tried again in its time.
    pub(super) fn search_again(&mut self) {
        for at in 0..self.followers.len() {
            if let Step::Paused(until, after) = &mut self.followers[at].search.step
                && *until <= self.now
            {
                let after = after.take();
                self.look(at, after);
            }
        }
    }

    /// Drops whatever a stream has asked or is about to ask. What the store is doing for it goes on.
    pub(super) fn withdraw_content(&mut self, at: usize) {
        self.contents.waiting.retain(|waiting| *waiting != at);
        let search = &mut self.followers[at].search;
        match std::mem::take(&mut search.step) {
            Step::Asking(question, _) => {
                less(&mut self.contents.under_way, 1);
                self.commands.push(Command::Withdraw { question });
            }
            Step::Idle | Step::Waiting(_) | Step::Paused(..) => {}
            going_on @ (Step::Looking | Step::Saving(_)) => search.step = going_on,
        }
    }
}
