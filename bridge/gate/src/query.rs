//! The subscriptions of a client of the lane. A query is read by this grammar and written anew: no text of a client
//! reaches SpacetimeDB's SQL.

use std::fmt;

use spacetime_sync_proto::Seq;
use spacetime_sync_proto::limit::{FRAME_EVENTS, SUBSCRIPTION_EVENTS};

/// A subscription that the lane knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// The module's contract.
    Contract,
    /// The grants of one identity, in hex.
    Grants(String),
    /// The presence of others.
    Presence,
    /// What providers can do.
    Capabilities,
    /// The assignments that the caller may see.
    Assignments,
    /// The changes of these.
    AssignmentChanges,
    /// The frames of a stream in a range.
    Frames(Frames),
}

/// The frames of a stream that end after `after` and no later than `ends`, and begin no later than `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frames {
    /// The key of the stream.
    pub stream_key: u64,
    /// See the type.
    pub after: u64,
    /// See the type.
    pub ends: u64,
    /// See the type.
    pub to: u64,
}

/// Digits of an identity.
const IDENTITY_DIGITS: usize = 64;
/// Longest query of the lane.
const QUERY_BYTES: usize = 256;

impl Query {
    /// Reads a query. `None` if no client of the lane would write it.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > QUERY_BYTES {
            return None;
        }
        let table = text.strip_prefix("SELECT * FROM ")?;
        match table {
            "sync_contract" => return Some(Self::Contract),
            "session_presence" => return Some(Self::Presence),
            "provider_capability" => return Some(Self::Capabilities),
            "compute_assignment" => return Some(Self::Assignments),
            "compute_assignment_change" => return Some(Self::AssignmentChanges),
            _ => {}
        }
        if let Some(identity) = table.strip_prefix("stream_grant WHERE identity = 0x") {
            let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            let whole = identity.len() == IDENTITY_DIGITS && identity.bytes().all(is_hex);
            return whole.then(|| Self::Grants(identity.to_owned()));
        }
        let rest = table.strip_prefix("sync_event WHERE stream_key = ")?;
        let (stream_key, rest) = rest.split_once(" AND last_seq > ")?;
        let (after, rest) = rest.split_once(" AND last_seq <= ")?;
        let (ends, to) = rest.split_once(" AND first_seq <= ")?;
        let (stream_key, after) = (number(stream_key)?, number(after)?);
        let (ends, to) = (number(ends)?, number(to)?);
        // Every frame that begins in the range ends within it, or not far behind.
        let furthest = Seq::new(to)?.plus(FRAME_EVENTS as u64 - 1).get();
        let near = to.checked_sub(after)? <= SUBSCRIPTION_EVENTS;
        (near && to <= ends && ends <= furthest).then_some(Self::Frames(Frames {
            stream_key,
            after,
            ends,
            to,
        }))
    }
}

/// A number in its one form: no sign, no zero before it.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let plain = digits && (text.len() == 1 || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contract => f.write_str("SELECT * FROM sync_contract"),
            Self::Presence => f.write_str("SELECT * FROM session_presence"),
            Self::Capabilities => f.write_str("SELECT * FROM provider_capability"),
            Self::Assignments => f.write_str("SELECT * FROM compute_assignment"),
            Self::AssignmentChanges => f.write_str("SELECT * FROM compute_assignment_change"),
            Self::Grants(identity) => write!(f, "SELECT * FROM stream_grant WHERE identity = 0x{identity}"),
            Self::Frames(Frames {
                stream_key,
                after,
                ends,
                to,
            }) => write!(
                f,
                "SELECT * FROM sync_event WHERE stream_key = {stream_key} \
                 AND last_seq > {after} AND last_seq <= {ends} AND first_seq <= {to}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_subscribes_to_is_read_and_written_alike() {
        let identity = "c2".repeat(32);
        for text in [
            "SELECT * FROM sync_contract".to_owned(),
            "SELECT * FROM session_presence".to_owned(),
            "SELECT * FROM provider_capability".to_owned(),
            "SELECT * FROM compute_assignment".to_owned(),
            "SELECT * FROM compute_assignment_change".to_owned(),
            format!("SELECT * FROM stream_grant WHERE identity = 0x{identity}"),
            "SELECT * FROM sync_event WHERE stream_key = 18446744073709551615 \
             AND last_seq > 0 AND last_seq <= 1999 AND first_seq <= 1000"
                .to_owned(),
        ] {
            let query = Query::parse(&text);
            assert_eq!(query.map(|query| query.to_string()), Some(text));
        }
    }

    #[test]
    fn every_other_query_is_foreign() {
        let identity = "c2".repeat(32);
        for text in [
            String::new(),
            "SELECT * FROM sync_event".to_owned(),
            "SELECT * FROM stream_grant".to_owned(),
            "SELECT * FROM st_client".to_owned(),
            "SELECT * FROM assignment_party".to_owned(),
            "SELECT * FROM compute_assignment WHERE request_id = 'r1'".to_owned(),
            "SELECT * FROM compute_assignment_changes".to_owned(),
            "SELECT a.* FROM st_column a JOIN st_column b ON a.table_id = b.table_id".to_owned(),
            "SELECT * FROM sync_contract WHERE id = 0".to_owned(),
            "SELECT * FROM sync_contract ".to_owned(),
            "select * from sync_contract".to_owned(),
            format!("SELECT * FROM stream_grant WHERE identity = 0x{identity} OR 1 = 1"),
            format!("SELECT * FROM stream_grant WHERE identity = 0x{}", "C2".repeat(32)),
            format!("SELECT * FROM stream_grant WHERE identity = 0x{identity}0"),
        ] {
            assert_eq!(Query::parse(&text), None, "{text}");
        }
        let frames = |key: &str, after: &str, ends: &str, to: &str| {
            Query::parse(&format!(
                "SELECT * FROM sync_event WHERE stream_key = {key} AND last_seq > {after} AND last_seq <= {ends} AND \
                 first_seq <= {to}"
            ))
        };
        assert!(frames("1", "5", "1009", "10").is_some());
        let (last, further) = (5 + SUBSCRIPTION_EVENTS, 6 + SUBSCRIPTION_EVENTS);
        let reaching = |to: u64| frames("1", "5", &(to + 999).to_string(), &to.to_string());
        assert!(reaching(last).is_some());
        assert_eq!(reaching(further), None, "further than any client's");
        for (key, after, ends, to) in [
            ("1", "5", "1010", "10"),
            ("1", "5", "9", "10"),
            ("1", "11", "1009", "10"),
            ("01", "5", "1009", "10"),
            ("+1", "5", "1009", "10"),
            ("-1", "5", "1009", "10"),
            ("1 OR 1 = 1", "5", "1009", "10"),
            ("1", "5", "1009", "10 OR 1 = 1"),
            ("18446744073709551616", "5", "1009", "10"),
            ("1", "", "1009", "10"),
            ("1", "5", "1009", "18446744073709551615"),
        ] {
            assert_eq!(frames(key, after, ends, to), None, "{key} {after} {ends} {to}");
        }
    }
}
