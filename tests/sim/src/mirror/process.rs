//! The mirrors: processes that die, and of which one has the lead. What they decide is shipped.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng as _;
use spacetime_sync_authority::{Delivery, Entry, MirrorSource, Outcome};
use spacetime_sync_mirror::courier::{Courier, Given};
use spacetime_sync_mirror::reflection::{Room, Rows};
use spacetime_sync_mirror::run::share;
use spacetime_sync_mirror::tail::entries_of;
use spacetime_sync_mirror::verdict::Chance;

use super::session::Attending;
use super::setup::MirrorSetup;
use super::{STANDBY, Step, World};
use crate::agenda::MILLISECOND;

/// The most events of one pass.
const PASS: u64 = 8;

#[derive(Debug)]
pub(super) struct Process {
    pub(super) running: bool,
    pub(super) life: u32,
    /// Whether it believes that it leads.
    leads: bool,
    pub(super) couriers: BTreeMap<String, Courier>,
    pub(super) chance: Chance,
    /// How many answers of relays it is about to record. It does one thing after the other.
    settling: u32,
    turns: usize,
    /// What its session knows.
    pub(super) rows: Rows,
    pub(super) missed_after: String,
    pub(super) adopted_after: String,
    pub(super) room: Room,
}

impl Process {
    pub(super) fn new(setup: &MirrorSetup, nth: u64) -> Self {
        let courier = |relay: &String| (relay.clone(), Courier::new(setup.batch));
        Self {
            running: false,
            life: 0,
            leads: false,
            couriers: setup.relays.iter().map(courier).collect(),
            chance: Chance::seeded(setup.seed ^ nth),
            settling: 0,
            turns: 0,
            rows: Rows::new(),
            missed_after: String::new(),
            adopted_after: String::new(),
            room: Room::default(),
        }
    }

    /// What it knows while it leads begins anew.
    fn forget(&mut self, setup: &MirrorSetup) {
        let fresh = Self::new(setup, u64::from(self.life) << 8);
        *self = Self {
            running: self.running,
            life: self.life + 1,
            ..fresh
        };
    }
}

impl World {
    pub(super) fn lives(&self, at: usize, life: u32) -> bool {
        self.mirrors[at].running && self.mirrors[at].life == life
    }

    pub(super) fn leads(&self, at: usize, life: u32) -> bool {
        self.lives(at, life) && self.mirrors[at].leads
    }

    pub(super) fn starts(&mut self, at: usize) {
        if self.mirrors[at].running {
            return;
        }
        self.mirrors[at].running = true;
        let life = self.mirrors[at].life;
        self.agenda.push(self.now, Step::Asks { at, life });
    }

    pub(super) fn dies(&mut self, at: usize) {
        if self.lead == Some(at) {
            self.lead = None;
        }
        self.mirrors[at].running = false;
        self.mirrors[at].forget(&self.setup);
    }

    pub(super) fn loses_lead(&mut self, at: usize) {
        if self.lead == Some(at) {
            return;
        }
        self.mirrors[at].forget(&self.setup);
        let life = self.mirrors[at].life;
        self.agenda.push(self.now + STANDBY, Step::Asks { at, life });
    }

    pub(super) fn asks(&mut self, at: usize) {
        let life = self.mirrors[at].life;
        if self.lead.is_some() || self.is_authority_away() {
            return self.agenda.push(self.now + STANDBY, Step::Asks { at, life });
        }
        if self.mirrors.iter().any(|other| other.leads) {
            self.coverage.seen("mirror: two lead at once");
        }
        self.say(|| format!("mirror {at}: leads"));
        self.lead = Some(at);
        self.mirrors[at].leads = true;
        self.agenda.push(self.now, Step::Turn { at, life });
        let step = Attending::Look;
        self.agenda.push(self.now, Step::Attend { at, life, step });
    }

    /// Reads what is new for one policy, gives relays what is due, and forgets what is over.
    pub(super) fn turn(&mut self, at: usize) {
        let life = self.mirrors[at].life;
        let when = self.now + self.dice.random_range(20..60 * MILLISECOND);
        self.agenda.push(when, Step::Turn { at, life });
        if self.is_authority_away() || self.mirrors[at].settling > 0 {
            return;
        }
        self.read(at);
        let names: Vec<String> = self.relays.iter().map(|relay| relay.address.clone()).collect();
        for (relay, name) in names.iter().enumerate() {
            let courier = &self.mirrors[at].couriers[name];
            if !courier.is_free(Duration::from_micros(self.now)) {
                continue;
            }
            let due = self.tables.due(name, courier.wants(), self.now);
            if !due.is_empty() {
                let when = self.now + self.dice.random_range(0..10 * MILLISECOND);
                self.agenda.push(when, Step::Give { at, life, relay, due });
            }
        }
        let forgotten = {
            let was_due: Vec<String> = self.unpublished().collect();
            let gone = self.tables.forget(self.setup.sent, self.setup.parked);
            gone.into_iter()
                .filter(|name| was_due.contains(name))
                .collect::<Vec<_>>()
        };
        if !forgotten.is_empty() {
            self.coverage.seen("mirror: forgotten before every relay had it");
        }
        self.forgotten.extend(forgotten);
    }

    /// The names of what some relay does not have.
    fn unpublished(&self) -> impl Iterator<Item = String> {
        let rows = self.tables.rows.iter();
        let lacking = rows.filter(|(_, row)| row.accepted().count() < row.deliveries.len());
        lacking.map(|(name, _)| name.clone())
    }

    fn read(&mut self, at: usize) {
        let process = &mut self.mirrors[at];
        process.turns += 1;
        let nth = process.turns % self.setup.policies.len();
        let policy = &self.setup.policies[nth];
        let MirrorSource::Events(pattern) = &policy.source else {
            return;
        };
        let share = share(self.setup.pending, self.setup.policies.len());
        let room = share.saturating_sub(self.tables.pending(&policy.policy_id)) as u64;
        let behind = |stream: &usize| {
            pattern.matches(&self.setup.streams[*stream])
                && self.tables.cursor(&policy.policy_id, *stream) < self.heads[*stream]
        };
        let streams: Vec<usize> = (0..self.setup.streams.len()).filter(behind).collect();
        if streams.is_empty() || room == 0 {
            return;
        }
        let stream = streams[self.dice.random_range(0..streams.len())];
        let from = self.tables.cursor(&policy.policy_id, stream);
        let to = self.heads[stream].min(from + room.min(PASS));
        let events: Vec<_> = (from + 1..=to).map(|seq| self.event(seq)).collect();
        let entries = entries_of(policy, &self.setup.streams[stream], &events, &self.author);
        let (life, when) = (self.mirrors[at].life, self.soon());
        let step = Step::Journal {
            at,
            life,
            policy: nth,
            stream,
            from,
            to,
            entries,
        };
        self.agenda.push(when, step);
    }

    pub(super) fn give(&mut self, at: usize, relay: usize, due: Vec<Delivery>) {
        let (now_s, patience) = (self.now_s(), self.setup.patience);
        let process = &mut self.mirrors[at];
        let address = self.relays[relay].address.as_str();
        let Some(courier) = process.couriers.get_mut(address) else {
            return;
        };
        if !courier.is_free(Duration::from_micros(self.now)) {
            return;
        }
        let Given { batch, unsigned, .. } = courier.give(due, &self.key, &patience, now_s);
        if !unsigned.is_empty() {
            let what = format!("{unsigned:?}");
            self.violate("M1", || format!("an entry cannot be signed as it was written: {what}"));
        }
        if !batch.is_empty() {
            self.publish(at, relay, batch);
        }
    }

    /// A mirror is about to record what a relay's answers came to.
    pub(super) fn settles(&mut self, at: usize, relay: usize, outcomes: Vec<Outcome>) {
        self.mirrors[at].settling += 1;
        let (life, when) = (self.mirrors[at].life, self.soon());
        let step = Step::Settle {
            at,
            life,
            relay,
            outcomes,
        };
        self.agenda.push(when, step);
    }

    pub(super) fn settle(&mut self, at: usize, relay: usize, outcomes: &[Outcome]) {
        self.mirrors[at].settling -= 1;
        if self.is_authority_away() {
            return self.coverage.seen("mirror: outcome not recorded");
        }
        let address = self.relays[relay].address.clone();
        let settled = self.tables.settle(&address, outcomes, self.now);
        for name in settled {
            self.judge_settled(&name);
        }
    }

    /// What others have enqueued is taken in.
    pub(super) fn takes_in(&mut self, entry: Entry, kept: Result<usize, &'static str>) {
        let policy = kept.map(|nth| &self.setup.policies[nth]);
        if let Ok(policy) = policy {
            let share = share(self.setup.pending, self.setup.policies.len());
            if self.tables.pending(&policy.policy_id) >= share {
                return;
            }
        }
        self.coverage.seen(match kept {
            Ok(_) => "mirror: took in what others enqueued",
            Err(_) => "mirror: parked what others enqueued",
        });
        let source = super::authority::Source::Enqueued;
        self.tables.insert(source, policy, &[entry], self.now);
    }
}
