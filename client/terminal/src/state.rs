//! What is on the screen: what the client has shown, what the person has chosen, and what became of the calls. It is told what
//! happened, with the time, and answers with what is to be done. It does nothing itself.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use spacetime_sync_client::{
    AssignmentState, Assignments, CallError, Capability, ChangeAssignment, Freshness, OpenAssignment, Phase, Presences,
    SeenAssignment, Status, Watched,
};
use spacetime_sync_rules::assignment::is_final;

use crate::acts::{ACTS, possible};

/// How many calls are remembered, of which some may have no answer yet. The client takes no more at once either.
pub(crate) const CALLS: usize = 16;
/// How long a capability stands that was published by a key.
const STANDS_FOR: Duration = Duration::from_secs(3_600);

/// Who the program is, and what it asks for.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    /// The name of the database.
    pub(crate) database: String,
    /// The node that it announces.
    pub(crate) node_id: String,
    /// The provider under whose name it takes assignments.
    pub(crate) provider_id: Option<String>,
    /// What that can do.
    pub(crate) capability: String,
    /// The document of an assignment that it opens.
    pub(crate) document: String,
    /// How long an assignment that it opens may take.
    pub(crate) deadline: Duration,
}

/// The time of this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// To measure with.
    pub(crate) instant: Instant,
    /// To compare with what SpacetimeDB's clock says.
    pub(crate) clock: SystemTime,
}

/// A part of the screen whose rows can be walked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pane {
    Nodes,
    Assignments,
    Streams,
}

/// A call, and what became of it. It is drawn from the newest on, as many as there is room for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) number: u64,
    /// What was asked for.
    pub(crate) what: String,
    pub(crate) outcome: Outcome,
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There is no answer yet.
    Asked { at: Instant },
    /// It was done.
    Done,
    /// It was not done, or may not have been.
    Failed(CallError),
    /// It was not asked for.
    Not(&'static str),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// End the program.
    Quit,
    /// Make the call of this number.
    Call(u64, Wish),
}

/// A call to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    Publish(Capability),
    Open(OpenAssignment),
    Change(ChangeAssignment),
}

/// All that the screen shows.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) own: Own,
    pub(crate) status: Status,
    pub(crate) presences: Watched<Presences>,
    pub(crate) assignments: Watched<Assignments>,
    /// How fresh is what the status says of streams.
    pub(crate) streams_are: Freshness,
    /// Why the last connection ended, or none was made, and when the client said so.
    pub(crate) last_disconnect: Option<(String, Instant)>,
    pub(crate) pane: Pane,
    /// The row that is chosen among the nodes.
    pub(crate) node: usize,
    /// The row that is chosen among the streams.
    pub(crate) stream: usize,
    /// The assignment that is chosen, by its name: its row moves when others come and end.
    pub(crate) assignment: Option<String>,
    /// The newest calls, the oldest first.
    pub(crate) calls: VecDeque<Call>,
    next_call: u64,
}

impl State {
    pub(crate) fn new(own: Own, status: Status) -> Self {
        Self {
            own,
            status,
            presences: Watched::default(),
            assignments: Watched::default(),
            streams_are: Freshness::Unseen,
            last_disconnect: None,
            pane: Pane::Assignments,
            node: 0,
            stream: 0,
            assignment: None,
            calls: VecDeque::new(),
            next_call: 1,
        }
    }

    /// The client says how it is.
    pub(crate) fn says(&mut self, status: Status, now: Now) {
        self.streams_are = match (&status.phase, self.streams_are) {
            (Phase::Live | Phase::CatchingUp { .. }, _) => Freshness::Live,
            (_, Freshness::Live) => Freshness::Stale { since: now.instant },
            (_, before) => before,
        };
        if let Phase::Backoff { reason, attempt, .. } = &status.phase {
            // Each attempt has a reason of its own.
            let is_told = matches!(&self.status.phase, Phase::Backoff { attempt: told, .. } if told == attempt);
            if !is_told || self.last_disconnect.is_none() {
                self.last_disconnect = Some((reason.to_string(), now.instant));
            }
        }
        self.status = status;
    }

    /// The client shows assignments.
    pub(crate) fn shows(&mut self, assignments: Watched<Assignments>) {
        self.assignments = assignments;
        // Whoever presses a key means the assignment that was chosen, and not the one that is in its place.
        if let Some(chosen) = &self.assignment
            && !self.assignments.rows.contains_key(chosen)
        {
            self.assignment = None;
        }
    }

    /// A call has an answer.
    pub(crate) fn answered(&mut self, number: u64, answer: Result<(), CallError>) {
        if let Some(call) = self.calls.iter_mut().find(|call| call.number == number) {
            call.outcome = match answer {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Failed(error),
            };
        }
    }

    /// A key was pressed. `chance` makes the name of what the key makes.
    pub(crate) fn pressed(&mut self, key: KeyEvent, chance: u64, now: Now) -> Option<Order> {
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Order::Quit),
            KeyCode::Char('q') => Some(Order::Quit),
            KeyCode::Tab | KeyCode::Right => self.goes_to(|at| at + 1),
            KeyCode::BackTab | KeyCode::Left => self.goes_to(|at| at + 2),
            KeyCode::Down => self.moves(|at| at.saturating_add(1)),
            KeyCode::Up => self.moves(|at| at.saturating_sub(1)),
            KeyCode::Char('n') => self.opens(chance, now),
            KeyCode::Char('p') => self.publishes(now),
            KeyCode::Char(key) => self.acts(key, chance, now),
            _ => None,
        }
    }

    fn goes_to(&mut self, pane: impl Fn(usize) -> usize) -> Option<Order> {
        let all = [Pane::Nodes, Pane::Assignments, Pane::Streams];
        let at = all.iter().position(|one| *one == self.pane).unwrap_or_default();
        self.pane = all[pane(at) % all.len()];
        None
    }

    fn moves(&mut self, to: impl Fn(usize) -> usize) -> Option<Order> {
        let within = |at: usize, rows: usize| to(at).min(rows.saturating_sub(1));
        match self.pane {
            Pane::Nodes => self.node = within(self.node, self.presences.rows.len()),
            Pane::Streams => self.stream = within(self.stream, self.status.streams.len()),
            Pane::Assignments => {
                let rows = self.in_order();
                let at = match self.chosen_row() {
                    Some(at) => within(at, rows.len()),
                    None => 0,
                };
                let chosen = rows.get(at).map(|(name, _)| (*name).to_owned());
                self.assignment = chosen;
            }
        }
        None
    }

    /// The assignments in the order of their rows: those that have not ended, then the others, the newest first.
    pub(crate) fn in_order(&self) -> Vec<(&str, &SeenAssignment)> {
        let mut rows: Vec<_> = self
            .assignments
            .rows
            .iter()
            .map(|(name, seen)| (name.as_str(), seen))
            .collect();
        rows.sort_by_key(|(_, seen)| (is_final(seen.state), std::cmp::Reverse(seen.opened_at)));
        rows
    }

    /// The row of the chosen assignment.
    pub(crate) fn chosen_row(&self) -> Option<usize> {
        let chosen = self.assignment.as_deref()?;
        self.in_order().iter().position(|(name, _)| *name == chosen)
    }

    /// The chosen assignment.
    pub(crate) fn chosen(&self) -> Option<(&str, &SeenAssignment)> {
        let (name, seen) = self.assignments.rows.get_key_value(self.assignment.as_deref()?)?;
        Some((name, seen))
    }

    fn opens(&mut self, chance: u64, now: Now) -> Option<Order> {
        let opening = OpenAssignment {
            request_id: format!("r-{chance:016x}"),
            provider_id: None,
            document: self.own.document.clone(),
            deadline: self.own.deadline,
        };
        self.asks(format!("open {}", opening.request_id), Wish::Open(opening), now)
    }

    fn publishes(&mut self, now: Now) -> Option<Order> {
        let Some(provider_id) = self.own.provider_id.clone() else {
            return self.asks_not("publish", "start with --provider to provide");
        };
        // A later publication is a newer version, by whatever program.
        let since = now.clock.duration_since(UNIX_EPOCH).unwrap_or_default();
        let capability = Capability {
            provider_id,
            capability: self.own.capability.clone(),
            version: since.as_millis().try_into().unwrap_or(u64::MAX),
            price_hint_sats: 0,
            region: String::new(),
            document: "{}".to_owned(),
            stands_for: STANDS_FOR,
        };
        let what = format!("publish {} {}", capability.provider_id, capability.capability);
        self.asks(what, Wish::Publish(capability), now)
    }

    fn acts(&mut self, key: char, chance: u64, now: Now) -> Option<Order> {
        let act = ACTS.iter().find(|act| act.key == key)?;
        let Some((name, seen)) = self.chosen() else {
            return self.asks_not(act.word, "choose an assignment first, with the arrow keys");
        };
        let what = format!("{} {name}", act.word);
        if !possible(seen.state).any(|possible| possible == act) {
            return self.asks_not(&what, "its state knows no such change");
        }
        let takes = (seen.state, act.to) == (AssignmentState::Open, AssignmentState::Accepted);
        if takes && self.own.provider_id.is_none() {
            return self.asks_not(&what, "start with --provider to provide");
        }
        let change = ChangeAssignment {
            request_id: name.to_owned(),
            update_id: format!("u-{chance:016x}"),
            expected_version: seen.version,
            to: act.to,
            provider_id: self.own.provider_id.clone().filter(|_| takes),
            document: None,
        };
        self.asks(what, Wish::Change(change), now)
    }

    fn asks(&mut self, what: String, wish: Wish, now: Now) -> Option<Order> {
        let number = self.remembers(what, Outcome::Asked { at: now.instant })?;
        Some(Order::Call(number, wish))
    }

    fn asks_not(&mut self, what: &str, why: &'static str) -> Option<Order> {
        self.remembers(what.to_owned(), Outcome::Not(why));
        None
    }

    /// Forgets the oldest call that has an answer, if there are too many. `None` if none of them has.
    fn remembers(&mut self, what: String, outcome: Outcome) -> Option<u64> {
        if self.calls.len() == CALLS {
            let has_answer = |call: &Call| !matches!(call.outcome, Outcome::Asked { .. });
            let oldest = self.calls.iter().position(has_answer)?;
            self.calls.remove(oldest);
        }
        let number = self.next_call;
        self.next_call += 1;
        self.calls.push_back(Call { number, what, outcome });
        Some(number)
    }

    /// The calls that have no answer yet.
    pub(crate) fn unanswered(&self) -> impl Iterator<Item = &Call> {
        self.calls
            .iter()
            .filter(|call| matches!(call.outcome, Outcome::Asked { .. }))
    }
}
