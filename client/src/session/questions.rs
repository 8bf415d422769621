//! Questions to the authority, for streams that SpacetimeDB cannot continue: one question per stream at a time, a few
//! over all streams, and only while there is room for the answers.

use std::collections::VecDeque;

use super::connection::{Connection, Up};
use super::counted::less;
use super::event::{Answer, Question, QuestionId};
use super::status::StopReason;
use super::stream::{Input, Mode, Rung};
use super::{Command, Session, token};

/// Questions of all streams.
#[derive(Debug, Default)]
pub(super) struct Questions {
    /// Streams that wait for their turn to ask.
    waiting: VecDeque<(usize, Question)>,
    under_way: usize,
}

impl Questions {
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }
}

impl Session {
    /// Queues a stream's question, and drops an earlier one of the same stream.
    pub(super) fn ask_authority(&mut self, at: usize, question: Question) {
        self.withdraw(at);
        self.questions.waiting.push_back((at, question));
    }

    /// Drops whatever the stream has asked.
    pub(super) fn withdraw(&mut self, at: usize) {
        if let Some(question) = self.followers[at].question.take() {
            less(&mut self.questions.under_way, 1);
            self.commands.push(Command::Withdraw { question });
        }
        self.questions.waiting.retain(|(stream, _)| *stream != at);
    }

    /// Starts questions in the order in which they were queued.
    pub(super) fn start_questions(&mut self) {
        while let Some((at, about)) = self.questions.waiting.front().cloned() {
            // The question carries the connection's token.
            let Connection::Up(up) = &self.connection else { return };
            let full = self.questions.under_way >= self.settings.limits.history_in_flight || !self.has_room_for_page();
            // A document may be large: only one is under way until it is saved.
            if full || (about == Question::Document && self.is_document_under_way(at)) {
                return;
            }
            let token = self.token_of(up);
            let question = QuestionId(self.next_id());
            self.commands.push(Command::Ask {
                question,
                stream: at,
                token,
                about,
            });
            self.questions.waiting.pop_front();
            self.questions.under_way += 1;
            debug_assert!(
                self.followers[at].question.is_none(),
                "a stream asks one question at a time"
            );
            self.followers[at].question = Some(question);
        }
    }

    /// The token to ask the authority with.
    pub(super) fn token_of(&self, up: &Up) -> Option<String> {
        let token = up.tenure.as_ref().map(|tenure| tenure.token().to_owned());
        token.or_else(|| self.settings.fixed_token.clone())
    }

    fn is_document_under_way(&self, at: usize) -> bool {
        let holds = |other: usize| {
            let follower = &self.followers[other];
            match follower.stream.mode() {
                Mode::Recovering(Rung::Document(_)) => follower.question.is_some(),
                Mode::Recovering(Rung::StartOver(_)) => true,
                Mode::Recovering(
                    Rung::Replay { .. }
                    | Rung::Consult(_)
                    | Rung::AwaitLane(_)
                    | Rung::AwaitAuthority
                    | Rung::Documents { .. },
                )
                | Mode::Offline
                | Mode::Paging
                | Mode::Subscribing(_)
                | Mode::Live(_)
                | Mode::Renewing { .. }
                | Mode::Refused(_)
                | Mode::Unanswered
                | Mode::Retrying { .. }
                | Mode::Stopped(_) => false,
            }
        };
        (0..self.followers.len()).any(|other| other != at && holds(other))
    }

    /// A question to the authority has an answer, or has failed.
    pub(super) fn answered(&mut self, question: QuestionId, at: usize, answer: Answer) -> Result<(), StopReason> {
        let Some(answer) = self.content_came(question, at, answer)? else {
            return Ok(());
        };
        let follower = &mut self.followers[at];
        // The question was withdrawn, perhaps together with its connection.
        if follower.question != Some(question) {
            return Ok(());
        }
        follower.question = None;
        less(&mut self.questions.under_way, 1);
        let input = match answer {
            Answer::Page(page) => Input::HistoryPage(page),
            Answer::Stale(stale) => {
                tracing::warn!(stream = %follower.id, %stale, "the cursor is stale");
                Input::Stale(stale)
            }
            Answer::Document(document) => Input::Document(document),
            Answer::Documents(page) => Input::Documents(page),
            // The stream has not asked for one.
            Answer::Content(_) => Input::HistoryFailed,
            Answer::Unauthorized(refusal) | Answer::Refused(refusal) if token::ends_session(refusal.code) => {
                return Err(StopReason::Refused(refusal));
            }
            Answer::Unauthorized(refusal) => {
                tracing::warn!(stream = %follower.id, %refusal, "the bridge does not accept the token");
                self.doubt_token_if(true);
                Input::HistoryFailed
            }
            Answer::Refused(refusal) => {
                tracing::warn!(stream = %follower.id, %refusal, "the bridge refuses to read the stream");
                Input::HistoryRefused(refusal)
            }
            Answer::Failed { message, retry_after } => {
                tracing::warn!(stream = %follower.id, message, "a question to the authority failed");
                follower.wait_for_authority = retry_after;
                Input::HistoryFailed
            }
        };
        self.feed(at, input);
        Ok(())
    }
}
