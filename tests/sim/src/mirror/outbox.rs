//! SpacetimeDB's outbox: the module's rows, changed by its shipped rules as its reducers do it.

use std::collections::BTreeMap;

use rand::Rng as _;
use spacetime_sync_client::CallError;
use spacetime_sync_mirror::reflection::{Call, Rows, Seen, TRANSPORT};
use spacetime_sync_proto::{OutboxStatus, Refusal, limit};
use spacetime_sync_rules::content::Digest;
use spacetime_sync_rules::outbox::{self, Counts, Effect, Held};

use super::World;
use super::setup::{NOTES, NOTES_KIND};
use crate::agenda::Micros;

#[derive(Debug, Clone)]
struct Row {
    nth: u64,
    transport: String,
    payload: String,
    content: Digest,
    status: OutboxStatus,
    published_as: String,
}

#[derive(Debug)]
pub(super) struct Outbox {
    rows: BTreeMap<String, Row>,
    counts: Counts,
    written: u64,
    /// How much others have put in that stays there: it leaves this much room.
    taken: Counts,
    /// A copy of an earlier time.
    copy: (BTreeMap<String, Row>, Counts),
    pub(super) away_until: Micros,
}

impl Outbox {
    /// An outbox with room for so many events that wait, and so many that do not.
    pub(super) fn of(room: u32) -> Self {
        Self {
            rows: BTreeMap::new(),
            counts: Counts::default(),
            written: 0,
            taken: Counts {
                pending: limit::OUTBOX_PENDING - room,
                done: limit::OUTBOX_SENT - room,
            },
            copy: (BTreeMap::new(), Counts::default()),
            away_until: 0,
        }
    }

    pub(super) fn wipe(&mut self) {
        self.rows.clear();
        self.counts = Counts::default();
    }

    /// Makes a copy.
    pub(super) fn save(&mut self) {
        self.copy = (self.rows.clone(), self.counts);
    }

    /// Goes back to the copy.
    pub(super) fn restore(&mut self) {
        (self.rows, self.counts) = self.copy.clone();
    }

    fn counts(&self) -> Counts {
        Counts {
            pending: self.counts.pending + self.taken.pending,
            done: self.counts.done + self.taken.done,
        }
    }

    /// As a client sees it.
    pub(super) fn seen(&self) -> Rows {
        let seen = |(name, row): (&String, &Row)| {
            let payload = (row.status == OutboxStatus::Pending).then(|| row.payload.clone());
            let seen = Seen {
                transport: row.transport.clone(),
                status: row.status,
                payload,
            };
            (name.clone(), seen)
        };
        self.rows.iter().map(seen).collect()
    }

    /// What was sent, and as what.
    pub(super) fn sent(&self) -> impl Iterator<Item = (&String, &String)> {
        let sent = self.rows.iter().filter(|(_, row)| row.status == OutboxStatus::Sent);
        sent.map(|(name, row)| (name, &row.published_as))
    }

    /// The names of what waits.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &String> {
        let waiting = self.rows.iter().filter(|(_, row)| row.status == OutboxStatus::Pending);
        waiting.map(|(name, _)| name)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    fn held(&self, name: &str) -> Option<Held> {
        let row = self.rows.get(name)?;
        Some(Held {
            content: row.content,
            status: row.status,
            published_as: row.published_as.clone(),
        })
    }

    /// As `enqueue_bridge_event` and `mark_bridge_event_sent`. Returns whether something has changed.
    fn call(&mut self, call: &Call) -> Result<Effect, Refusal> {
        match call {
            Call::Enqueue(event) => {
                let event = outbox::enqueued(&event.event_id, &event.transport, &event.payload)?;
                let held = self.held(event.event_id.as_str());
                let effect = outbox::enqueue(&event, held.as_ref(), self.counts())?;
                if effect == Effect::New {
                    self.written += 1;
                    self.counts.pending += 1;
                    let row = Row {
                        nth: self.written,
                        transport: event.transport.as_str().to_owned(),
                        payload: event.payload,
                        content: event.content,
                        status: OutboxStatus::Pending,
                        published_as: String::new(),
                    };
                    self.rows.insert(event.event_id.as_str().to_owned(), row);
                }
                Ok(effect)
            }
            Call::Mark(said) => {
                let published_as = said.published_as.clone().unwrap_or_default();
                let outcome = outbox::outcome(&said.event_id, &published_as)?;
                let held = self.held(&said.event_id);
                let effect = outbox::mark(&outcome, held.as_ref())?;
                if effect == Effect::New {
                    self.becomes(&said.event_id, outcome.status(), published_as);
                }
                Ok(effect)
            }
        }
    }

    fn becomes(&mut self, name: &str, status: OutboxStatus, published_as: String) {
        let was_pending = self
            .rows
            .get(name)
            .is_some_and(|row| row.status == OutboxStatus::Pending);
        if was_pending {
            self.counts.pending -= 1;
            if outbox::is_full(self.counts()) {
                let done = self.rows.iter().filter(|(_, row)| row.status != OutboxStatus::Pending);
                let oldest = done.min_by_key(|(_, row)| row.nth).map(|(name, _)| name.clone());
                if let Some(oldest) = oldest {
                    self.rows.remove(&oldest);
                }
            } else {
                self.counts.done += 1;
            }
        }
        if let Some(row) = self.rows.get_mut(name) {
            self.written += 1;
            (row.nth, row.status, row.published_as) = (self.written, status, published_as);
            row.payload.clear();
        }
    }
}

impl World {
    pub(super) fn is_host_away(&self) -> bool {
        self.now < self.outbox.away_until
    }

    /// A mirror calls SpacetimeDB. The answer may be lost after the call is done.
    pub(super) fn calls(&mut self, call: &Call) -> Result<(), CallError> {
        if self.is_host_away() {
            return Err(CallError::NotConnected);
        }
        let said = self.outbox.call(call);
        self.say(|| format!("SpacetimeDB: {call:?} is {said:?}"));
        match said {
            Ok(Effect::New) => self.coverage.seen("outbox: changed by a mirror"),
            Ok(Effect::Repeated) => self.coverage.seen("outbox: repeat absorbed"),
            Err(ref refusal) => self.coverage.seen(match refusal.code {
                spacetime_sync_proto::RefusalCode::OutboxFull => "outbox: full",
                _ => "outbox: refused",
            }),
        }
        if !self.quiet && self.dice.random_bool(0.1) {
            self.coverage.seen("outbox: answer lost");
            return Err(CallError::Lost);
        }
        said.map(drop).map_err(CallError::Refused)
    }

    /// Somebody else puts an event in: what a policy may name, what nobody can read, what is from the future, or another thing under
    /// the name of an entry.
    pub(super) fn others_enqueue(&mut self) {
        let nth = self.dice.random_range(0..8);
        let soon = self.now_s();
        let payload = |schema: &str, at: u64| {
            format!(r#"{{"kind":{NOTES_KIND},"schema":"{schema}","d":"note-{nth}","content":"c","created_at":{at}}}"#)
        };
        let entries: Vec<String> = self.tables.rows.keys().cloned().collect();
        let (name, payload) = match self.dice.random_range(0..10) {
            0 => (format!("unread-{nth}"), "{}".to_owned()),
            1 => (format!("future-{nth}"), payload(NOTES, soon + 3_600)),
            2 => (format!("unnamed-{nth}"), payload("others.v1", soon)),
            3 => (format!("receipt_ptr.v1:{nth}"), payload(NOTES, 1_000)),
            4 | 5 if !entries.is_empty() => {
                let nth = self.dice.random_range(0..entries.len());
                (entries[nth].clone(), payload("forged.v1", 1_000))
            }
            // The same name is the same event each time.
            _ => (format!("note-{nth}"), payload(NOTES, 1_000 + nth)),
        };
        if self.is_host_away() {
            return;
        }
        let event = spacetime_sync_client::OutboxEvent {
            event_id: name,
            transport: TRANSPORT.to_owned(),
            payload,
        };
        if self.outbox.call(&Call::Enqueue(event)).is_ok() {
            self.coverage.seen("outbox: others enqueue");
        }
    }
}
