//! Relays, and what is on its way to them.

use std::collections::{BTreeMap, BTreeSet};

use nostr::{Event, EventId};
use rand::Rng as _;
use spacetime_sync_mirror::relay::Published;
use spacetime_sync_mirror::verdict::Answer;

use super::{Step, World};
use crate::agenda::{MILLISECOND, Micros};

/// How a relay treats whoever publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treats {
    /// As a relay should.
    Honestly,
    /// Nobody can connect.
    Down,
    /// It takes everything and shows nothing.
    Forgets,
    /// It answers about another event of the batch, and keeps nothing.
    OfAnother,
    /// It never answers. What is sent to it, it has.
    Silently,
    /// It refuses with these words.
    Refusing(&'static str),
}

#[derive(Debug)]
pub(super) struct Relay {
    pub(super) address: String,
    pub(super) treats: Treats,
    pub(super) odd_until: Micros,
    /// Whether it was ever anything but honest.
    pub(super) was_odd: bool,
    /// The ids that it has, in hex.
    pub(super) holds: BTreeSet<String>,
}

/// A batch on its way to a relay, and what the relay has said about it so far.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) at: usize,
    pub(super) life: u32,
    pub(super) relay: usize,
    batch: Vec<Event>,
    said: BTreeMap<EventId, Result<(), Answer>>,
    shown: Option<Result<BTreeSet<String>, String>>,
    is_unreached: bool,
}

impl Relay {
    pub(super) fn of(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            treats: Treats::Honestly,
            odd_until: 0,
            was_odd: false,
            holds: BTreeSet::new(),
        }
    }

    fn treats(&self, now: Micros) -> Treats {
        if now < self.odd_until {
            self.treats
        } else {
            Treats::Honestly
        }
    }
}

impl World {
    /// A mirror sends a batch. Each event arrives by itself, and then the mirror asks what the relay shows.
    pub(super) fn publish(&mut self, at: usize, relay: usize, batch: Vec<Event>) {
        self.flown += 1;
        let flight = self.flown;
        let is_unreached = self.relays[relay].treats(self.now) == Treats::Down;
        let mut last = self.soon();
        if !is_unreached {
            for nth in 0..batch.len() {
                let when = self.now + self.dice.random_range(1..30 * MILLISECOND);
                last = last.max(when);
                self.agenda.push(when, Step::Arrives { flight, nth });
            }
        }
        self.agenda.push(last + MILLISECOND, Step::ReadBack { flight });
        let life = self.mirrors[at].life;
        let new = Flight {
            at,
            life,
            relay,
            batch,
            said: BTreeMap::new(),
            shown: None,
            is_unreached,
        };
        self.flights.insert(flight, new);
    }

    pub(super) fn arrives(&mut self, flight: u64, nth: usize) {
        let Some(found) = self.flights.get(&flight) else { return };
        let (relay, event) = (found.relay, found.batch[nth].clone());
        let other = found.batch[(nth + 1) % found.batch.len()].id;
        self.judge_arrival(&event);
        let treats = self.relays[relay].treats(self.now);
        let (about, said) = match treats {
            Treats::Honestly | Treats::Forgets => (event.id, Ok(())),
            Treats::OfAnother => (other, Ok(())),
            Treats::Refusing(words) => (event.id, Err(Answer::Refused(words.to_owned()))),
            Treats::Silently | Treats::Down => (event.id, Err(Answer::Silent("no answer".to_owned()))),
        };
        if matches!(treats, Treats::Honestly | Treats::Silently) {
            self.relays[relay].holds.insert(event.id.to_hex());
        }
        if let Some(found) = self.flights.get_mut(&flight) {
            found.said.insert(about, said);
        }
    }

    pub(super) fn reads_back(&mut self, flight: u64) {
        let Some(found) = self.flights.get_mut(&flight) else {
            return;
        };
        let relay = &self.relays[found.relay];
        found.shown = Some(match relay.treats(self.now) {
            Treats::Honestly | Treats::Refusing(_) => Ok(relay.holds.clone()),
            Treats::Forgets | Treats::OfAnother => Ok(BTreeSet::new()),
            Treats::Silently | Treats::Down => Err("no answer to a question in time".to_owned()),
        });
        let when = self.soon();
        self.agenda.push(when, Step::Answered { flight });
    }

    /// A batch is over, if the mirror that sent it still lives.
    pub(super) fn answered(&mut self, flight: u64) {
        let Some(flight) = self.flights.remove(&flight) else {
            return;
        };
        let (at, relay) = (flight.at, flight.relay);
        if !self.leads(at, flight.life) {
            return self.coverage.seen("mirror: answer of a relay to nobody");
        }
        let outcomes = {
            let process = &mut self.mirrors[at];
            let published = flight.published();
            let (patience, now) = (self.setup.patience, std::time::Duration::from_micros(self.now));
            let address = self.relays[relay].address.as_str();
            match process.couriers.get_mut(address) {
                Some(courier) => courier.answered(published, &patience, &mut process.chance, now),
                None => Vec::new(),
            }
        };
        self.settles(at, relay, outcomes);
    }
}

impl Flight {
    fn published(mut self) -> Published {
        if self.is_unreached {
            return Published::Unreached("nobody there".to_owned());
        }
        let shown = self.shown.unwrap_or_else(|| Ok(BTreeSet::new()));
        let answer = |event: &Event| {
            let silent = || Err(Answer::Silent("no answer about this event in time".to_owned()));
            let said = self.said.remove(&event.id).unwrap_or_else(silent);
            let is_shown = shown.as_ref().map(|shown| shown.contains(&event.id.to_hex()));
            (event.id, Answer::of(said, is_shown))
        };
        Published::Answered(self.batch.iter().map(answer).collect())
    }
}
