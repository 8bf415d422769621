//! Goes through all streams of the authority, page by page.

use std::time::Duration;

use spacetime_sync_proto::StreamId;

use super::{Compare, begin};
use crate::message::{Command, Failure};
use crate::notice::Notice;
use crate::{RequestId, Turn};

/// Where the sweep through all streams is.
#[derive(Debug)]
pub(super) enum Sweep {
    /// The next page is asked for then.
    Waiting(Duration),
    Listing(RequestId),
    /// A page is being compared, the last stream of which is this one. `more` says whether another follows.
    Comparing {
        last: StreamId,
        more: bool,
    },
    Done,
}

/// Which streams were compared on this link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Coverage {
    None,
    /// All up to this one, in the order of their ids.
    Through(StreamId),
    All,
}

impl Compare {
    /// A page of all streams. `is_met` says which of them have been compared on this link.
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
                let unmet: Vec<_> = page.into_iter().filter(|stream_id| !is_met(stream_id)).collect();
                debug_assert!(self.sweeping.is_none());
                self.sweeping = begin(link, unmet, turn);
                self.sweep = Sweep::Comparing { last, more };
                if self.sweeping.is_none() {
                    self.page_compared(turn);
                }
            }
        }
    }

    pub(super) fn page_compared(&mut self, turn: &mut Turn<'_>) {
        if let Sweep::Comparing { last, more } = std::mem::replace(&mut self.sweep, Sweep::Waiting(turn.now)) {
            self.coverage = Coverage::Through(last);
            if !more {
                self.all_compared(turn);
            }
        }
    }

    fn all_compared(&mut self, turn: &mut Turn<'_>) {
        self.sweep = Sweep::Done;
        self.coverage = Coverage::All;
        turn.out.push(Command::Tell(Notice::AllCompared {
            streams: self.compared,
            took: turn.now.saturating_sub(self.began),
        }));
    }
}

impl Coverage {
    /// Whether the sweep has passed a stream, or would have if it had been there.
    pub(crate) fn has(&self, stream_id: &StreamId) -> bool {
        match self {
            Self::None => false,
            Self::Through(last) => stream_id <= last,
            Self::All => true,
        }
    }
}
