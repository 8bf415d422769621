//! Whether SpacetimeDB brings what the authority has. With each token, and now and then, the session asks the authority
//! where the logs end. A stream that is not brought there in time reads the missing events from the authority.

use std::ops::Range;
use std::time::{Duration, Instant};

use spacetime_sync_proto::{Seq, limit};

use super::connection::Connection;
use super::event::QuestionId;
use super::stream::Input;
use super::{Command, Session};

/// How much longer SpacetimeDB may take for each event that is missing.
const FOR_EACH_EVENT: Duration = Duration::from_millis(10);

/// The rounds of questions. A round asks about every stream.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// The first stream that the present round has yet to ask about.
    next: Option<usize>,
    under_way: Option<QuestionId>,
    /// When the next round begins at the latest.
    again_at: Option<Instant>,
    /// When the bridge may next be told of a contradiction.
    report_at: Option<Instant>,
}

/// What SpacetimeDB has yet to bring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owed {
    /// Seq of the authority's last event.
    head: Seq,
    due: Instant,
}

impl Session {
    /// Begins a round.
    pub(super) fn ask_heads(&mut self) {
        if !self.asks_authority {
            return;
        }
        if let Some(question) = self.heads.under_way {
            self.commands.push(Command::Withdraw { question });
        }
        self.heads = Heads {
            next: Some(0),
            under_way: None,
            again_at: Some(self.now + self.settings.limits.heads_every),
            report_at: self.heads.report_at,
        };
    }

    /// Asks about the next streams of the round.
    pub(super) fn start_heads(&mut self) {
        let (Some(from), None, Connection::Up(up)) = (self.heads.next, self.heads.under_way, &self.connection) else {
            return;
        };
        let to = self.followers.len().min(from + limit::HEADS);
        let token = self.token_of(up);
        let question = QuestionId(self.next_id());
        let reported = self.reported(from..to);
        self.commands.push(Command::AskHeads {
            question,
            streams: from..to,
            reported,
            token,
        });
        self.heads.next = (to < self.followers.len()).then_some(to);
        self.heads.under_way = Some(question);
    }

    /// The streams of which the bridge has yet to hear that SpacetimeDB contradicts the authority. If this question is lost,
    /// the session reports them again as soon as they contradict it again.
    fn reported(&mut self, streams: Range<usize>) -> Vec<usize> {
        let mut reported: Vec<usize> = streams.filter(|at| self.followers[*at].reports).collect();
        reported.truncate(limit::REPORTED);
        for at in &reported {
            self.followers[*at].reports = false;
            self.heads.report_at = Some(self.now + self.settings.limits.overdue_after);
        }
        reported
    }

    /// Begins a round that tells the bridge of a stream. Not at once after the last one: whoever forges must not make the
    /// client flood the bridge.
    pub(super) fn report(&mut self, at: usize) {
        self.followers[at].reports = true;
        let from = self.heads.report_at.map_or(self.now, |from| from.max(self.now));
        self.ask_heads_within(from - self.now);
    }

    /// The authority has said where streams end, or the question has failed.
    pub(super) fn heads_came(&mut self, question: QuestionId, answer: Result<Vec<(usize, Seq)>, String>) {
        if self.heads.under_way != Some(question) {
            return;
        }
        self.heads.under_way = None;
        let overdue_after = self.settings.limits.overdue_after;
        let heads = match answer {
            Ok(heads) => heads,
            Err(message) => {
                tracing::debug!(message, "the authority did not say where the streams end");
                self.heads.next = None;
                return self.ask_heads_within(overdue_after);
            }
        };
        let mut owes = false;
        for (at, head) in heads {
            let follower = &mut self.followers[at];
            if !follower.is_followed() {
                continue;
            }
            let cursor = follower.stream.cursor().seq;
            // A newer head does not postpone what an older one made due.
            if head > cursor && follower.owed.is_none_or(|owed| owed.head <= cursor) {
                let missing = u32::try_from(head.since(cursor)).unwrap_or(u32::MAX);
                let due = self.now + overdue_after + FOR_EACH_EVENT * missing;
                follower.owed = Some(Owed { head, due });
                owes = true;
            }
        }
        if owes {
            // It may keep back what comes next as well.
            self.ask_heads_within(overdue_after);
        }
    }

    fn ask_heads_within(&mut self, wait: Duration) {
        let at = self.now + wait;
        self.heads.again_at = Some(self.heads.again_at.map_or(at, |again| again.min(at)));
    }

    /// Looks for streams that are overdue, and begins the next round when its time has come.
    pub(super) fn watch_heads(&mut self) {
        let overdue_after = self.settings.limits.overdue_after;
        for at in 0..self.followers.len() {
            let cut_off = self.serving().is_none();
            let follower = &mut self.followers[at];
            let Some(owed) = follower.owed.take_if(|owed| owed.due <= self.now) else {
                continue;
            };
            if follower.stream.cursor().seq >= owed.head {
                continue;
            }
            if follower.is_held_up() || cut_off {
                let due = self.now + overdue_after;
                follower.owed = Some(Owed { due, ..owed });
            } else {
                tracing::warn!(stream = %follower.id, head = %owed.head, "SpacetimeDB has not brought in time what the authority has");
                self.feed(at, Input::Overdue { head: owed.head });
            }
        }
        if self.heads.again_at.is_some_and(|again| again <= self.now) {
            self.ask_heads();
        }
    }
}
