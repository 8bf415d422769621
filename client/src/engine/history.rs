//! Asking the authority, for streams that the lane does not continue: one request of each stream at a time, a few over
//! all streams, and no more than what they bring has room for.

use std::sync::Arc;

use spacetime_sync_proto::limit;
use tokio::task::AbortHandle;

use super::Engine;
use super::follower::Follower;
use super::net::Net;
use crate::apply::{Input, Mode, Rung};
use crate::credential::Credential;
use crate::history::{Answer, Question};
use crate::status::StopReason;

/// An answer, and to whom.
pub(super) struct Answered {
    stream: usize,
    id: u64,
    answer: Answer,
}

/// A request that is under way.
pub(super) struct Asked {
    id: u64,
    task: AbortHandle,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Engine {
    /// Has a stream's question wait for its turn, in place of one that it has asked before.
    pub(super) fn ask_authority(&mut self, at: usize, question: Question) {
        self.withdraw(at);
        self.questions.push_back((at, question));
    }

    /// What a stream has asked is not wanted any more.
    pub(super) fn withdraw(&mut self, at: usize) {
        self.followers[at].asked_authority = None;
        self.questions.retain(|(stream, _)| *stream != at);
    }

    pub(super) fn questions_under_way(&self) -> usize {
        let asked = |follower: &&Follower| follower.asked_authority.is_some();
        self.followers.iter().filter(asked).count()
    }

    /// Starts requests in the order they were asked for.
    pub(super) fn start_questions(&mut self) {
        while let Some((at, question)) = self.questions.front().copied() {
            let (limits, under_way) = (&self.config.limits, self.questions_under_way());
            let coming = (self.reads_under_way + under_way + 1) * limit::PAGE_BYTES;
            let idle = self.unapplied_bytes == 0 && self.reads_under_way + under_way == 0;
            let full = under_way >= limits.history_in_flight
                || !(idle || self.unapplied_bytes + coming <= limits.unapplied_bytes);
            // A document may be large: there is one at a time, until it is saved.
            if full || (question == Question::Document && self.document_under_way(at)) {
                return;
            }
            let (Some(source), Net::Up(up)) = (&self.history, &self.net) else {
                return;
            };
            let token = match (&self.config.credential, &up.tenure) {
                (Credential::Fixed(token), _) => Some(token.clone()),
                (Credential::Provider(_), Some(tenure)) => Some(tenure.token().to_owned()),
                (Credential::Provider(_), None) | (Credential::Anonymous, _) => None,
            };
            self.question_ids += 1;
            let (id, source, stream_id) = (self.question_ids, Arc::clone(source), self.followers[at].id.clone());
            let answers = self.answers.0.clone();
            let task = tokio::spawn(async move {
                let answer = source.ask(token, &stream_id, question).await;
                // The engine has ended.
                let _ = answers.send(Answered { stream: at, id, answer });
            });
            self.followers[at].asked_authority = Some(Asked {
                id,
                task: task.abort_handle(),
            });
            self.questions.pop_front();
        }
    }

    fn document_under_way(&self, at: usize) -> bool {
        let holds = |other: usize| {
            let follower = &self.followers[other];
            match follower.stream.mode() {
                Mode::Recovering(Rung::Document(_)) => follower.asked_authority.is_some(),
                Mode::Recovering(Rung::BeginAnew(_)) => true,
                _ => false,
            }
        };
        (0..self.followers.len()).any(|other| other != at && holds(other))
    }

    /// The authority has answered.
    pub(super) fn authority_answered(&mut self, answered: Answered) -> Result<(), StopReason> {
        let Answered { stream, id, answer } = answered;
        let follower = &mut self.followers[stream];
        // It was asked something else since.
        if follower.asked_authority.as_ref().is_none_or(|asked| asked.id != id) {
            return Ok(());
        }
        follower.asked_authority = None;
        let input = match answer {
            Answer::Page(page) => Input::HistoryPage(page),
            Answer::Stale(stale) => {
                tracing::warn!(stream = %follower.id, %stale, "the cursor is stale");
                Input::Stale(stale)
            }
            Answer::Document(document) => Input::Document(document),
            Answer::Unauthorized(refusal) | Answer::Refused(refusal) if super::access::ends_session(refusal.code) => {
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
                tracing::warn!(stream = %follower.id, message, "the authority was not asked");
                follower.wait_for_authority = retry_after;
                Input::HistoryFailed
            }
        };
        self.step(stream, input);
        Ok(())
    }
}
