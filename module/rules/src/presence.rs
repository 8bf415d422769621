//! Presence: what a session may report about itself on each of its nodes, how long a report holds, and which rows it
//! writes.

use std::collections::BTreeMap;
use std::time::Duration;

use spacetime_sync_proto::{Label, Refusal, RefusalCode, StreamId, limit};

/// A node is there for this long after the last heartbeat that was noted. Clients send one every five seconds.
pub const STALE_AFTER: Duration = Duration::from_secs(30);
/// A heartbeat is noted once the last one that was is this old: with the usual heartbeats, every second one is.
pub const NOTED_AFTER: Duration = Duration::from_secs(8);
/// Of a node that goes on saying the same, those who watch are told when it was last heard, this often.
pub const TOLD_AFTER: Duration = Duration::from_secs(600);
/// A session that left is remembered for this long.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3_600);
/// The status of a session that is not online on a node.
pub const OFFLINE: &str = "offline";
/// The session itself said that it is offline.
pub const EXPLICIT_OFFLINE: &str = "explicit_offline";
/// Its heartbeats stopped.
pub const TTL_EXPIRED: &str = "ttl_expired";

const STATUSES: [&str; 4] = ["online", "busy", "away", OFFLINE];

/// A heartbeat whose fields are valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// The machine or program that the session runs on.
    pub node_id: Label,
    /// One of the known statuses.
    pub status: &'static str,
    /// Why it is offline; empty otherwise.
    pub reason: &'static str,
    /// Where the node is; may be empty.
    pub region: String,
    /// What kind of application or machine it is; may be empty.
    pub surface: String,
    /// The streams that the node serves.
    pub serves: Vec<StreamId>,
}

/// Checks the fields of a heartbeat.
pub fn heartbeat(
    node_id: &str,
    status: &str,
    [region, surface]: [&str; 2],
    serves: &[String],
) -> Result<Heartbeat, Refusal> {
    let invalid = |message: String| Refusal::new(RefusalCode::InvalidArgument, message);
    let node_id = Label::new(node_id).map_err(|error| invalid(format!("node_id: {error}")))?;
    let status = *STATUSES
        .iter()
        .find(|known| **known == status)
        .ok_or_else(|| invalid(format!("status: expected one of {}", STATUSES.join(", "))))?;
    for (what, text) in [("region", region), ("surface", surface)] {
        if !text.is_empty() {
            Label::check(text).map_err(|error| invalid(format!("{what}: {error}")))?;
        }
    }
    if serves.len() > limit::PRESENCE_SERVES {
        let message = format!(
            "serves: at most {} streams, found {}",
            limit::PRESENCE_SERVES,
            serves.len()
        );
        return Err(invalid(message));
    }
    let serves: Result<Vec<StreamId>, _> = serves.iter().map(|stream| StreamId::new(stream)).collect();
    Ok(Heartbeat {
        node_id,
        status,
        reason: if status == OFFLINE { EXPLICIT_OFFLINE } else { "" },
        region: region.to_owned(),
        surface: surface.to_owned(),
        serves: serves.map_err(|error| invalid(format!("serves: {error}")))?,
    })
}

/// A row of `session_presence`: the last heartbeat of a session on one node, for one audience.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldPresence {
    /// The row's key.
    pub presence_id: u64,
    /// Who sees the row.
    pub audience_key: u64,
    /// The node.
    pub node_id: String,
    /// Whether the session is online on the node.
    pub is_there: bool,
    /// Since when it has been online without a break, in microseconds.
    pub started_at_us: i64,
    /// Its last heartbeat, in microseconds.
    pub last_seen_us: i64,
}

/// Whether a heartbeat that was noted is too new for the next one to be noted. One of the future is not: a clock was set back.
pub fn is_fresh(noted_us: i64, now_us: i64) -> bool {
    (0..NOTED_AFTER.as_micros() as i64).contains(&now_us.saturating_sub(noted_us))
}

/// What a heartbeat changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Since when the session has been online on this node without a break, in microseconds.
    pub started_at_us: i64,
    /// For each audience, the row to rewrite. `None` if the row is new.
    pub rows: Vec<(u64, Option<u64>)>,
    /// Rows to delete.
    pub deleted: Vec<u64>,
    /// The node that makes room for this one: all its rows are deleted.
    pub forgets: Option<String>,
}

/// Decides which rows a heartbeat writes. `held` are the rows of the session on all its nodes. `audiences` are those
/// who may see it on this node, without duplicates. Nodes do not touch each other's rows unless there is no room: then
/// the node that left longest ago is forgotten.
pub fn place(held: &[HeldPresence], node_id: &Label, audiences: &[u64], now_us: i64) -> Result<Placement, Refusal> {
    let (own, others): (Vec<_>, Vec<_>) = held.iter().partition(|row| row.node_id == node_id.as_str());
    let unbroken = own.iter().find(|row| row.is_there);
    let rows = audiences.iter().map(|audience_key| {
        let row = own.iter().find(|row| row.audience_key == *audience_key);
        (*audience_key, row.map(|row| row.presence_id))
    });
    let unseen = own.iter().filter(|row| !audiences.contains(&row.audience_key));
    let mut deleted: Vec<u64> = unseen.map(|row| row.presence_id).collect();
    let forgets = if own.is_empty() { make_room(&others)? } else { None };
    let forgotten = others.iter().filter(|row| forgets.as_ref() == Some(&row.node_id));
    deleted.extend(forgotten.map(|row| row.presence_id));
    Ok(Placement {
        started_at_us: unbroken.map_or(now_us, |row| row.started_at_us),
        rows: rows.collect(),
        deleted,
        forgets,
    })
}

/// The node to forget so that there is room for one more.
fn make_room(others: &[&HeldPresence]) -> Result<Option<String>, Refusal> {
    /// A node: whether the session is online there, and the time of its last heartbeat.
    type Node = (bool, i64);
    let mut nodes: BTreeMap<&str, Node> = BTreeMap::new();
    for row in others {
        let (is_there, last_seen_us) = nodes.entry(&row.node_id).or_insert((false, i64::MIN));
        *is_there |= row.is_there;
        *last_seen_us = row.last_seen_us.max(*last_seen_us);
    }
    if nodes.len() < limit::PRESENCE_NODES {
        return Ok(None);
    }
    let gone = nodes.iter().filter(|(_, (is_there, _))| !is_there);
    let Some((forgotten, _)) = gone.min_by_key(|(_, (_, last_seen_us))| *last_seen_us) else {
        let message = format!(
            "node_id: the session is online on {} nodes, the most allowed: set one of them to offline first",
            nodes.len()
        );
        return Err(Refusal::new(RefusalCode::InvalidArgument, message));
    };
    Ok(Some((*forgotten).to_owned()))
}

/// How long a row holds without being rewritten. After that the row is told again, or is forgotten if it was offline.
pub fn holds_for(status: &str) -> Duration {
    if status == OFFLINE { FORGOTTEN_AFTER } else { TOLD_AFTER }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_with_an_invalid_field_is_refused() {
        let said = |node: &str, status: &str, region: &str, serves: &[&str]| {
            let serves: Vec<String> = serves.iter().map(|text| (*text).to_owned()).collect();
            let (region, surface) = region.split_once('|').unwrap_or((region, "desktop"));
            heartbeat(node, status, [region, surface], &serves).map_err(|refusal| refusal.code)
        };
        assert_eq!(said("n1", "online", "", &["user:7:notes"]).unwrap().reason, "");
        assert_eq!(said("n1", "offline", "eu", &[]).unwrap().reason, EXPLICIT_OFFLINE);
        let invalid = Err(RefusalCode::InvalidArgument);
        assert_eq!(said("", "online", "", &[]), invalid);
        assert_eq!(said("n 1", "online", "", &[]), invalid);
        assert_eq!(said("n1", "Online", "", &[]), invalid);
        assert_eq!(said("n1", "online", "e u", &[]), invalid);
        assert_eq!(said("n1", "online", "eu|", &[]).unwrap().surface, "");
        assert_eq!(said("n1", "online", "eu|desk top", &[]), invalid);
        assert_eq!(said("n1", "online", &format!("eu|{}", "x".repeat(129)), &[]), invalid);
        assert_eq!(said("n1", "online", "", &["user:7:*"]), invalid);
        assert!(said("n1", "online", "", &["a"; limit::PRESENCE_SERVES]).is_ok());
        assert_eq!(said("n1", "online", "", &["a"; limit::PRESENCE_SERVES + 1]), invalid);
    }

    #[test]
    fn an_online_row_is_told_again_and_an_offline_row_is_kept_for_long() {
        for status in STATUSES {
            let expected = if status == "offline" {
                FORGOTTEN_AFTER
            } else {
                TOLD_AFTER
            };
            assert_eq!(holds_for(status), expected, "{status}");
        }
    }

    #[test]
    fn a_heartbeat_is_noted_in_time() {
        let old_us = NOTED_AFTER.as_micros() as i64;
        for (age_us, expected) in [
            (-1, false),
            (0, true),
            (old_us - 1, true),
            (old_us, false),
            (i64::MAX, false),
        ] {
            assert_eq!(is_fresh(0, age_us), expected, "{age_us}");
        }
        // Whoever is not noted may miss three of its next heartbeats.
        assert!(STALE_AFTER - NOTED_AFTER > 4 * Duration::from_secs(5));
    }

    fn row(presence_id: u64, node_id: &str, audience_key: u64, is_there: bool, at_us: i64) -> HeldPresence {
        HeldPresence {
            presence_id,
            audience_key,
            node_id: node_id.to_owned(),
            is_there,
            started_at_us: at_us,
            last_seen_us: at_us,
        }
    }

    fn node(name: &str) -> Label {
        Label::new(name).unwrap()
    }

    #[test]
    fn two_nodes_of_a_session_do_not_touch_each_others_rows() {
        let held = [
            row(1, "laptop", 7, true, 100),
            row(2, "laptop", 8, true, 100),
            row(3, "worker", 7, true, 200),
        ];
        let placed = |name, audiences: &[u64]| place(&held, &node(name), audiences, 900).unwrap();
        let expected = |started_at_us, rows: &[(u64, Option<u64>)], deleted: &[u64]| Placement {
            started_at_us,
            rows: rows.to_vec(),
            deleted: deleted.to_vec(),
            forgets: None,
        };
        let laptop = expected(100, &[(7, Some(1)), (8, Some(2))], &[]);
        assert_eq!(placed("laptop", &[7, 8]), laptop);
        assert_eq!(placed("laptop", &[7]), expected(100, &[(7, Some(1))], &[2]));
        let worker = expected(200, &[(7, Some(3)), (9, None)], &[]);
        assert_eq!(placed("worker", &[7, 9]), worker);
        assert_eq!(placed("phone", &[7]), expected(900, &[(7, None)], &[]));
    }

    #[test]
    fn a_session_that_comes_back_has_a_new_start_time() {
        let held = [row(1, "laptop", 7, false, 100), row(2, "worker", 7, true, 200)];
        let placed = place(&held, &node("laptop"), &[7], 900).unwrap();
        assert_eq!((placed.started_at_us, placed.rows), (900, vec![(7, Some(1))]));
    }

    #[test]
    fn a_session_has_a_bounded_number_of_nodes_and_forgets_those_that_left() {
        let most = limit::PRESENCE_NODES as u64;
        let mut held: Vec<_> = (1..=most)
            .map(|at| row(at, &format!("n{at}"), 7, true, at as i64))
            .collect();
        held.push(row(most + 1, "n3", 8, true, 3));
        let refused = place(&held, &node("new"), &[7], 900).unwrap_err();
        assert_eq!(refused.code, RefusalCode::InvalidArgument);
        assert!(
            place(&held, &node("n5"), &[7], 900).is_ok(),
            "a node that already has rows needs no room"
        );
        for gone in [3, 4] {
            held.iter_mut()
                .filter(|row| row.node_id == format!("n{gone}"))
                .for_each(|row| row.is_there = false);
        }
        let placed = place(&held, &node("new"), &[7], 900).unwrap();
        assert_eq!(
            placed.deleted,
            [3, most + 1],
            "all rows of the node that left first are deleted"
        );
        assert_eq!(placed.forgets.as_deref(), Some("n3"));
    }
}
