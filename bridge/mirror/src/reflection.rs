//! What SpacetimeDB's outbox is to be told, so that it shows what the authority's says. The authority's is the truth.

use std::collections::BTreeMap;
use std::ops::Bound;

use spacetime_sync_authority::{MirrorPolicy, MirrorSource, OutboxState, Reflected, Unreflected};

use crate::things::payload;

/// How relays of Nostr are called in SpacetimeDB's outbox.
pub const TRANSPORT: &str = "nostr";

/// A row of SpacetimeDB's outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// To whom it is to go.
    pub transport: String,
    /// What is to be published, while it waits.
    pub payload: Option<String>,
}

impl Seen {
    fn waits(&self) -> bool {
        self.payload.is_some()
    }
}

/// SpacetimeDB's outbox, by the names of its rows.
pub type Rows = BTreeMap<String, Seen>;

/// What SpacetimeDB is to be told of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// That it is to be published.
    Enqueue {
        /// The entry.
        event_id: String,
        /// What is published.
        payload: String,
    },
    /// What became of it.
    Mark {
        /// The entry.
        event_id: String,
        /// The id of its event. `None` if it never will be published.
        published_as: Option<String>,
    },
    /// Nothing: it shows that already.
    Known {
        /// The entry.
        event_id: String,
        /// What it shows.
        says: Reflected,
    },
}

/// The next step of each entry that SpacetimeDB does not show as it is.
pub fn steps(unreflected: &[Unreflected], rows: &Rows) -> Vec<Step> {
    let step = |one: &Unreflected| {
        let event_id = one.entry.event_id.as_str().to_owned();
        let row = rows.get(&event_id);
        match (row, one.state) {
            (Some(row), _) if !row.waits() => Step::Known {
                event_id,
                says: Reflected::Sent,
            },
            (Some(_), OutboxState::Sent) => Step::Mark {
                event_id,
                published_as: Some(one.entry.published_as.clone()),
            },
            (Some(_), OutboxState::Dropped) => Step::Mark {
                event_id,
                published_as: None,
            },
            (Some(_), OutboxState::Pending | OutboxState::Parked) => Step::Known {
                event_id,
                says: Reflected::Pending,
            },
            // Nobody has to hear of what is never to be published.
            (None, OutboxState::Dropped) => Step::Known {
                event_id,
                says: Reflected::Sent,
            },
            // The row comes with the next change of what is watched, and then it is marked.
            (None, OutboxState::Pending | OutboxState::Sent | OutboxState::Parked) => Step::Enqueue {
                event_id,
                payload: payload(&one.entry),
            },
        }
    };
    unreflected.iter().map(step).collect()
}

/// Those of these entries that SpacetimeDB showed once and shows no more: it was wiped, or restored to an earlier time.
pub fn lost<'a>(names: &'a [String], rows: &Rows) -> Vec<&'a str> {
    let names = names.iter().map(String::as_str);
    names.filter(|name| !rows.contains_key(*name)).collect()
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
    use spacetime_sync_authority::Entry;
    use spacetime_sync_proto::Label;

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
            reflected: Reflected::Nothing,
        }
    }

    fn row(waits: bool, transport: &str) -> Seen {
        Seen {
            transport: transport.to_owned(),
            payload: waits.then(|| "{}".to_owned()),
        }
    }

    #[test]
    fn an_entry_is_enqueued_first_and_marked_once_it_is_published() {
        use OutboxState::{Dropped, Pending, Sent};
        let waiting = "waiting".to_owned();
        let rows: Rows = [
            (waiting, row(true, TRANSPORT)),
            ("over".to_owned(), row(false, TRANSPORT)),
        ]
        .into();
        for (name, state, expected) in [
            ("new", Pending, "enqueue"),
            ("new", Sent, "enqueue"),
            ("new", Dropped, "known over"),
            ("waiting", Pending, "known waiting"),
            ("waiting", Sent, "sent"),
            ("waiting", Dropped, "never"),
            ("over", Sent, "known over"),
            ("over", Pending, "known over"),
        ] {
            let step = match &steps(&[one(name, state)], &rows)[..] {
                [Step::Enqueue { .. }] => "enqueue",
                [
                    Step::Mark {
                        published_as: Some(id), ..
                    },
                ] if id == "id" => "sent",
                [Step::Mark { published_as: None, .. }] => "never",
                [
                    Step::Known {
                        says: Reflected::Pending,
                        ..
                    },
                ] => "known waiting",
                [
                    Step::Known {
                        says: Reflected::Sent, ..
                    },
                ] => "known over",
                other => panic!("{other:?}"),
            };
            assert_eq!(step, expected, "{name} {state:?}");
        }
    }

    #[test]
    fn what_a_wipe_took_is_missed_and_what_others_put_there_is_found() {
        let rows: Rows = [
            ("a".to_owned(), row(true, TRANSPORT)),
            ("b".to_owned(), row(false, TRANSPORT)),
            ("c".to_owned(), row(true, "mail")),
            ("d".to_owned(), row(true, TRANSPORT)),
        ]
        .into();
        assert_eq!(lost(&["a".to_owned(), "x".to_owned()], &rows), ["x"]);
        let names =
            |after, limit| -> Vec<&str> { to_publish(&rows, after, limit).iter().map(|(name, _)| *name).collect() };
        assert_eq!(
            (names("", 9), names("", 1), names("a", 9)),
            (vec!["a", "d"], vec!["a"], vec!["d"])
        );
    }
}
