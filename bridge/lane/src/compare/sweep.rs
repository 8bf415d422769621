//! The sweep: compares all streams of the authority, page by page, on a new link and now and then.

use std::time::Duration;

use spacetime_sync_proto::StreamId;

use super::{Compare, begin};
use crate::message::{Command, Failure};
use crate::notice::Notice;
use crate::{RequestId, Turn};

/// Where the sweep is.
#[derive(Debug)]
pub(super) enum Sweep {
    /// Asks for the next page at this time. With a page begins a round if the last round is over.
    Waiting(Duration),
    /// Has asked the authority for a page of streams.
    Listing(RequestId),
    /// Compares a page that ends with the stream `last`. `more` says whether another page follows.
    Comparing { last: StreamId, more: bool },
}

/// Which streams the sweep has compared on this link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Coverage {
    None,
    /// All up to and including this one, in the order of their ids.
    Through(StreamId),
    All,
}

impl Compare {
    /// The authority has answered with a page of streams. `is_met` says which of them need no comparison any more.
    pub(crate) fn listed(
        &mut self,
        request: RequestId,
        listed: Result<Vec<StreamId>, Failure>,
        is_met: impl Fn(&StreamId) -> bool,
        turn: &mut Turn<'_>,
    ) {
        let Some(link) = self.link else { return };
        if !matches!(self.sweep, Sweep::Listing(listing) if listing == request) {
            return;
        }
        match listed {
            Err(failure) => {
                let wait = self.backoff.next(turn.dice);
                turn.out.push(Command::Tell(Notice::NotListed {
                    why: failure.text,
                    wait,
                }));
                self.sweep = Sweep::Waiting(turn.now + wait);
            }
            Ok(page) => {
                self.backoff.reset();
                let more = page.len() >= self.batch;
                let Some(last) = page.last().cloned() else {
                    return self.all_compared(turn);
                };
                // Once all are compared, the sweep looks for what somebody else has changed since.
                let again = self.coverage == Coverage::All;
                let due = |stream_id: &StreamId| again || !is_met(stream_id);
                let due: Vec<_> = page.into_iter().filter(due).collect();
                debug_assert!(self.sweeping.is_none());
                self.sweeping = begin(link, due, turn);
                self.sweep = Sweep::Comparing { last, more };
                if self.sweeping.is_none() {
                    self.page_compared(turn);
                }
            }
        }
    }

    pub(super) fn page_compared(&mut self, turn: &mut Turn<'_>) {
        if let Sweep::Comparing { last, more } = std::mem::replace(&mut self.sweep, Sweep::Waiting(turn.now)) {
            if self.coverage != Coverage::All {
                self.coverage = Coverage::Through(last.clone());
            }
            self.swept = Some(last);
            if !more {
                self.all_compared(turn);
            }
        }
    }

    fn all_compared(&mut self, turn: &mut Turn<'_>) {
        self.sweep = Sweep::Waiting(turn.now + self.every);
        self.swept = None;
        if std::mem::replace(&mut self.coverage, Coverage::All) == Coverage::All {
            return;
        }
        turn.out.push(Command::Tell(Notice::AllCompared {
            streams: self.compared,
            took: turn.now.saturating_sub(self.began),
        }));
    }
}

impl Coverage {
    /// Whether the sweep has compared a stream, or would have if the stream had existed.
    pub(crate) fn has(&self, stream_id: &StreamId) -> bool {
        match self {
            Self::None => false,
            Self::Through(last) => stream_id <= last,
            Self::All => true,
        }
    }
}
