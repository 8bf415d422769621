//! The authority's tables of the mirror, and what its statements do with them (`bridge/authority/src/outbox.rs`).

use std::collections::{BTreeMap, BTreeSet};

use spacetime_sync_authority::{Attempt, Delivery, Entry, MirrorPolicy, OutboxState, Outcome, Reflected, Unreflected};
use spacetime_sync_proto::Label;

use crate::agenda::Micros;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Events,
    Enqueued,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    Pending,
    Accepted,
    Failed,
}

#[derive(Debug, Clone)]
pub(super) struct Delivered {
    pub(super) at: At,
    attempts: u32,
    next_at: Micros,
}

#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) entry: Entry,
    pub(super) policy_id: String,
    pub(super) source: Source,
    pub(super) quorum: usize,
    pub(super) state: OutboxState,
    pub(super) failure: Option<String>,
    pub(super) reflected: Reflected,
    pub(super) deliveries: BTreeMap<String, Delivered>,
    nth: u64,
    settled_at: Micros,
}

#[derive(Debug, Default)]
pub(super) struct Tables {
    /// By their names.
    pub(super) rows: BTreeMap<String, Row>,
    cursors: BTreeMap<(String, usize), u64>,
    written: u64,
}

impl Row {
    fn count(&self, at: At) -> usize {
        self.deliveries.values().filter(|one| one.at == at).count()
    }

    /// The relays that have it, as far as the authority knows.
    pub(super) fn accepted(&self) -> impl Iterator<Item = &String> {
        let accepted = self.deliveries.iter().filter(|(_, one)| one.at == At::Accepted);
        accepted.map(|(relay, _)| relay)
    }

    pub(super) fn is_to_have(&self, relay: &str) -> bool {
        self.deliveries.get(relay).is_some_and(|one| one.at == At::Pending)
    }

    /// Whether it is not tried at a relay any more.
    pub(super) fn has_failed_at(&self, relay: &str) -> bool {
        self.deliveries.get(relay).is_some_and(|one| one.at == At::Failed)
    }

    /// Settles the entry once enough of its relays have decided.
    fn settle(&mut self, now: Micros) -> bool {
        let (accepted, pending) = (self.count(At::Accepted), self.count(At::Pending));
        if self.state != OutboxState::Pending || self.deliveries.is_empty() {
            return false;
        }
        if accepted >= self.quorum {
            (self.state, self.failure) = (OutboxState::Sent, None);
        } else if accepted + pending < self.quorum {
            self.state = OutboxState::Parked;
        } else {
            return false;
        }
        self.settled_at = now;
        true
    }
}

impl Tables {
    pub(super) fn cursor(&self, policy_id: &str, stream: usize) -> u64 {
        let key = (policy_id.to_owned(), stream);
        self.cursors.get(&key).copied().unwrap_or_default()
    }

    /// Moves a cursor, unless somebody else has moved it.
    pub(super) fn moves(&mut self, cursor: (String, usize), from: u64, to: u64) -> bool {
        let held = self.cursors.entry(cursor).or_default();
        let is_there = *held == from;
        if is_there {
            *held = to;
        }
        is_there
    }

    /// Writes entries. What is there already stays as it is, but the relays of another policy are to have it, too. Returns how many
    /// got such relays.
    pub(super) fn insert(
        &mut self,
        source: Source,
        kept: Result<&MirrorPolicy, &'static str>,
        entries: &[Entry],
        now: Micros,
    ) -> u64 {
        let mut reopened = 0;
        for entry in entries {
            let name = entry.event_id.as_str().to_owned();
            let delivered = |relay: &String| {
                let fresh = Delivered {
                    at: At::Pending,
                    attempts: 0,
                    next_at: now,
                };
                (relay.clone(), fresh)
            };
            let Some(row) = self.rows.get_mut(&name) else {
                self.written += 1;
                let row = Row {
                    entry: entry.clone(),
                    policy_id: kept.map(|policy| policy.policy_id.clone()).unwrap_or_default(),
                    source,
                    quorum: kept.map(|policy| policy.quorum).unwrap_or_default(),
                    state: if kept.is_ok() {
                        OutboxState::Pending
                    } else {
                        OutboxState::Parked
                    },
                    failure: kept.err().map(str::to_owned),
                    reflected: match source {
                        Source::Enqueued => Reflected::Pending,
                        Source::Events => Reflected::Nothing,
                    },
                    deliveries: kept
                        .map(|policy| policy.relays.iter().map(delivered).collect())
                        .unwrap_or_default(),
                    nth: self.written,
                    settled_at: now,
                };
                self.rows.insert(name, row);
                continue;
            };
            let (Source::Events, Ok(policy)) = (source, kept) else {
                continue;
            };
            let added: Vec<&String> = policy
                .relays
                .iter()
                .filter(|relay| !row.deliveries.contains_key(*relay))
                .collect();
            if added.is_empty() || row.state == OutboxState::Dropped && row.policy_id == policy.policy_id {
                continue;
            }
            let before = if row.state == OutboxState::Dropped {
                0
            } else {
                row.quorum
            };
            row.quorum = before + added.len().min(policy.quorum);
            row.deliveries.extend(added.into_iter().map(delivered));
            if row.state != OutboxState::Parked {
                row.state = OutboxState::Pending;
            }
            reopened += 1;
        }
        reopened
    }

    pub(super) fn pending(&self, policy_id: &str) -> usize {
        let of_it = |row: &&Row| row.policy_id == policy_id && row.state == OutboxState::Pending;
        self.rows.values().filter(of_it).count()
    }

    /// What is due at a relay, what is due longest first.
    pub(super) fn due(&self, relay: &str, limit: usize, now: Micros) -> Vec<Delivery> {
        let mut due: Vec<_> = self
            .rows
            .values()
            .filter_map(|row| Some((row.deliveries.get(relay)?, row)))
            .filter(|(one, _)| one.at == At::Pending && one.next_at <= now)
            .collect();
        due.sort_by_key(|(one, row)| (one.next_at, row.nth));
        let delivery = |(one, row): (&Delivered, &Row)| Delivery {
            entry: row.entry.clone(),
            attempts: one.attempts,
        };
        due.into_iter().take(limit).map(delivery).collect()
    }

    /// Records what attempts came to. Returns the names of what is settled with it.
    pub(super) fn settle(&mut self, relay: &str, outcomes: &[Outcome], now: Micros) -> Vec<String> {
        let mut settled = Vec::new();
        for outcome in outcomes {
            let name = outcome.event_id.as_str();
            let Some(row) = self.rows.get_mut(name) else { continue };
            if let Some(one) = row.deliveries.get_mut(relay)
                && one.at == At::Pending
            {
                one.attempts += 1;
                match &outcome.attempt {
                    Attempt::Accepted => one.at = At::Accepted,
                    Attempt::Again { after, .. } => {
                        one.next_at = now + u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
                    }
                    Attempt::Failed { failure, .. } => {
                        one.at = At::Failed;
                        row.failure = Some((*failure).to_owned());
                    }
                }
            }
            if row.settle(now) {
                settled.push(name.to_owned());
            }
        }
        settled
    }

    /// Forgets what is over beyond a number, and what is parked, the oldest first. Returns the names of what was forgotten, and
    /// whether some relay was still to have it.
    pub(super) fn forget(&mut self, sent: usize, parked: usize) -> Vec<String> {
        let mut forgotten = Vec::new();
        for (states, most) in [
            (&[OutboxState::Sent, OutboxState::Dropped][..], sent),
            (&[OutboxState::Parked][..], parked),
        ] {
            let mut of: Vec<_> = self
                .rows
                .iter()
                .filter(|(_, row)| states.contains(&row.state))
                .collect();
            of.sort_by_key(|(_, row)| std::cmp::Reverse((row.settled_at, row.nth)));
            let gone: Vec<String> = of.into_iter().skip(most).map(|(name, _)| name.clone()).collect();
            for name in gone {
                self.rows.remove(&name);
                forgotten.push(name);
            }
        }
        forgotten
    }

    pub(super) fn unreflected(&self, are_over: bool, limit: usize) -> Vec<Unreflected> {
        let is_unreflected = |row: &&Row| match row.state {
            OutboxState::Pending => !are_over && row.reflected == Reflected::Nothing,
            OutboxState::Sent => are_over && row.reflected != Reflected::Sent,
            OutboxState::Parked | OutboxState::Dropped => {
                are_over && matches!(row.reflected, Reflected::Nothing | Reflected::Pending)
            }
        };
        let mut found: Vec<&Row> = self.rows.values().filter(is_unreflected).collect();
        found.sort_by_key(|row| (row.reflected == Reflected::Nothing, row.nth));
        let unreflected = |row: &Row| Unreflected {
            entry: row.entry.clone(),
            state: row.state,
            reflected: row.reflected,
        };
        found.into_iter().take(limit).map(unreflected).collect()
    }

    /// Those of these entries that SpacetimeDB does not show as they are.
    pub(super) fn unreflected_of(&self, names: &[Label]) -> Vec<Unreflected> {
        let all = [true, false].map(|are_over| self.unreflected(are_over, usize::MAX));
        let is_named = |one: &Unreflected| names.contains(&one.entry.event_id);
        all.into_iter().flatten().filter(is_named).collect()
    }

    /// The names after `after` of what SpacetimeDB is known to show as waiting.
    pub(super) fn reflected(&self, after: &str, limit: usize) -> Vec<Label> {
        let shown = self.rows.values().filter(|row| row.reflected == Reflected::Pending);
        let names = shown.map(|row| row.entry.event_id.clone());
        names.filter(|name| name.as_str() > after).take(limit).collect()
    }

    pub(super) fn has(&self, names: &[String]) -> BTreeSet<String> {
        names
            .iter()
            .filter(|name| self.rows.contains_key(*name))
            .cloned()
            .collect()
    }

    /// Records that an entry waits in SpacetimeDB, if it was known to be over there. Returns whether it was.
    pub(super) fn waits_again(&mut self, name: &str) -> bool {
        let over = [Reflected::Dropped, Reflected::Sent];
        let row = self.rows.get_mut(name).filter(|row| over.contains(&row.reflected));
        row.map(|row| row.reflected = Reflected::Pending).is_some()
    }

    pub(super) fn reflect(&mut self, name: &str, says: Reflected) {
        if let Some(row) = self.rows.get_mut(name) {
            row.reflected = says;
        }
    }

    /// Has what is parked published again, as an operator does. Returns how many entries.
    pub(super) fn retry(&mut self, now: Micros) -> usize {
        let parked = |row: &&mut Row| row.state == OutboxState::Parked && !row.deliveries.is_empty();
        let mut retried = 0;
        for row in self.rows.values_mut().filter(parked) {
            (row.state, row.failure) = (OutboxState::Pending, None);
            for one in row.deliveries.values_mut().filter(|one| one.at == At::Failed) {
                (one.at, one.attempts, one.next_at) = (At::Pending, 0, now);
            }
            retried += 1;
        }
        retried
    }
}
