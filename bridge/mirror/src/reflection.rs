//! What SpacetimeDB's outbox is to be told, so that it shows what the authority's says. The authority's is the truth.

use std::collections::BTreeMap;
use std::ops::Bound;

use spacetime_sync_authority::{Entry, MirrorPolicy, MirrorSource, OutboxState, Reflected, Unreflected};
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

/// The rows after a name that somebody has put there to be published, at most so many.
pub fn to_publish<'a>(rows: &'a Rows, after: &str, limit: usize) -> Vec<(&'a str, &'a str)> {
    let later = (Bound::Excluded(after.to_owned()), Bound::Unbounded);
    let of_ours = |(_, row): &(&String, &Seen)| row.transport == TRANSPORT;
    let waiting = rows.range(later).filter(of_ours);
    let waiting = waiting.filter_map(|(name, row)| Some((name.as_str(), row.payload.as_deref()?)));
    waiting.take(limit).collect()
}

/// The policy that names what somebody has put there.
pub fn named<'a>(policies: &'a [MirrorPolicy], schema: &str, nostr_kind: u16) -> Option<&'a MirrorPolicy> {
    let names = |policy: &&MirrorPolicy| {
        policy.source == MirrorSource::Enqueued && policy.schema == schema && policy.nostr_kind == nostr_kind
    };
    policies.iter().find(names)
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
    fn what_a_wipe_took_is_missed_and_what_others_put_there_is_found() {
        let rows: Rows = [
            ("a".to_owned(), row(OutboxStatus::Pending, TRANSPORT)),
            ("b".to_owned(), row(OutboxStatus::Sent, TRANSPORT)),
            ("c".to_owned(), row(OutboxStatus::Pending, "mail")),
            ("d".to_owned(), row(OutboxStatus::Pending, TRANSPORT)),
        ]
        .into();
        let known = ["a", "x", "enqueued:b", "enqueued:y"].map(|name| Label::new(name).unwrap());
        assert_eq!(lost(&known, &rows), ["x", "enqueued:y"]);
        let names =
            |after, limit| -> Vec<&str> { to_publish(&rows, after, limit).iter().map(|(name, _)| *name).collect() };
        assert_eq!(
            (names("", 9), names("", 1), names("a", 9)),
            (vec!["a", "d"], vec!["a"], vec!["d"])
        );
    }
}
