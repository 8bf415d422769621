//! What is on the screen: what the client has shown, what the person has chosen, and what became of the calls. It is told what
//! happened, with the time, and answers with what is to be done. It does nothing itself.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use spacetime_sync_client::{
    AssignmentState, Assignments, Audience, CallError, Capabilities, Capability, ChangeAssignment, Freshness, Heard,
    HeardSignal, OpenAssignment, Phase, PresenceChange, Presences, Refusal, SeenAssignment, Status, StreamId, Watched,
};
use spacetime_sync_rules::assignment::is_final;

use crate::acts::{ACTS, possible};

/// How many calls are remembered, of which some may have no answer yet. The client takes no more at once either.
pub(crate) const CALLS: usize = 16;
/// How many of the newest things are remembered that were told in passing.
pub(crate) const TOLD: usize = 64;
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
    /// The streams whose readers it hears.
    pub(crate) hears: Vec<StreamId>,
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
    Capabilities,
    Assignments,
    Streams,
    Told,
}

impl Pane {
    /// All panes, from the top of the screen to its bottom.
    pub(crate) const ALL: [Self; 5] = [
        Self::Nodes,
        Self::Capabilities,
        Self::Assignments,
        Self::Streams,
        Self::Told,
    ];
}

/// Something that was told in passing, or that it was not heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// When it was heard.
    pub(crate) at: Instant,
    pub(crate) what: Passing,
}

/// What that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Passing {
    /// A session said something.
    Signal(HeardSignal),
    /// A node changed.
    Presence(PresenceChange),
    /// The module lets the session hear nothing of this audience.
    Refused(Audience, Refusal),
    /// At least so much was told too fast to be heard.
    Missed(u64),
    /// Not everything was heard for so long until then.
    Unheard(Duration),
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
    pub(crate) capabilities: Watched<Capabilities>,
    pub(crate) providers_online: Watched<u64>,
    /// What was told in passing, the newest first.
    pub(crate) told: VecDeque<Told>,
    /// Whether everything is heard that is told to the session's audiences, and since when it is not.
    pub(crate) listening: Freshness,
    /// The audiences that the session may belong to, and whether each is heard.
    audiences: BTreeMap<Audience, bool>,
    /// How fresh is what the status says of streams.
    pub(crate) streams_are: Freshness,
    /// Why the last connection ended, or none was made, and when the client said so.
    pub(crate) last_disconnect: Option<(String, Instant)>,
    pub(crate) pane: Pane,
    /// The row that is chosen among the nodes.
    pub(crate) node: usize,
    /// The row that is chosen among the streams.
    pub(crate) stream: usize,
    /// The row that is chosen among the capabilities.
    pub(crate) capability: usize,
    /// The row that is chosen of what was told in passing.
    pub(crate) told_row: usize,
    /// The assignment that is chosen, by its name: its row moves when others come and end.
    pub(crate) assignment: Option<String>,
    /// The newest calls, the oldest first.
    pub(crate) calls: VecDeque<Call>,
    next_call: u64,
}

impl State {
    pub(crate) fn new(own: Own, status: Status) -> Self {
        let audiences = own.hears.iter().cloned().map(Audience::Stream);
        let audiences = audiences.chain([Audience::OwnUser]);
        Self {
            audiences: audiences.map(|audience| (audience, false)).collect(),
            own,
            status,
            presences: Watched::default(),
            assignments: Watched::default(),
            capabilities: Watched::default(),
            providers_online: Watched::default(),
            told: VecDeque::new(),
            listening: Freshness::Unseen,
            streams_are: Freshness::Unseen,
            last_disconnect: None,
            pane: Pane::Assignments,
            node: 0,
            stream: 0,
            capability: 0,
            told_row: 0,
            assignment: None,
            calls: VecDeque::new(),
            next_call: 1,
        }
    }

    /// The client says how it is.
    pub(crate) fn says(&mut self, status: Status, now: Now) {
        let brings_events = matches!(status.phase, Phase::Live | Phase::CatchingUp { .. });
        self.streams_are = becomes(self.streams_are, brings_events, now);
        if let Phase::Backoff { reason, attempt, .. } = &status.phase {
            // Each attempt has a reason of its own.
            let is_told = matches!(&self.status.phase, Phase::Backoff { attempt: told, .. } if told == attempt);
            if !is_told || self.last_disconnect.is_none() {
                self.last_disconnect = Some((reason.to_string(), now.instant));
            }
        }
        if let Phase::Stopped { .. } = status.phase {
            // A client that has ended says nothing of its audiences.
            self.audiences.values_mut().for_each(|is_heard| *is_heard = false);
            self.listens(now);
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

    /// The client has heard something in passing, or hears an audience from here on or no more. Whether to listen anew, because
    /// nobody knows any more what is heard.
    pub(crate) fn hears(&mut self, heard: Heard, now: Now) -> bool {
        let missed_some = matches!(heard, Heard::Missed(_));
        match heard {
            Heard::Listening(audience) => {
                self.audiences.insert(audience, true);
            }
            Heard::Interrupted(audience) => {
                self.audiences.insert(audience, false);
            }
            Heard::Refused { audience, refusal } => {
                self.audiences.remove(&audience);
                self.remembers_told(Passing::Refused(audience, refusal), now);
            }
            Heard::Missed(missed) => {
                // What was dropped may have said that an audience is heard no more.
                self.audiences.values_mut().for_each(|is_heard| *is_heard = false);
                self.remembers_told(Passing::Missed(missed), now);
            }
            Heard::Presence(change) => self.remembers_told(Passing::Presence(change), now),
            Heard::Signal(signal) => self.remembers_told(Passing::Signal(signal), now),
        }
        self.listens(now);
        missed_some
    }

    /// Looks whether everything is heard, and remembers for how long it was not.
    fn listens(&mut self, now: Now) {
        let before = self.listening;
        let hears_all = !self.audiences.is_empty() && self.audiences.values().all(|is_heard| *is_heard);
        self.listening = becomes(before, hears_all, now);
        if let (Freshness::Stale { since }, Freshness::Live) = (before, self.listening) {
            self.remembers_told(Passing::Unheard(now.instant.saturating_duration_since(since)), now);
        }
    }

    /// Forgets the oldest, if there is too much. Whoever has chosen an older one still has.
    fn remembers_told(&mut self, what: Passing, now: Now) {
        let at = now.instant;
        self.told.push_front(Told { at, what });
        self.told.truncate(TOLD);
        if self.told_row > 0 {
            self.told_row = (self.told_row + 1).min(TOLD - 1);
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
            KeyCode::BackTab | KeyCode::Left => self.goes_to(|at| at + Pane::ALL.len() - 1),
            KeyCode::Down => self.moves(|at| at.saturating_add(1)),
            KeyCode::Up => self.moves(|at| at.saturating_sub(1)),
            KeyCode::Char('n') => self.opens(chance, now),
            KeyCode::Char('p') => self.publishes(now),
            KeyCode::Char(key) => self.acts(key, chance, now),
            _ => None,
        }
    }

    fn goes_to(&mut self, pane: impl Fn(usize) -> usize) -> Option<Order> {
        let at = Pane::ALL.iter().position(|one| *one == self.pane).unwrap_or_default();
        self.pane = Pane::ALL[pane(at) % Pane::ALL.len()];
        None
    }

    fn moves(&mut self, to: impl Fn(usize) -> usize) -> Option<Order> {
        let within = |at: usize, rows: usize| to(at).min(rows.saturating_sub(1));
        match self.pane {
            Pane::Nodes => self.node = within(self.node, self.presences.rows.len()),
            Pane::Streams => self.stream = within(self.stream, self.status.streams.len()),
            Pane::Capabilities => self.capability = within(self.capability, self.capabilities.rows.len()),
            Pane::Told => self.told_row = within(self.told_row, self.told.len()),
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

/// How fresh something is now, by how fresh it was before and whether it is live.
fn becomes(before: Freshness, is_live: bool, now: Now) -> Freshness {
    match before {
        _ if is_live => Freshness::Live,
        Freshness::Live => Freshness::Stale { since: now.instant },
        Freshness::Unseen | Freshness::Stale { .. } => before,
    }
}
