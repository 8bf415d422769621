//! Keeps the link to SpacetimeDB: connects, connects again when the link is down, and gives up a link that falls silent.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::Rng;

use crate::backoff::Backoff;
use crate::ids::Ids;
use crate::maps::Map;
use crate::message::Command;
use crate::{CallId, LinkId, RequestId};

/// The first and the longest wait between attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// After a link that was up for this long, the waits start small again.
const STABLE: Duration = Duration::from_secs(10);
/// The bridge gives up a link on which a question waits this long for its answer.
const QUESTION_DEADLINE: Duration = Duration::from_secs(20);

/// The state of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The bridge wants no link.
    Off,
    /// The next attempt begins at `retry_at`.
    Down { retry_at: Duration },
    /// An attempt is under way. It must succeed before `by`.
    Dialing { id: LinkId, by: Duration },
    /// The link has been up since `since`.
    Up { id: LinkId, since: Duration },
}

/// A call that is in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    at: Duration,
    /// How many events it carries.
    pub(crate) events: u64,
}

#[derive(Debug)]
pub(crate) struct Link {
    state: State,
    backoff: Backoff,
    connect_deadline: Duration,
    ack_deadline: Duration,
    calls: Map<CallId, Sent>,
    /// The calls in the order in which they were sent. Some of them may be answered already.
    sent: VecDeque<CallId>,
    /// The deadline of each open question. Later questions have later deadlines.
    questions: BTreeMap<RequestId, Duration>,
}

impl Link {
    pub(crate) fn new(connect_deadline: Duration, ack_deadline: Duration) -> Self {
        Self {
            state: State::Off,
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            connect_deadline,
            ack_deadline,
            calls: Map::default(),
            sent: VecDeque::new(),
            questions: BTreeMap::new(),
        }
    }

    /// The bridge wants a link.
    pub(crate) fn want(&mut self, now: Duration) {
        debug_assert_eq!(self.state, State::Off);
        self.state = State::Down { retry_at: now };
    }

    /// The link that is up.
    pub(crate) fn up(&self) -> Option<LinkId> {
        match self.state {
            State::Up { id, .. } => Some(id),
            State::Off | State::Down { .. } | State::Dialing { .. } => None,
        }
    }

    pub(crate) fn is_dialing(&self, id: LinkId) -> bool {
        matches!(self.state, State::Dialing { id: dialing, .. } if dialing == id)
    }

    /// The attempt to connect has succeeded.
    pub(crate) fn rise(&mut self, now: Duration, id: LinkId) {
        debug_assert!(self.is_dialing(id) && self.calls.is_empty() && self.questions.is_empty());
        self.state = State::Up { id, since: now };
    }

    /// Gives up the link, or the attempt to connect. Returns how long the bridge waits before the next attempt.
    pub(crate) fn fall(&mut self, now: Duration, dice: &mut impl Rng, out: &mut Vec<Command>) -> Duration {
        if let State::Up { since, .. } = self.state
            && now.saturating_sub(since) >= STABLE
        {
            self.backoff.reset();
        }
        self.hang_up(out);
        let wait = self.backoff.next(dice);
        self.state = State::Down { retry_at: now + wait };
        wait
    }

    /// The bridge wants no link any more.
    pub(crate) fn turn_off(&mut self, out: &mut Vec<Command>) {
        self.hang_up(out);
        self.state = State::Off;
    }

    fn hang_up(&mut self, out: &mut Vec<Command>) {
        if let State::Dialing { id, .. } | State::Up { id, .. } = self.state {
            out.push(Command::HangUp(id));
        }
        self.calls.clear();
        self.sent.clear();
        self.questions.clear();
    }

    /// Notes that a call is sent.
    pub(crate) fn sends(&mut self, now: Duration, call: CallId, events: u64) {
        let before = self.calls.insert(call, Sent { at: now, events });
        debug_assert!(before.is_none(), "{call:?} is sent twice");
        self.sent.push_back(call);
    }

    /// Notes that a call is answered. `None` if it was sent on an earlier link.
    pub(crate) fn answered(&mut self, link: LinkId, call: CallId) -> Option<Sent> {
        if self.up() != Some(link) {
            return None;
        }
        let sent = self.calls.remove(&call);
        while self.sent.front().is_some_and(|call| !self.calls.contains_key(call)) {
            self.sent.pop_front();
        }
        sent
    }

    /// Notes that a question is asked.
    pub(crate) fn asks(&mut self, now: Duration, request: RequestId) {
        self.questions.insert(request, now + QUESTION_DEADLINE);
    }

    /// Closes the question that an answer belongs to. False if this link has no such open question.
    pub(crate) fn hears(&mut self, link: LinkId, request: RequestId) -> bool {
        self.up() == Some(link) && self.questions.remove(&request).is_some()
    }

    /// When the next attempt begins, or the next deadline passes.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        match self.state {
            State::Off => None,
            State::Down { retry_at } => Some(retry_at),
            State::Dialing { by, .. } => Some(by),
            State::Up { .. } => {
                let ack = self.oldest_call().map(|sent| sent + self.ack_deadline);
                let question = self.questions.values().next().copied();
                match (ack, question) {
                    (Some(ack), Some(question)) => Some(ack.min(question)),
                    (ack, question) => ack.or(question),
                }
            }
        }
    }

    fn oldest_call(&self) -> Option<Duration> {
        let call = self.sent.front()?;
        self.calls.get(call).map(|sent| sent.at)
    }

    /// Begins the next attempt if it is due.
    pub(crate) fn turn(&mut self, now: Duration, ids: &mut Ids, out: &mut Vec<Command>) {
        if let State::Down { retry_at } = self.state
            && retry_at <= now
        {
            let id = ids.link();
            self.state = State::Dialing {
                id,
                by: now + self.connect_deadline,
            };
            out.push(Command::Dial(id));
        }
    }

    /// Why to give up the link or the attempt to connect. `None` while no deadline has passed.
    pub(crate) fn is_overdue(&self, now: Duration) -> Option<String> {
        match self.state {
            State::Off | State::Down { .. } => None,
            State::Dialing { by, .. } => {
                let limit = self.connect_deadline;
                (by <= now).then(|| format!("SpacetimeDB did not accept the connection within {limit:?}"))
            }
            State::Up { .. } => {
                if self.oldest_call().is_some_and(|sent| sent + self.ack_deadline <= now) {
                    let limit = self.ack_deadline;
                    return Some(format!("SpacetimeDB did not answer a call within {limit:?}"));
                }
                let question = self.questions.values().next();
                question
                    .is_some_and(|by| *by <= now)
                    .then(|| format!("SpacetimeDB did not answer a question within {QUESTION_DEADLINE:?}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const NOW: Duration = Duration::from_secs(1);
    const CONNECT: Duration = Duration::from_secs(5);
    const ACK: Duration = Duration::from_secs(6);

    fn up() -> (Link, Ids, LinkId) {
        let (mut link, mut ids, mut out) = (Link::new(CONNECT, ACK), Ids::default(), Vec::new());
        link.want(NOW);
        link.turn(NOW, &mut ids, &mut out);
        let Some(Command::Dial(id)) = out.pop() else {
            panic!("it does not dial")
        };
        link.rise(NOW, id);
        (link, ids, id)
    }

    #[test]
    fn one_attempt_runs_at_a_time_and_ends_at_its_deadline() {
        let (mut link, mut ids, mut out) = (Link::new(CONNECT, ACK), Ids::default(), Vec::new());
        link.want(NOW);
        link.turn(NOW, &mut ids, &mut out);
        link.turn(NOW + CONNECT / 2, &mut ids, &mut out);
        assert_eq!(out.len(), 1, "{out:?}");
        assert_eq!(link.is_overdue(NOW + CONNECT / 2), None);
        assert!(link.is_overdue(NOW + CONNECT).is_some());
        let wait = link.fall(NOW + CONNECT, &mut SmallRng::seed_from_u64(1), &mut out);
        assert!(matches!(out[..], [Command::Dial(dialed), Command::HangUp(left)] if dialed == left));
        assert_eq!(link.next_due(), Some(NOW + CONNECT + wait));
    }

    #[test]
    fn the_oldest_call_decides_when_the_link_counts_as_dead() {
        let (mut link, _, id) = up();
        link.sends(NOW, CallId(1), 1);
        link.sends(NOW + ACK / 2, CallId(2), 1);
        assert_eq!(link.next_due(), Some(NOW + ACK));
        assert!(link.answered(id, CallId(1)).is_some());
        assert!(link.answered(id, CallId(1)).is_none(), "answered twice");
        assert_eq!(link.next_due(), Some(NOW + ACK / 2 + ACK));
        assert_eq!(link.is_overdue(NOW + ACK), None);
        assert!(link.is_overdue(NOW + ACK / 2 + ACK).is_some());
    }

    #[test]
    fn a_question_without_an_answer_ends_the_link_at_its_deadline() {
        let (mut link, mut ids, id) = up();
        let (first, second) = (ids.request(), ids.request());
        link.asks(NOW, first);
        link.asks(NOW + ACK, second);
        let deadline = NOW + QUESTION_DEADLINE;
        assert_eq!(link.next_due(), Some(deadline));
        assert!(link.is_overdue(deadline).is_some_and(|why| why.contains("question")));
        assert!(link.hears(id, first) && !link.hears(id, first), "answered twice");
        assert_eq!(link.is_overdue(deadline), None);
        link.sends(NOW, CallId(1), 1);
        assert_eq!(link.next_due(), Some(NOW + ACK), "a call has less time");
        assert!(link.is_overdue(NOW + ACK).is_some_and(|why| why.contains("call")));
    }

    #[test]
    fn a_link_that_is_no_longer_wanted_is_hung_up_and_not_made_again() {
        let (mut link, mut ids, id) = up();
        let mut out = Vec::new();
        link.turn_off(&mut out);
        assert_eq!(out, [Command::HangUp(id)]);
        assert_eq!((link.up(), link.next_due()), (None, None));
        link.turn(NOW, &mut ids, &mut out);
        assert_eq!(out.len(), 1, "{out:?}");
    }

    #[test]
    fn answers_from_an_earlier_link_are_ignored() {
        let (mut link, mut ids, old) = up();
        let request = ids.request();
        link.asks(NOW, request);
        link.sends(NOW, CallId(1), 1);
        let mut out = Vec::new();
        let wait = link.fall(NOW, &mut SmallRng::seed_from_u64(1), &mut out);
        link.turn(NOW + wait, &mut ids, &mut out);
        let Some(Command::Dial(new)) = out.pop() else {
            panic!("it does not dial")
        };
        link.rise(NOW + wait, new);
        link.sends(NOW + wait, CallId(2), 1);
        assert!(link.answered(old, CallId(2)).is_none() && !link.hears(old, request));
        assert!(!link.hears(new, request));
        assert!(link.answered(new, CallId(2)).is_some());
    }

    #[test]
    fn waits_start_small_again_after_a_stable_link() {
        let (mut link, mut ids, _) = up();
        let (mut dice, mut out, mut now) = (SmallRng::seed_from_u64(1), Vec::new(), NOW);
        for _ in 0..8 {
            now += link.fall(now, &mut dice, &mut out);
            link.turn(now, &mut ids, &mut out);
        }
        assert!(link.fall(now, &mut dice, &mut out) > 5 * BACKOFF.0);
        let Some(Command::Dial(id)) = out.iter().rev().find(|command| matches!(command, Command::Dial(_))) else {
            panic!("it did not dial")
        };
        link.state = State::Up { id: *id, since: now };
        assert!(link.fall(now + STABLE + NOW, &mut dice, &mut out) <= BACKOFF.0);
    }
}
