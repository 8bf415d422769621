//! Keeps the journal: has the authority keep what only SpacetimeDB decides, and brings it back after SpacetimeDB has lost it.
//!
//! On each new link it first finds out which side has lost something ([`Step::Reading`], [`Step::Beginning`]). If the authority keeps
//! what the module has not settled, either only the settlement was lost with the last link, or SpacetimeDB was restored. So the
//! module is given what the authority keeps, page by page. As long as the module holds all of that, it goes on taking changes. As
//! soon as it lacks some, it refuses changes until everything is brought back. If the authority has lost something, the module marks
//! everything anew. Then the journal follows: it reads what has changed, has it kept, and settles it. One question is under way at a
//! time, and appends never wait for it.
//!
//! It never looks into an entry. Whether one is newer than what is held, the module decides.

use std::time::Duration;

use spacetime_sync_proto::RefusalCode;
use spacetime_sync_proto::journal::{JournalEntry, JournalPage, JournalTurn};
use spacetime_sync_proto::refusal::RefusalClass;

use crate::backoff::Backoff;
use crate::ids::Ids;
use crate::message::{Command, Failure};
use crate::notice::Notice;
use crate::{LinkId, RequestId, Turn};

/// How often the journal is read while nothing changes.
const QUIET: Duration = Duration::from_millis(250);
/// The first and the longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What the journal does on the link.
#[derive(Debug)]
enum Step {
    /// Reads the journal at this time.
    Waiting(Duration),
    /// Asks the module how it is with the journal.
    Reading(RequestId),
    /// Has read this, and asks the authority how it is with what it keeps.
    Beginning(RequestId, Box<JournalPage>),
    /// Has the module refuse changes. Then everything after this mark comes back.
    Closing(RequestId, u64),
    /// Asks the authority for what it keeps after this mark.
    Fetching(RequestId),
    /// Gives the module a page of so many entries, of which the last one has this mark.
    BringingBack(RequestId, Given),
    /// Has the module accept changes.
    Opening(RequestId),
    /// Has the authority keep a page.
    Keeping(RequestId, Page),
    /// Tells the module that the authority keeps a page.
    Settling(RequestId, Page),
    /// Has the authority forget what is of another history.
    Forgetting(RequestId),
}

/// What remains of a page of the authority once its entries are handed on.
#[derive(Debug, Clone, Copy)]
struct Given {
    last: u64,
    entries: u64,
}

/// The same for a page of the module.
#[derive(Debug, Clone, Copy)]
struct Page {
    to: u64,
    entries: u64,
    /// Whether it was all that there was to keep.
    is_all: bool,
    read_at: Duration,
    /// How long one of its entries had waited at most.
    oldest: Duration,
}

/// How it is with the journal, for health and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Since when this bridge has known that the module refuses changes. `None` if it accepts them, or nobody knows.
    pub closed_since: Option<Duration>,
    /// How many entries the authority does not keep yet.
    pub waiting: u64,
    /// How long one of those that were read last had waited at most.
    pub oldest: Duration,
    /// If there was more than what was read: when the authority last kept everything, or the link came up.
    pub behind_since: Option<Duration>,
    /// When the journal was last read, or the link came up. `None` without a link.
    pub read_at: Option<Duration>,
    /// When both sides were last in step, or the link came up. `None` without a link.
    pub in_step_at: Option<Duration>,
    /// How long a change had waited when the authority kept it: the longest of the page that was kept last.
    pub lag: Duration,
    /// How many entries the authority has kept.
    pub kept: u64,
    /// How many entries were brought back.
    pub brought_back: u64,
}

impl Backlog {
    /// How long the module has refused changes.
    pub fn closed(&self, now: Duration) -> Duration {
        self.closed_since
            .map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    /// No entry waits for longer. The module gives a page at a time, and what lies behind it may have waited since the authority
    /// last kept everything.
    pub fn oldest(&self, now: Duration) -> Duration {
        if self.waiting == 0 {
            return Duration::ZERO;
        }
        let behind = self.behind_since.map(|since| now.saturating_sub(since));
        (self.oldest + self.unread(now)).max(behind.unwrap_or_default())
    }

    fn unread(&self, now: Duration) -> Duration {
        self.read_at.map_or(Duration::ZERO, |at| now.saturating_sub(at))
    }

    /// How long nobody has known whether both sides are in step.
    pub fn out_of_step(&self, now: Duration) -> Duration {
        self.in_step_at.map_or(Duration::ZERO, |at| now.saturating_sub(at))
    }

    /// What is known without a link: only what was counted.
    pub(crate) fn without_link(self) -> Self {
        Self {
            kept: self.kept,
            brought_back: self.brought_back,
            lag: self.lag,
            ..Self::default()
        }
    }
}

/// What the lane must do about an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Fine,
    /// The module refuses every call on this link.
    DropLink(String),
}

#[derive(Debug)]
struct Linked {
    id: LinkId,
    step: Step,
    /// The authority's answer on this link.
    turn: Option<JournalTurn>,
    /// Up to where the open journal was settled, while it is not known whether the module lacks what the authority keeps after that.
    compares: Option<u64>,
    /// Why the first entry could not be compared that the module cannot read.
    incomparable: Option<Failure>,
    /// Whether both sides are in step, so that the journal only follows.
    follows: bool,
    /// When the authority last kept everything, or the link came up.
    all_kept_at: Duration,
    /// Whether the authority has nothing of another history any more.
    is_pure: bool,
    /// How many entries were brought back.
    brought_back: u64,
}

#[derive(Debug)]
pub(crate) struct Journal {
    link: Option<Linked>,
    backoff: Backoff,
    backlog: Backlog,
    /// Whether the log says already that the journal fails.
    told: bool,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self {
            link: None,
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            backlog: Backlog::default(),
            told: false,
        }
    }

    pub(crate) fn backlog(&self) -> Backlog {
        self.backlog
    }

    pub(crate) fn link_up(&mut self, now: Duration, id: LinkId) {
        self.backoff.reset();
        self.link = Some(Linked {
            id,
            step: Step::Waiting(now),
            turn: None,
            compares: None,
            incomparable: None,
            follows: false,
            all_kept_at: now,
            is_pure: false,
            brought_back: 0,
        });
        (self.backlog.read_at, self.backlog.in_step_at) = (Some(now), Some(now));
    }

    pub(crate) fn link_down(&mut self) {
        self.link = None;
        // Health says already that there is no link.
        self.backlog = self.backlog.without_link();
    }

    pub(crate) fn next_due(&self) -> Option<Duration> {
        match self.link.as_ref()?.step {
            Step::Waiting(until) => Some(until),
            Step::Reading(_)
            | Step::Beginning(..)
            | Step::Closing(..)
            | Step::Fetching(_)
            | Step::BringingBack(..)
            | Step::Opening(_)
            | Step::Keeping(..)
            | Step::Settling(..)
            | Step::Forgetting(_) => None,
        }
    }

    pub(crate) fn turn(&mut self, now: Duration, ids: &mut Ids, out: &mut Vec<Command>) {
        if let Some(link) = &mut self.link
            && matches!(link.step, Step::Waiting(until) if until <= now)
        {
            let request = ids.request();
            link.step = Step::Reading(request);
            out.push(Command::ReadJournal(link.id, request));
        }
    }

    /// The module has answered how it is with the journal.
    pub(crate) fn read(
        &mut self,
        request: RequestId,
        page: Result<JournalPage, Failure>,
        turn: &mut Turn<'_>,
    ) -> Verdict {
        let Some(link) = &mut self.link else {
            return Verdict::Fine;
        };
        if !matches!(link.step, Step::Reading(reading) if reading == request) {
            return Verdict::Fine;
        }
        let page = match page {
            Ok(page) => page,
            Err(failure) => return self.failed(failure, turn),
        };
        let backlog = &mut self.backlog;
        let is_all = page.to >= page.newest && page.waiting <= page.entries.len() as u64;
        if is_all && page.entries.is_empty() {
            link.all_kept_at = turn.now;
        }
        (backlog.waiting, backlog.oldest, backlog.read_at) = (page.waiting, page.oldest, Some(turn.now));
        backlog.behind_since = (!is_all).then_some(link.all_kept_at);
        if !page.is_open {
            // Somebody else has closed it.
            link.follows = false;
            backlog.closed_since.get_or_insert(turn.now);
        }
        if link.follows {
            backlog.in_step_at = Some(turn.now);
        }
        let request = turn.ids.request();
        match &link.turn {
            Some(begun) if link.follows => {
                let rest = Page {
                    to: page.to,
                    entries: page.entries.len() as u64,
                    is_all,
                    read_at: turn.now,
                    oldest: page.oldest,
                };
                if page.to > page.settled {
                    link.step = Step::Keeping(request, rest);
                    turn.out.push(Command::KeepJournal {
                        request,
                        turn: begun.turn,
                        entries: page.entries,
                        to: page.to,
                    });
                } else if page.whole_at > 0 && page.settled >= page.whole_at && !link.is_pure {
                    link.step = Step::Forgetting(request);
                    turn.out.push(Command::ForgetJournal(request, begun.turn));
                } else {
                    self.succeeded();
                    self.wait(if is_all { turn.now + QUIET } else { turn.now });
                }
            }
            Some(_) | None => {
                link.step = Step::Beginning(request, Box::new(page));
                turn.out.push(Command::BeginJournal(request));
            }
        }
        Verdict::Fine
    }

    /// The authority has answered how it is with what it keeps.
    pub(crate) fn begun(&mut self, request: RequestId, begun: Result<JournalTurn, Failure>, turn: &mut Turn<'_>) {
        let Some(link) = &mut self.link else { return };
        let Step::Beginning(beginning, page) = &link.step else {
            return;
        };
        if *beginning != request {
            return;
        }
        let begun = match begun {
            Ok(begun) => begun,
            Err(failure) => {
                self.failed(failure, turn);
                return;
            }
        };
        link.incomparable = None;
        let (is_open, settled) = (page.is_open, page.settled);
        let is_behind = settled < begun.newest;
        let authority_lacks = settled > begun.newest || page.epoch != begun.epoch;
        link.turn = Some(begun);
        link.compares = (is_open && is_behind).then_some(settled);
        if !is_open || is_behind {
            self.fetch(settled, turn);
        } else if authority_lacks {
            self.open(turn);
        } else {
            self.follow(turn);
        }
    }

    /// The module has answered a call that has no other answer than that it is done.
    pub(crate) fn told(&mut self, request: RequestId, told: Result<(), Failure>, turn: &mut Turn<'_>) -> Verdict {
        let Some(link) = &mut self.link else {
            return Verdict::Fine;
        };
        let is_ours = match &link.step {
            Step::Closing(asked, _)
            | Step::BringingBack(asked, _)
            | Step::Opening(asked)
            | Step::Settling(asked, _) => *asked == request,
            Step::Waiting(_)
            | Step::Reading(_)
            | Step::Beginning(..)
            | Step::Fetching(_)
            | Step::Keeping(..)
            | Step::Forgetting(_) => false,
        };
        if !is_ours {
            return Verdict::Fine;
        }
        if let Err(failure) = told {
            let code = failure.refusal.as_ref().map(|refusal| refusal.code);
            return match (link.compares, &link.step, code) {
                (Some(settled), Step::BringingBack(..), Some(RefusalCode::Lacking)) => {
                    self.close(settled, turn);
                    Verdict::Fine
                }
                // What the module cannot read says nothing about the rest.
                (Some(_), Step::BringingBack(_, given), Some(RefusalCode::InvalidArgument)) => {
                    let last = given.last;
                    link.incomparable.get_or_insert(failure);
                    self.fetch(last, turn);
                    Verdict::Fine
                }
                _ => self.failed(failure, turn),
            };
        }
        match link.step {
            Step::Closing(_, after) => {
                turn.out.push(Command::Tell(Notice::JournalClosed));
                self.backlog.closed_since.get_or_insert(turn.now);
                self.fetch(after, turn);
            }
            Step::BringingBack(_, given) => {
                if link.compares.is_none() {
                    link.brought_back += given.entries;
                    self.backlog.brought_back += given.entries;
                }
                self.fetch(given.last, turn);
            }
            Step::Opening(_) => {
                if link.compares.take().is_none() {
                    turn.out.push(Command::Tell(Notice::JournalOpened {
                        brought_back: link.brought_back,
                    }));
                }
                self.follow(turn);
            }
            Step::Settling(_, page) => {
                self.backlog.kept += page.entries;
                if page.is_all {
                    link.all_kept_at = page.read_at;
                }
                self.succeeded();
                self.wait(if page.is_all { turn.now + QUIET } else { turn.now });
            }
            Step::Waiting(_)
            | Step::Reading(_)
            | Step::Beginning(..)
            | Step::Fetching(_)
            | Step::Keeping(..)
            | Step::Forgetting(_) => {}
        }
        Verdict::Fine
    }

    /// The authority has answered with a page of what it keeps.
    pub(crate) fn fetched(
        &mut self,
        request: RequestId,
        entries: Result<Vec<JournalEntry>, Failure>,
        turn: &mut Turn<'_>,
    ) {
        let Some(link) = &mut self.link else { return };
        if !matches!(link.step, Step::Fetching(fetching) if fetching == request) {
            return;
        }
        match entries {
            Err(failure) => {
                self.failed(failure, turn);
            }
            Ok(entries) => match entries.last().map(|last| last.mark) {
                None => match link.incomparable.take() {
                    Some(failure) => {
                        self.failed(failure, turn);
                    }
                    None => self.open(turn),
                },
                Some(last) => {
                    let request = turn.ids.request();
                    let given = Given {
                        last,
                        entries: entries.len() as u64,
                    };
                    link.step = Step::BringingBack(request, given);
                    turn.out.push(Command::BringBack(link.id, request, entries));
                }
            },
        }
    }

    /// The authority has kept a page, or not.
    pub(crate) fn kept(&mut self, request: RequestId, kept: Result<(), Failure>, turn: &mut Turn<'_>) {
        let Some(link) = &mut self.link else { return };
        let Step::Keeping(keeping, page) = link.step else {
            return;
        };
        if keeping != request {
            return;
        }
        match kept {
            Ok(()) => {
                self.backlog.lag = page.oldest + turn.now.saturating_sub(page.read_at);
                let request = turn.ids.request();
                link.step = Step::Settling(request, page);
                turn.out.push(Command::SettleJournal(link.id, request, page.to));
            }
            Err(failure) => {
                self.failed(failure, turn);
            }
        }
    }

    /// The authority has forgotten a page of another history. The last one is empty.
    pub(crate) fn forgotten(&mut self, request: RequestId, gone: Result<u64, Failure>, turn: &mut Turn<'_>) {
        let Some(link) = &mut self.link else { return };
        if !matches!(link.step, Step::Forgetting(forgetting) if forgetting == request) {
            return;
        }
        match gone {
            Ok(gone) => {
                link.is_pure = gone == 0;
                self.wait(turn.now);
            }
            Err(failure) => {
                self.failed(failure, turn);
            }
        }
    }

    /// The module lacks what the authority keeps.
    fn close(&mut self, settled: u64, turn: &mut Turn<'_>) {
        let Some(link) = &mut self.link else { return };
        (link.compares, link.incomparable) = (None, None);
        let request = turn.ids.request();
        link.step = Step::Closing(request, settled);
        turn.out.push(Command::CloseJournal(link.id, request, settled));
    }

    fn fetch(&mut self, after: u64, turn: &mut Turn<'_>) {
        let Some(link) = &mut self.link else { return };
        let request = turn.ids.request();
        link.step = Step::Fetching(request);
        turn.out.push(Command::FetchJournal(request, after));
    }

    fn open(&mut self, turn: &mut Turn<'_>) {
        let Some(link) = &mut self.link else { return };
        let Some(begun) = &link.turn else { return };
        let request = turn.ids.request();
        link.step = Step::Opening(request);
        turn.out.push(Command::OpenJournal {
            link: link.id,
            request,
            epoch: begun.epoch.clone(),
            newest: begun.newest,
        });
    }

    /// Both sides are in step.
    fn follow(&mut self, turn: &mut Turn<'_>) {
        (self.backlog.closed_since, self.backlog.in_step_at) = (None, Some(turn.now));
        if let Some(link) = &mut self.link {
            link.follows = true;
        }
        self.succeeded();
        self.wait(turn.now);
    }

    fn wait(&mut self, until: Duration) {
        if let Some(link) = &mut self.link {
            link.step = Step::Waiting(until);
        }
    }

    fn succeeded(&mut self) {
        self.backoff.reset();
        self.told = false;
    }

    /// Begins again after a while. Whatever was under way is safe to repeat.
    fn failed(&mut self, failure: Failure, turn: &mut Turn<'_>) -> Verdict {
        let Some(link) = &mut self.link else {
            return Verdict::Fine;
        };
        let is_of_module = match link.step {
            Step::Reading(_) | Step::Closing(..) | Step::BringingBack(..) | Step::Opening(_) | Step::Settling(..) => {
                true
            }
            Step::Waiting(_) | Step::Beginning(..) | Step::Fetching(_) | Step::Keeping(..) | Step::Forgetting(_) => {
                false
            }
        };
        (link.follows, link.compares) = (false, None);
        link.step = Step::Waiting(turn.now + self.backoff.next(turn.dice));
        if is_of_module && failure.class == RefusalClass::Fatal {
            return Verdict::DropLink(failure.text);
        }
        if !std::mem::replace(&mut self.told, true) {
            let for_a_person = failure.class != RefusalClass::Retry;
            let why = failure.text;
            turn.out.push(Command::Tell(Notice::JournalFails { why, for_a_person }));
        }
        Verdict::Fine
    }
}

#[cfg(test)]
mod tests;
