//! What becomes of what others have put into SpacetimeDB's outbox.

use std::collections::BTreeSet;
use std::ops::Bound;

use spacetime_sync_authority::{Entry, Kept, MirrorPolicy, MirrorSource};
use spacetime_sync_proto::Label;

use crate::announcement::AHEAD_S;
use crate::reflection::{Rows, Seen, TRANSPORT};
use crate::things::{Unpublishable, adopted, adopted_name, shown_name, unreadable};

/// Some rows that wait to be published, by their names, each with what is to be published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    rows: Vec<(String, String)>,
    /// Behind this name the next ones are; empty: it was the end.
    pub next: String,
}

/// Something that others have put there, as an entry.
#[derive(Debug)]
pub struct Adoption<'a> {
    /// The entry.
    pub entry: Entry,
    /// What becomes of it.
    pub kept: Kept<'a>,
    /// Why it cannot be published, if it cannot.
    pub why: Option<Unpublishable>,
}

impl Waiting {
    /// Those after a name, at most so many.
    pub fn after(rows: &Rows, after: &str, limit: usize) -> Self {
        let rows: Vec<_> = to_publish(rows, after, limit);
        let next = match rows.last() {
            Some((name, _)) if rows.len() == limit => (*name).to_owned(),
            Some(_) | None => String::new(),
        };
        let owned = |(name, payload): (&str, &str)| (name.to_owned(), payload.to_owned());
        Self {
            rows: rows.into_iter().map(owned).collect(),
            next,
        }
    }

    /// Under which names the authority may know them.
    pub fn names(&self) -> Vec<String> {
        let of_others = self.rows.iter().filter_map(|(name, _)| adopted_name(name));
        let mut names: Vec<String> = self.rows.iter().map(|(name, _)| name.clone()).collect();
        names.extend(of_others.map(|event_id| event_id.as_str().to_owned()));
        names
    }

    /// The entries that they are, or would be.
    pub fn entries(&self) -> Vec<Label> {
        let own = |name: &str| Label::new(name).ok().filter(|own| shown_name(own) == name);
        let entry = |(name, _): &(String, String)| adopted_name(name).or_else(|| own(name));
        self.rows.iter().filter_map(entry).collect()
    }

    /// Those that nobody can publish: under a name of the mirror's that the authority does not know, or under one that is too long.
    pub fn refused(&self, known: &BTreeSet<String>) -> Vec<&str> {
        let is_entry = |name: &str| known.contains(name) && Label::new(name).is_ok_and(|own| shown_name(&own) == name);
        let names = self.rows.iter().map(|(name, _)| name.as_str());
        names
            .filter(|name| adopted_name(name).is_none() && !is_entry(name))
            .collect()
    }

    /// Those that the authority does not know. What no policy names is parked, and so is what cannot be read or is from the future.
    pub fn adoptions<'a>(
        &self,
        known: &BTreeSet<String>,
        policies: &'a [MirrorPolicy],
        author: &str,
        now_s: u64,
    ) -> Vec<Adoption<'a>> {
        let of_others = self
            .rows
            .iter()
            .filter_map(|(name, payload)| Some((adopted_name(name)?, payload.as_str())));
        of_others
            .filter(|(event_id, _)| !known.contains(event_id.as_str()))
            .filter_map(|(event_id, payload)| adoption(&event_id, payload, policies, author, now_s))
            .collect()
    }
}

fn adoption<'a>(
    event_id: &Label,
    payload: &str,
    policies: &'a [MirrorPolicy],
    author: &str,
    now_s: u64,
) -> Option<Adoption<'a>> {
    let entry = match adopted(event_id, payload, author) {
        Ok(entry) => entry,
        Err(why) => {
            return Some(Adoption {
                entry: unreadable(event_id, author).ok()?,
                kept: Kept::Park("unreadable"),
                why: Some(why),
            });
        }
    };
    // At relays it would stand before all that is genuine, until its time has come.
    let kept = if entry.created_at_s > now_s.saturating_add(AHEAD_S) {
        Kept::Park("ahead")
    } else {
        named(policies, &entry.schema, entry.nostr_kind).map_or(Kept::Park("no_policy"), Kept::Publish)
    };
    Some(Adoption { entry, kept, why: None })
}

/// The rows after a name that somebody has put there to be published, at most so many.
fn to_publish<'a>(rows: &'a Rows, after: &str, limit: usize) -> Vec<(&'a str, &'a str)> {
    let later = (Bound::Excluded(after.to_owned()), Bound::Unbounded);
    let of_ours = |(_, row): &(&String, &Seen)| row.transport == TRANSPORT;
    let waiting = rows.range(later).filter(of_ours);
    let waiting = waiting.filter_map(|(name, row)| Some((name.as_str(), row.payload.as_deref()?)));
    waiting.take(limit).collect()
}

/// The policy that names what somebody has put there.
fn named<'a>(policies: &'a [MirrorPolicy], schema: &str, nostr_kind: u16) -> Option<&'a MirrorPolicy> {
    let names = |policy: &&MirrorPolicy| {
        policy.source == MirrorSource::Enqueued && policy.schema == schema && policy.nostr_kind == nostr_kind
    };
    policies.iter().find(names)
}

#[cfg(test)]
mod tests {
    use spacetime_sync_proto::OutboxStatus;

    use super::*;

    const AUTHOR: &str = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

    fn waits(payload: &str, transport: &str) -> Seen {
        Seen {
            transport: transport.to_owned(),
            status: OutboxStatus::Pending,
            payload: Some(payload.to_owned()),
        }
    }

    fn rows(rows: &[(&str, &str)]) -> Rows {
        let row = |(name, payload): &(&str, &str)| ((*name).to_owned(), waits(payload, TRANSPORT));
        rows.iter().map(row).collect()
    }

    #[test]
    fn what_others_put_there_is_found_page_by_page() {
        let mut rows = rows(&[("a", "{}"), ("d", "{}")]);
        let is_sent = Seen {
            status: OutboxStatus::Sent,
            payload: None,
            ..waits("", TRANSPORT)
        };
        rows.extend([("b".to_owned(), is_sent), ("c".to_owned(), waits("{}", "mail"))]);
        for (after, limit, expected, next) in [
            ("", 9, &["a", "d"][..], ""),
            ("", 1, &["a"], "a"),
            ("a", 1, &["d"], "d"),
            ("d", 1, &[], ""),
        ] {
            let waiting = Waiting::after(&rows, after, limit);
            let names: Vec<_> = waiting.rows.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!((names.as_slice(), waiting.next.as_str()), (expected, next));
        }
    }

    #[test]
    fn what_a_policy_names_is_published_and_the_rest_is_parked_or_refused() {
        let good = r#"{"kind":30079,"schema":"notes.v1","d":"d","content":"c","created_at":1000}"#;
        let policy = MirrorPolicy {
            policy_id: "notes".to_owned(),
            source: MirrorSource::Enqueued,
            kinds: Vec::new(),
            schema: "notes.v1".to_owned(),
            nostr_kind: 30_079,
            relays: vec!["ws://127.0.0.1:1".to_owned()],
            quorum: 1,
        };
        let (policies, other) = ([policy], good.replace("notes.v1", "others.v1"));
        let long = "n".repeat(120);
        let rows = rows(&[
            ("bad", "{}"),
            ("good", good),
            ("known", good),
            (long.as_str(), good),
            ("other", &other),
            ("receipt_ptr.v1:forged", good),
            ("receipt_ptr.v1:own", good),
        ]);
        let waiting = Waiting::after(&rows, "", 99);
        let known = ["enqueued:known", "receipt_ptr.v1:own"].map(str::to_owned).into();
        assert_eq!(waiting.refused(&known), [long.as_str(), "receipt_ptr.v1:forged"]);
        assert!(waiting.names().contains(&"enqueued:good".to_owned()) && waiting.names().len() == 11);
        let entries = waiting.entries();
        let entries: Vec<_> = entries.iter().map(Label::as_str).collect();
        assert_eq!(
            entries[4..],
            ["enqueued:other", "receipt_ptr.v1:forged", "receipt_ptr.v1:own"]
        );
        for (now_s, of_good) in [(940, "published"), (939, "ahead")] {
            let adoptions = waiting.adoptions(&known, &policies, AUTHOR, now_s);
            let found: Vec<_> = adoptions
                .iter()
                .map(|one| match one.kept {
                    Kept::Publish(policy) if policy.policy_id == "notes" => (one.entry.event_id.as_str(), "published"),
                    Kept::Publish(_) => (one.entry.event_id.as_str(), "by another policy"),
                    Kept::Park(why) => (one.entry.event_id.as_str(), why),
                })
                .collect();
            let of_other = if of_good == "ahead" { "ahead" } else { "no_policy" };
            let expected = [
                ("enqueued:bad", "unreadable"),
                ("enqueued:good", of_good),
                ("enqueued:other", of_other),
            ];
            assert_eq!(found, expected);
            assert!(
                adoptions
                    .iter()
                    .all(|one| one.why.is_some() == (one.entry.nostr_kind == 0))
            );
        }
    }
}
