//! What SpacetimeDB's outbox is to be told, so that it shows what the authority's says, and what its answers mean. The authority's
//! is the truth.

use std::collections::BTreeMap;
use std::time::Duration;

use spacetime_sync_authority::{Entry, OutboxState, Reflected, Unreflected};
use spacetime_sync_client::{CallError, OutboxEvent, OutboxOutcome, RefusalCode};
use spacetime_sync_proto::{Label, OutboxStatus};

use crate::things::{is_shown_by, payload, shown_name};

/// How relays of Nostr are called in SpacetimeDB's outbox.
pub const TRANSPORT: &str = "nostr";

/// A row of SpacetimeDB's outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// To whom it is to go.
    pub transport: String,
    /// What it says became of it.
    pub status: OutboxStatus,
    /// What is to be published, while it waits.
    pub payload: Option<String>,
}

/// SpacetimeDB's outbox, by the names of its rows.
pub type Rows = BTreeMap<String, Seen>;

/// What SpacetimeDB is to be told of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// That it is to be published.
    Enqueue {
        /// The entry.
        event_id: Label,
        /// What is published.
        payload: String,
    },
    /// What became of it.
    Mark {
        /// The entry.
        event_id: Label,
        /// The id of its event. `None` if it will not be published, as far as anybody knows.
        published_as: Option<String>,
    },
    /// That what stands under its name is not to be published: it is another thing.
    Refute {
        /// The entry.
        event_id: Label,
    },
    /// Nothing: it shows that already.
    Known {
        /// The entry.
        event_id: Label,
        /// What it shows.
        says: Reflected,
    },
}

/// What SpacetimeDB is called with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// That something is to be published.
    Enqueue(OutboxEvent),
    /// What became of it.
    Mark(OutboxOutcome),
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// SpacetimeDB is known to show this.
    Shows(Reflected),
    /// There is no room.
    Full,
    /// It did not hear. It is told again.
    Nothing,
}

impl Step {
    /// The entry.
    pub fn event_id(&self) -> &Label {
        match self {
            Self::Enqueue { event_id, .. }
            | Self::Mark { event_id, .. }
            | Self::Refute { event_id }
            | Self::Known { event_id, .. } => event_id,
        }
    }

    /// What SpacetimeDB says of the entry once it has heard.
    pub fn says(&self) -> Reflected {
        match self {
            Self::Enqueue { .. } => Reflected::Pending,
            Self::Mark { published_as: None, .. } => Reflected::Dropped,
            // What was refuted is never the entry's, whatever becomes of the entry.
            Self::Mark {
                published_as: Some(_), ..
            }
            | Self::Refute { .. } => Reflected::Sent,
            Self::Known { says, .. } => *says,
        }
    }

    /// What SpacetimeDB is called with. `None`: it shows that already.
    pub fn call(&self) -> Option<Call> {
        let name = shown_name(self.event_id()).to_owned();
        let mark = |published_as: Option<String>| {
            Call::Mark(OutboxOutcome {
                event_id: shown_name(self.event_id()).to_owned(),
                published_as,
            })
        };
        match self {
            Self::Enqueue { payload, .. } => Some(Call::Enqueue(OutboxEvent {
                event_id: name,
                transport: TRANSPORT.to_owned(),
                payload: payload.clone(),
            })),
            Self::Mark { published_as, .. } => Some(mark(published_as.clone())),
            Self::Refute { .. } => Some(mark(None)),
            Self::Known { .. } => None,
        }
    }
}

/// What an answer means to somebody who wanted SpacetimeDB to say this of an entry.
pub fn told(says: Reflected, said: &Result<(), CallError>) -> Told {
    match said {
        Ok(()) => Told::Shows(says),
        // There is room again when something was sent.
        Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::OutboxFull => Told::Full,
        Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::OutboxConflict => match says {
            // What stands there instead is seen soon, and refuted.
            Reflected::Pending | Reflected::Nothing => Told::Nothing,
            Reflected::Dropped | Reflected::Sent => Told::Shows(Reflected::Sent),
        },
        // Nor would it ever be.
        Err(CallError::Invalid(_)) => Told::Shows(Reflected::Sent),
        Err(_) => Told::Nothing,
    }
}

/// How long nothing is enqueued after SpacetimeDB's outbox was full. What is published makes room.
pub const FULL: Duration = Duration::from_secs(5);

/// Whether SpacetimeDB's outbox has room, as far as anybody knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    full_until: Duration,
}

impl Room {
    /// It had none.
    pub fn was_full(&mut self, now: Duration) {
        self.full_until = now + FULL;
    }

    /// Those of these steps that may be taken: what takes room waits for some.
    pub fn allow(&self, steps: Vec<Step>, now: Duration) -> Vec<Step> {
        let is_full = now < self.full_until;
        let takes_room = |step: &Step| matches!(step, Step::Enqueue { .. });
        steps
            .into_iter()
            .filter(|step| !(is_full && takes_room(step)))
            .collect()
    }
}

/// The next step of each entry that SpacetimeDB does not show as it is.
pub fn steps(unreflected: &[Unreflected], rows: &Rows) -> Vec<Step> {
    unreflected.iter().map(|one| step(one, rows)).collect()
}

fn step(one: &Unreflected, rows: &Rows) -> Step {
    let event_id = one.entry.event_id.clone();
    let mark = |event_id, published_as| Step::Mark { event_id, published_as };
    let known = |event_id, says| Step::Known { event_id, says };
    let id = || Some(one.entry.published_as.clone());
    let Some(row) = rows.get(shown_name(&one.entry.event_id)) else {
        return match one.state {
            // Nobody has to hear of what is not to be published.
            OutboxState::Dropped | OutboxState::Parked => known(event_id, Reflected::Dropped),
            // The row comes with the next change of what is watched, and then it is marked.
            OutboxState::Pending | OutboxState::Sent => Step::Enqueue {
                payload: payload(&one.entry),
                event_id,
            },
        };
    };
    match (row.status, one.state) {
        (OutboxStatus::Sent, _) => known(event_id, Reflected::Sent),
        (OutboxStatus::Pending, _) if !row.shows(&one.entry) => Step::Refute { event_id },
        // It was never seen to be the entry's, and what it was is gone.
        (OutboxStatus::Dropped, _) if one.reflected == Reflected::Nothing => known(event_id, Reflected::Sent),
        (OutboxStatus::Pending | OutboxStatus::Dropped, OutboxState::Sent) => mark(event_id, id()),
        (OutboxStatus::Pending, OutboxState::Dropped | OutboxState::Parked) => mark(event_id, None),
        (OutboxStatus::Pending, OutboxState::Pending) => known(event_id, Reflected::Pending),
        (OutboxStatus::Dropped, OutboxState::Pending | OutboxState::Dropped | OutboxState::Parked) => {
            known(event_id, Reflected::Dropped)
        }
    }
}

impl Seen {
    fn shows(&self, entry: &Entry) -> bool {
        let shown = self.payload.as_deref().unwrap_or_default();
        self.transport == TRANSPORT && is_shown_by(entry, shown)
    }
}

/// Those of these entries that SpacetimeDB showed once and shows no more: it was wiped, or restored to an earlier time.
pub fn lost<'a>(names: &'a [Label], rows: &Rows) -> Vec<&'a str> {
    let lost = names.iter().filter(|name| !rows.contains_key(shown_name(name)));
    lost.map(Label::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, state: OutboxState) -> Unreflected {
        let entry = Entry {
            event_id: Label::new(name).unwrap(),
            nostr_kind: 30_078,
            schema: "s".to_owned(),
            d_tag: "d".to_owned(),
            content: "{}".to_owned(),
            created_at_s: 1,
            expires_at_s: None,
            author: "a".to_owned(),
            published_as: "id".to_owned(),
        };
        Unreflected {
            entry,
            state,
            reflected: if name == "dropped" {
                Reflected::Dropped
            } else {
                Reflected::Nothing
            },
        }
    }

    fn row(status: OutboxStatus, transport: &str) -> Seen {
        Seen {
            transport: transport.to_owned(),
            status,
            payload: (status == OutboxStatus::Pending).then(|| payload(&one("x", OutboxState::Pending).entry)),
        }
    }

    #[test]
    fn an_entry_is_enqueued_first_and_marked_once_it_is_settled() {
        use OutboxState::{Dropped, Parked, Pending, Sent};
        let another = Seen {
            payload: Some("{}".to_owned()),
            ..row(OutboxStatus::Pending, TRANSPORT)
        };
        let rows: Rows = [
            ("waiting".to_owned(), row(OutboxStatus::Pending, TRANSPORT)),
            ("others".to_owned(), row(OutboxStatus::Pending, TRANSPORT)),
            ("sent".to_owned(), row(OutboxStatus::Sent, TRANSPORT)),
            ("dropped".to_owned(), row(OutboxStatus::Dropped, TRANSPORT)),
            ("taken".to_owned(), another),
            ("strange".to_owned(), row(OutboxStatus::Dropped, TRANSPORT)),
            ("elsewhere".to_owned(), row(OutboxStatus::Pending, "mail")),
        ]
        .into();
        for (name, state, expected) in [
            ("new", Pending, "enqueue"),
            ("new", Sent, "enqueue"),
            ("new", Dropped, "known dropped"),
            ("new", Parked, "known dropped"),
            ("waiting", Pending, "known waiting"),
            ("waiting", Sent, "sent"),
            ("waiting", Dropped, "never"),
            ("waiting", Parked, "never"),
            ("enqueued:others", Pending, "known waiting"),
            ("enqueued:others", Sent, "sent"),
            ("sent", Sent, "known sent"),
            ("sent", Pending, "known sent"),
            ("dropped", Pending, "known dropped"),
            ("dropped", Parked, "known dropped"),
            ("dropped", Dropped, "known dropped"),
            // It was retried.
            ("dropped", Sent, "sent"),
            ("strange", Pending, "known sent"),
            ("strange", Sent, "known sent"),
            ("taken", Pending, "refuted"),
            ("taken", Sent, "refuted"),
            ("elsewhere", Sent, "refuted"),
        ] {
            let found = &steps(&[one(name, state)], &rows)[0];
            let step = match found {
                Step::Enqueue { .. } => "enqueue",
                Step::Mark {
                    published_as: Some(id), ..
                } if id == "id" => "sent",
                Step::Mark { published_as: None, .. } => "never",
                Step::Refute { .. } => "refuted",
                Step::Known { says, .. } => match says {
                    Reflected::Pending => "known waiting",
                    Reflected::Dropped => "known dropped",
                    Reflected::Sent => "known sent",
                    Reflected::Nothing => "known nothing",
                },
                Step::Mark { .. } => "another id",
            };
            assert_eq!(step, expected, "{name} {state:?}");
        }
    }

    #[test]
    fn what_a_wipe_took_is_missed() {
        let rows: Rows = [
            ("a".to_owned(), row(OutboxStatus::Pending, TRANSPORT)),
            ("b".to_owned(), row(OutboxStatus::Sent, TRANSPORT)),
        ]
        .into();
        let known = ["a", "x", "enqueued:b", "enqueued:y"].map(|name| Label::new(name).unwrap());
        assert_eq!(lost(&known, &rows), ["x", "enqueued:y"]);
    }

    #[test]
    fn an_answer_of_spacetimedb_is_taken_for_what_it_is() {
        let refused = |code| Err(CallError::Refused(spacetime_sync_proto::Refusal::new(code, "no")));
        let (pending, dropped, sent) = (Reflected::Pending, Reflected::Dropped, Reflected::Sent);
        for (says, said, expected) in [
            (pending, Ok(()), Told::Shows(pending)),
            (pending, refused(RefusalCode::OutboxFull), Told::Full),
            (pending, refused(RefusalCode::OutboxConflict), Told::Nothing),
            (sent, refused(RefusalCode::OutboxConflict), Told::Shows(sent)),
            (dropped, refused(RefusalCode::OutboxConflict), Told::Shows(sent)),
            (pending, Err(CallError::Invalid(String::new())), Told::Shows(sent)),
            (sent, Err(CallError::Lost), Told::Nothing),
            (sent, refused(RefusalCode::RateLimited), Told::Nothing),
        ] {
            assert_eq!(told(says, &said), expected, "{says:?} {said:?}");
        }
    }

    #[test]
    fn after_the_outbox_was_full_what_takes_room_waits_and_what_makes_room_does_not() {
        let rows: Rows = [("waiting".to_owned(), row(OutboxStatus::Pending, TRANSPORT))].into();
        let entries = [one("new", OutboxState::Pending), one("waiting", OutboxState::Sent)];
        let (mut room, now) = (Room::default(), Duration::from_secs(9));
        let allowed = |room: Room, now| {
            let allowed = room.allow(steps(&entries, &rows), now).into_iter();
            allowed
                .map(|step| step.event_id().as_str().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(allowed(room, now), ["new", "waiting"]);
        room.was_full(now);
        assert_eq!(allowed(room, now), ["waiting"]);
        assert_eq!(allowed(room, now + FULL - Duration::from_nanos(1)), ["waiting"]);
        assert_eq!(allowed(room, now + FULL), ["new", "waiting"]);
    }
}
