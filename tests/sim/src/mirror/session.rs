//! The session of a mirror at SpacetimeDB, step by step: each question and each answer is a step of its own, and a mirror may die
//! between any two.

use std::collections::VecDeque;
use std::time::Duration;

use rand::Rng as _;
use spacetime_sync_authority::{Entry, Kept, Reflected, Unreflected};
use spacetime_sync_client::OutboxOutcome;
use spacetime_sync_mirror::adoption::Waiting;
use spacetime_sync_mirror::reflection::{Call, Step as Showing, Told, lost, steps, told};
use spacetime_sync_proto::Label;

use super::{Step, World};
use crate::agenda::MILLISECOND;

/// How often a session looks for something to do.
const LOOK: u64 = 250 * MILLISECOND;

#[derive(Debug)]
pub(super) enum Attending {
    /// The session takes over what has changed, and asks what SpacetimeDB is known to show.
    Look,
    /// The session writes down what a wipe has taken.
    Missed(Vec<String>),
    /// The session looks at what others have put there.
    Adopt,
    /// The session refuses and takes in some of that.
    Adopting {
        refused: Vec<String>,
        adopted: VecDeque<(Entry, Result<usize, &'static str>)>,
        waiting: Vec<Label>,
        next: String,
    },
    /// The session asks which of what waits there is not shown as it is.
    ShowWaiting(Vec<Label>),
    /// The session asks what is not shown.
    Show { are_over: bool },
    /// The session tells SpacetimeDB one thing after the other.
    Tell {
        /// What it asks for next: of what is over, or not.
        then: Option<bool>,
        steps: VecDeque<Showing>,
        shows: Vec<(Label, Reflected)>,
    },
}

impl World {
    pub(super) fn attend(&mut self, at: usize, step: Attending) {
        let next = if self.is_authority_away() {
            None
        } else {
            self.attends(at, step)
        };
        let life = self.mirrors[at].life;
        let (when, step) = match next {
            Some(step) => (self.now + self.dice.random_range(1..10 * MILLISECOND), step),
            None => (self.now + LOOK, Attending::Look),
        };
        self.agenda.push(when, Step::Attend { at, life, step });
    }

    /// `None`: it looks again later.
    fn attends(&mut self, at: usize, step: Attending) -> Option<Attending> {
        let most = self.setup.at_once;
        match step {
            Attending::Look => {
                // A client that is not connected says so.
                if self.is_host_away() {
                    return None;
                }
                let process = &mut self.mirrors[at];
                process.rows = self.outbox.seen();
                let names = self.tables.reflected(&process.missed_after, most);
                let gone = lost(&names, &process.rows).into_iter().map(str::to_owned).collect();
                process.missed_after = match names.last() {
                    Some(last) if names.len() == most => last.as_str().to_owned(),
                    Some(_) | None => String::new(),
                };
                Some(Attending::Missed(gone))
            }
            Attending::Missed(names) => {
                for name in names {
                    self.coverage.seen("mirror: missed a row");
                    self.tables.reflect(&name, Reflected::Nothing);
                }
                Some(Attending::Adopt)
            }
            Attending::Adopt => {
                let process = &self.mirrors[at];
                let waiting = Waiting::after(&process.rows, &process.adopted_after, most);
                let known = self.tables.has(&waiting.names());
                for entry in waiting.entries() {
                    if self.tables.waits_again(entry.as_str()) {
                        self.coverage.seen("mirror: row waits again");
                    }
                }
                let policies = &self.setup.policies;
                let nth = |id: &str| policies.iter().position(|policy| policy.policy_id == id);
                let adoptions = waiting.adoptions(&known, policies, &self.author, self.now_s());
                let adopted = adoptions.into_iter().filter_map(|one| {
                    let kept = match one.kept {
                        Kept::Publish(policy) => Ok(nth(&policy.policy_id)?),
                        Kept::Park(why) => Err(why),
                    };
                    Some((one.entry, kept))
                });
                Some(Attending::Adopting {
                    adopted: adopted.collect(),
                    refused: waiting.refused(&known).into_iter().map(str::to_owned).collect(),
                    waiting: waiting.entries(),
                    next: waiting.next,
                })
            }
            Attending::Adopting {
                mut refused,
                mut adopted,
                waiting,
                next,
            } => {
                if let Some(event_id) = refused.pop() {
                    let outcome = OutboxOutcome {
                        event_id,
                        published_as: None,
                    };
                    // It is refused again if this is lost.
                    let _ = self.calls(&Call::Mark(outcome));
                } else if let Some((entry, kept)) = adopted.pop_front() {
                    self.takes_in(entry, kept);
                } else {
                    self.mirrors[at].adopted_after = next;
                    return Some(Attending::ShowWaiting(waiting));
                }
                Some(Attending::Adopting {
                    refused,
                    adopted,
                    waiting,
                    next,
                })
            }
            Attending::ShowWaiting(names) => {
                let unreflected = self.tables.unreflected_of(&names);
                Some(self.tells(at, Some(true), &unreflected))
            }
            Attending::Show { are_over } => {
                let unreflected = self.tables.unreflected(are_over, most);
                Some(self.tells(at, are_over.then_some(false), &unreflected))
            }
            Attending::Tell {
                then,
                mut steps,
                mut shows,
            } => {
                let Some(step) = steps.pop_front() else {
                    for (name, says) in shows {
                        self.tables.reflect(name.as_str(), says);
                    }
                    return then.map(|are_over| Attending::Show { are_over });
                };
                let said = step.call().map_or(Ok(()), |call| self.calls(&call));
                match told(step.says(), &said) {
                    Told::Shows(says) => shows.push((step.event_id().clone(), says)),
                    Told::Full => {
                        self.mirrors[at].room.was_full(Duration::from_micros(self.now));
                        steps.clear();
                    }
                    Told::Nothing => {}
                }
                self.judge_outbox();
                Some(Attending::Tell { then, steps, shows })
            }
        }
    }

    fn tells(&self, at: usize, then: Option<bool>, unreflected: &[Unreflected]) -> Attending {
        let process = &self.mirrors[at];
        let now = Duration::from_micros(self.now);
        Attending::Tell {
            then,
            steps: process.room.allow(steps(unreflected, &process.rows), now).into(),
            shows: Vec::new(),
        }
    }
}
