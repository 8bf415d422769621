//! What must be true of what is mirrored, whatever happens:
//!
//! - a thing is sent as one event, and says what the authority's log says ("M1");
//! - nothing is marked sent that no relay has, neither in the authority's outbox nor in SpacetimeDB's ("M2");
//! - in the end every relay has what it is to have, but what it has refused itself while enough others took it ("M3");
//! - both outboxes are bounded ("M4");
//! - what is parked says why, and SpacetimeDB does not show it as waiting ("M5").

use nostr::Event;
use spacetime_sync_authority::OutboxState;
use spacetime_sync_mirror::run::share;
use spacetime_sync_mirror::things::{RECEIPT_KIND, shown_name};
use spacetime_sync_proto::PayloadHash;

use super::World;
use super::authority::{Row, Source};
use super::setup::NOTES_KIND;

impl World {
    /// An event reaches a relay.
    pub(super) fn judge_arrival(&mut self, event: &Event) {
        let (id, kind) = (event.id.to_hex(), event.kind.as_u16());
        let name = event.tags.identifier().unwrap_or_default().to_owned();
        let is_known = match kind {
            RECEIPT_KIND => self.is_in_log(&name, &event.content),
            NOTES_KIND => name.starts_with("note-") && event.content == "c",
            _ => false,
        };
        if !is_known {
            return self.violate("M1", || format!("a relay is sent what nobody is to publish: {event:?}"));
        }
        let first = self.sent_as.entry(name.clone()).or_insert_with(|| id.clone());
        if *first != id {
            let first = first.clone();
            self.violate("M1", || format!("{name} was sent as {first}, and is sent as {id}"));
        }
    }

    /// Whether the log has this event, with the hash that is stated.
    fn is_in_log(&self, name: &str, content: &str) -> bool {
        let Some((stream, seq)) = name.rsplit_once(':') else {
            return false;
        };
        let Ok(seq) = seq.parse::<u64>() else { return false };
        let at = self.setup.streams.iter().position(|known| known.as_str() == stream);
        let hash = PayloadHash::of(&seq.to_be_bytes()).to_string();
        at.is_some_and(|at| seq <= self.heads[at]) && content.contains(&hash)
    }

    /// An entry is settled.
    pub(super) fn judge_settled(&mut self, name: &str) {
        let Some(row) = self.tables.rows.get(name) else { return };
        match row.state {
            OutboxState::Sent => {
                let has = |address: &String| {
                    let relay = self.relays.iter().find(|relay| relay.address == *address);
                    relay.is_some_and(|relay| relay.holds.contains(&row.entry.published_as))
                };
                let (having, quorum) = (row.accepted().filter(|relay| has(relay)).count(), row.quorum);
                let claimed = row.accepted().count();
                self.coverage.seen("mirror: entry sent");
                if having < quorum || having < claimed {
                    self.violate("M2", || {
                        format!("{name} is sent to {claimed} relays, of which {having} have it, and {quorum} must")
                    });
                }
            }
            OutboxState::Parked => {
                self.coverage.seen("mirror: entry parked");
                if row.failure.is_none() {
                    self.violate("M5", || format!("{name} is parked, and nobody knows why"));
                }
            }
            OutboxState::Pending | OutboxState::Dropped => {}
        }
    }

    /// SpacetimeDB was told something.
    pub(super) fn judge_outbox(&mut self) {
        let unheard = self
            .outbox
            .sent()
            .find(|(_, id)| !self.relays.iter().any(|relay| relay.holds.contains(*id)));
        if let Some((name, id)) = unheard {
            let what = format!("SpacetimeDB says that {name} was sent as {id}, which no relay has");
            self.violate("M2", || what);
        }
    }

    /// Checks what a step may have made too large.
    pub(super) fn check(&mut self) {
        let share = share(self.setup.pending, self.setup.policies.len());
        // For a while two mirrors may each find the room of both.
        let most = 2 * share;
        let full = self
            .setup
            .policies
            .iter()
            .map(|policy| self.tables.pending(&policy.policy_id));
        let fullest = full.max().unwrap_or_default();
        // What another policy opens again, waits in the share of the one that it is of. And an operator may have any number published
        // again.
        if fullest > most && !self.setup.overlaps() && !self.quiet {
            self.violate("M4", || format!("{fullest} entries of a policy wait, and {share} may"));
        }
        let (held, room) = (self.outbox.len(), self.setup.room as usize);
        let waiting = self.outbox.waiting().count();
        if waiting > room || held > 2 * room {
            self.violate("M4", || {
                format!("SpacetimeDB holds {held} events, {waiting} of which wait, in room for {room}")
            });
        }
    }

    /// Whether nothing is left to do.
    pub(super) fn is_healed(&self) -> bool {
        self.missing().is_empty()
    }

    /// What is left to do.
    pub(super) fn missing(&self) -> String {
        for (nth, policy) in self.setup.policies.iter().enumerate() {
            for stream in 0..self.heads.len() {
                let cursor = self.tables.cursor(&policy.policy_id, stream);
                if self.reads(nth, stream) && cursor < self.heads[stream] {
                    let (id, head) = (&policy.policy_id, self.heads[stream]);
                    return format!("{id} has read stream {stream} to {cursor} of {head}");
                }
            }
        }
        for (name, row) in &self.tables.rows {
            let is_open = self.relays.iter().any(|relay| row.is_to_have(&relay.address));
            let is_to_retry = row.state == OutboxState::Parked && !row.deliveries.is_empty();
            if is_open || is_to_retry || row.state == OutboxState::Pending {
                return format!("{name} is {:?}: {:?}", row.state, row.deliveries);
            }
        }
        let unreflected = [true, false].map(|are_over| self.tables.unreflected(are_over, 1));
        if let Some(one) = unreflected.iter().flatten().next() {
            return format!(
                "SpacetimeDB does not show that {} is {:?}",
                one.entry.event_id, one.state
            );
        }
        match self.outbox.waiting().next() {
            Some(name) => format!("{name} waits in SpacetimeDB"),
            None => String::new(),
        }
    }

    fn reads(&self, policy: usize, stream: usize) -> bool {
        match &self.setup.policies[policy].source {
            spacetime_sync_authority::MirrorSource::Events(pattern) => pattern.matches(&self.setup.streams[stream]),
            _ => false,
        }
    }

    /// Checks what must be true in the end: every relay has each event that a policy names for it.
    pub(super) fn check_whole(&mut self) {
        for nth in 0..self.setup.policies.len() {
            for stream in (0..self.heads.len())
                .filter(|stream| self.reads(nth, *stream))
                .collect::<Vec<_>>()
            {
                for seq in 1..=self.heads[stream] {
                    self.check_event(nth, stream, seq);
                }
            }
        }
        let contradicted = self.outbox.sent().find(|(name, id)| {
            let of_it = |row: &&Row| shown_name(&row.entry.event_id) == name.as_str();
            let row = self.tables.rows.values().find(of_it);
            row.is_some_and(|row| row.entry.published_as != **id && row.source == Source::Events)
        });
        if let Some((name, id)) = contradicted {
            let what = format!("SpacetimeDB says that {name} was sent as {id}, and the authority says otherwise");
            self.violate("M2", || what);
        }
    }

    fn check_event(&mut self, policy: usize, stream: usize, seq: u64) {
        let name = format!("{}:{seq}", self.setup.streams[stream]);
        let policy = &self.setup.policies[policy];
        let entry =
            spacetime_sync_mirror::things::receipt(policy, &self.setup.streams[stream], &self.event(seq), &self.author);
        // Infallible: it was published.
        let entry = entry.expect("an entry");
        if self.forgotten.contains(entry.event_id.as_str()) {
            return;
        }
        let row = self.tables.rows.get(entry.event_id.as_str());
        let has_refused =
            |relay: &super::Relay| relay.was_odd && row.is_some_and(|row| row.has_failed_at(&relay.address));
        let lacks = |relay: &&super::Relay| {
            policy.relays.contains(&relay.address) && !relay.holds.contains(&entry.published_as) && !has_refused(relay)
        };
        if let Some(relay) = self.relays.iter().find(lacks) {
            let (address, honesty) = (relay.address.clone(), if relay.was_odd { "odd once" } else { "honest" });
            self.violate("M3", || format!("{address}, which was {honesty}, does not have {name}"));
        }
    }
}
