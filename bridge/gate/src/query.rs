//! The subscriptions of a client of the lane. A query is read by this grammar and written anew: no text of a client
//! reaches SpacetimeDB's SQL.

use spacetime_sync_proto::limit::SUBSCRIPTION_EVENTS;
use spacetime_sync_proto::{Section, Seq};

/// The question for the module's contract.
pub const CONTRACT: &str = "SELECT * FROM sync_contract";

/// A subscription that the lane knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// The module's contract.
    Contract,
    /// The grants of one identity, in hex.
    Grants(String),
    /// How many providers are there.
    PresenceCount,
    /// What providers can do.
    Capabilities,
    /// The outbox.
    Outbox,
    /// What is shown or told to an audience, by its key.
    Audience(AudienceTable, u64),
    /// The frames of a stream in a range.
    Frames(Frames),
}

/// A table whose rows are for audiences. A subscription to the whole of one passes no gate: SpacetimeDB would look at it for each
/// change of anybody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AudienceTable {
    /// The nodes of sessions.
    Presences,
    /// How nodes change.
    PresenceChanges,
    /// What sessions tell.
    Signals,
    /// Assignments.
    Assignments,
    /// The changes of these.
    AssignmentChanges,
}

impl AudienceTable {
    const ALL: [Self; 5] = [
        Self::Presences,
        Self::PresenceChanges,
        Self::Signals,
        Self::Assignments,
        Self::AssignmentChanges,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Presences => "session_presence",
            Self::PresenceChanges => "presence_change",
            Self::Signals => "session_signal",
            Self::Assignments => "compute_assignment",
            Self::AssignmentChanges => "compute_assignment_change",
        }
    }
}

/// The frames of a stream that end after `after` and begin no later than `to`, in as many queries as they have sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frames {
    /// The key of the stream.
    pub stream_key: u64,
    /// See the type.
    pub after: Seq,
    /// See the type.
    pub to: Seq,
}

/// Digits of an identity.
const IDENTITY_DIGITS: usize = 64;
/// Longest query of the lane.
const QUERY_BYTES: usize = 256;

impl Query {
    /// Reads the queries of a subscription. `None` if no client of the lane would write them.
    pub fn parse(texts: &[Box<str>]) -> Option<Self> {
        let query = Self::begins(texts.first()?)?;
        let ours = query.texts();
        // Numbers have many forms, and we write one.
        ours.iter().eq(texts.iter().map(|text| &**text)).then_some(query)
    }

    /// The subscription that begins with this query.
    fn begins(text: &str) -> Option<Self> {
        if text.len() > QUERY_BYTES {
            return None;
        }
        let table = text.strip_prefix("SELECT * FROM ")?;
        match table {
            "sync_contract" => return Some(Self::Contract),
            "presence_count" => return Some(Self::PresenceCount),
            "provider_capability" => return Some(Self::Capabilities),
            "bridge_outbox" => return Some(Self::Outbox),
            _ => {}
        }
        if let Some(identity) = table.strip_prefix("stream_grant WHERE identity = 0x") {
            let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            let whole = identity.len() == IDENTITY_DIGITS && identity.bytes().all(is_hex);
            return whole.then(|| Self::Grants(identity.to_owned()));
        }
        if let Some((name, key)) = table.split_once(" WHERE audience_key = ") {
            let table = AudienceTable::ALL.into_iter().find(|table| table.name() == name)?;
            return key.parse().ok().map(|key| Self::Audience(table, key));
        }
        let rest = table.strip_prefix("sync_event WHERE section = ")?;
        let (section, rest) = rest.split_once(" AND last_seq > ")?;
        let (after, to) = rest.split_once(" AND first_seq <= ")?;
        let (after, to) = (Seq::new(after.parse().ok()?)?, Seq::new(to.parse().ok()?)?);
        let near = to.get().checked_sub(after.get())? <= SUBSCRIPTION_EVENTS;
        near.then_some(Self::Frames(Frames {
            stream_key: Section::from(section.parse::<u128>().ok()?).stream_key(),
            after,
            to,
        }))
    }

    /// The queries of the subscription.
    pub fn texts(&self) -> Vec<String> {
        let all = |table: &str| vec![format!("SELECT * FROM {table}")];
        match self {
            Self::Contract => vec![CONTRACT.to_owned()],
            Self::PresenceCount => all("presence_count"),
            Self::Capabilities => all("provider_capability"),
            Self::Outbox => all("bridge_outbox"),
            Self::Grants(identity) => all(&format!("stream_grant WHERE identity = 0x{identity}")),
            Self::Audience(table, key) => all(&format!("{} WHERE audience_key = {key}", table.name())),
            Self::Frames(Frames { stream_key, after, to }) => Section::between(*stream_key, *after, *to)
                .flat_map(|section| {
                    all(&format!(
                        "sync_event WHERE section = {section} AND last_seq > {after} AND first_seq <= {to}"
                    ))
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use spacetime_sync_proto::limit::SECTION_EVENTS;

    use super::*;

    fn parse(texts: &[String]) -> Option<Query> {
        let texts: Vec<_> = texts.iter().map(|text| Box::from(text.as_str())).collect();
        Query::parse(&texts)
    }

    fn frames(section: &str, after: &str, to: &str) -> String {
        format!("SELECT * FROM sync_event WHERE section = {section} AND last_seq > {after} AND first_seq <= {to}")
    }

    /// A section of stream 1.
    fn section(number: u64) -> String {
        ((1_u128 << 64) + u128::from(number)).to_string()
    }

    #[test]
    fn what_the_client_subscribes_to_is_read_and_written_alike() {
        let identity = "c2".repeat(32);
        for texts in [
            vec!["SELECT * FROM sync_contract".to_owned()],
            vec!["SELECT * FROM presence_count".to_owned()],
            vec!["SELECT * FROM provider_capability".to_owned()],
            vec!["SELECT * FROM bridge_outbox".to_owned()],
            vec![format!("SELECT * FROM stream_grant WHERE identity = 0x{identity}")],
            vec!["SELECT * FROM presence_change WHERE audience_key = 0".to_owned()],
            vec!["SELECT * FROM session_presence WHERE audience_key = 7".to_owned()],
            vec!["SELECT * FROM compute_assignment WHERE audience_key = 7".to_owned()],
            vec!["SELECT * FROM compute_assignment_change WHERE audience_key = 7".to_owned()],
            vec!["SELECT * FROM session_signal WHERE audience_key = 18446744073709551615".to_owned()],
            vec![frames(&section(0), "0", "1000")],
            vec![frames(&section(0), "8000", "9000"), frames(&section(1), "8000", "9000")],
            // The next frame may begin in the section before.
            vec![frames(&section(0), "8200", "9300"), frames(&section(1), "8200", "9300")],
            vec![frames(
                &u128::from(u64::MAX).checked_shl(64).unwrap().to_string(),
                "0",
                "1000",
            )],
        ] {
            let query = parse(&texts);
            assert_eq!(query.map(|query| query.texts()), Some(texts));
        }
    }

    #[test]
    fn every_other_query_is_foreign() {
        let identity = "c2".repeat(32);
        let contract = || "SELECT * FROM sync_contract".to_owned();
        for text in [
            String::new(),
            "SELECT * FROM sync_event".to_owned(),
            "SELECT * FROM stream_grant".to_owned(),
            "SELECT * FROM st_client".to_owned(),
            "SELECT * FROM assignment_party".to_owned(),
            "SELECT * FROM outbox_entry".to_owned(),
            "SELECT * FROM compute_assignment WHERE request_id = 'r1'".to_owned(),
            "SELECT * FROM compute_assignment_changes WHERE audience_key = 7".to_owned(),
            "SELECT * FROM compute_assignment".to_owned(),
            "SELECT * FROM compute_assignment_change".to_owned(),
            "SELECT * FROM session_presence".to_owned(),
            "SELECT * FROM stream_grant WHERE audience_key = 7".to_owned(),
            "SELECT a.* FROM st_column a JOIN st_column b ON a.table_id = b.table_id".to_owned(),
            "SELECT * FROM session_signal".to_owned(),
            "SELECT * FROM session_signal WHERE audience_key = 01".to_owned(),
            "SELECT * FROM session_signal WHERE audience_key = 1 OR audience_key = 2".to_owned(),
            "SELECT * FROM sync_contract WHERE id = 0".to_owned(),
            "SELECT * FROM sync_contract ".to_owned(),
            "select * from sync_contract".to_owned(),
            "SELECT * FROM sync_event WHERE stream_key = 1 AND last_seq > 0 AND first_seq <= 10".to_owned(),
            format!("SELECT * FROM stream_grant WHERE identity = 0x{identity} OR 1 = 1"),
            format!("SELECT * FROM stream_grant WHERE identity = 0x{}", "C2".repeat(32)),
            format!("SELECT * FROM stream_grant WHERE identity = 0x{identity}0"),
        ] {
            assert_eq!(parse(std::slice::from_ref(&text)), None, "{text}");
        }
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[contract(), contract()]), None);
        assert_eq!(parse(&[contract(), frames(&section(0), "5", "10")]), None);
    }

    #[test]
    fn a_subscription_to_frames_has_the_queries_that_it_needs_and_no_others() {
        let first = section(0);
        let one = |section: &str, after: &str, to: &str| parse(&[frames(section, after, to)]);
        assert!(one(&first, "5", "10").is_some());
        for (section, after, to) in [
            (section(1).as_str(), "5", "10"),
            (&first, "11", "10"),
            (&first, "5", "8192"),
            (&format!("0{first}"), "5", "10"),
            (&format!("+{first}"), "5", "10"),
            (&format!("-{first}"), "5", "10"),
            (&format!("{first} OR 1 = 1"), "5", "10"),
            ("340282366920938463463374607431768211456", "5", "10"),
            (&first, "", "10"),
            (&first, "05", "10"),
            (&first, "5", "10 OR 1 = 1"),
            (&first, "5", "18446744073709551615"),
        ] {
            assert_eq!(one(section, after, to), None, "{section} {after} {to}");
        }
        let (two, both) = (frames(&section(1), "8000", "9000"), frames(&section(0), "8000", "9000"));
        assert!(parse(&[both.clone(), two.clone()]).is_some());
        for texts in [
            vec![both.clone()],
            vec![two.clone()],
            vec![two.clone(), both.clone()],
            vec![both.clone(), two.clone(), two.clone()],
            vec![both.clone(), frames(&section(1), "8000", "9001")],
            vec![both, frames(&section(1).replace('1', "2"), "8000", "9000")],
        ] {
            assert_eq!(parse(&texts), None, "{texts:?}");
        }
    }

    #[test]
    fn a_subscription_reaches_no_further_than_any_clients() {
        let reaching = |to: u64| {
            let queries: Vec<_> = (0..=to / SECTION_EVENTS)
                .map(|number| frames(&section(number), "5", &to.to_string()))
                .collect();
            parse(&queries)
        };
        assert!(reaching(5 + SUBSCRIPTION_EVENTS).is_some());
        assert_eq!(reaching(6 + SUBSCRIPTION_EVENTS), None);
    }
}
