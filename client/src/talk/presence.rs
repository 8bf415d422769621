//! Rows of the lane's table of presences, and who they say is there.

use std::time::SystemTime;

use crate::presence::{OfflineReason, PresenceKey, PresenceStatus, Presences, SeenPresence};

/// A row of the lane's table.
pub(crate) struct PresenceRow {
    pub(crate) key: PresenceKey,
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) region: String,
    pub(crate) started_at: SystemTime,
    pub(crate) last_seen: SystemTime,
}

/// The same session is seen once for each reason to see it: what was heard last counts. A row whose words are not ours
/// is left out.
pub(crate) fn seen(rows: impl Iterator<Item = PresenceRow>) -> Presences {
    let mut seen = Presences::new();
    for row in rows {
        let Some(status) = PresenceStatus::read(&row.status) else {
            continue;
        };
        if seen.get(&row.key).is_none_or(|other| other.last_seen < row.last_seen) {
            let one = SeenPresence {
                status,
                reason: OfflineReason::read(&row.reason),
                region: row.region,
                started_at: row.started_at,
                last_seen: row.last_seen,
            };
            seen.insert(row.key, one);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_session_that_is_seen_in_several_ways_is_seen_once_as_last_heard_of() {
        let row = |node: &str, status: &str, reason: &str, seconds| PresenceRow {
            key: PresenceKey {
                session_id: "s".to_owned(),
                node_id: node.to_owned(),
            },
            status: status.to_owned(),
            reason: reason.to_owned(),
            region: String::new(),
            started_at: SystemTime::UNIX_EPOCH,
            last_seen: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        };
        let rows = [
            row("a", "online", "", 1),
            row("a", "offline", "ttl_expired", 3),
            row("a", "busy", "", 2),
            row("b", "offline", "explicit_offline", 1),
            row("c", "dancing", "", 1),
        ];
        let found: Vec<_> = seen(rows.into_iter())
            .into_iter()
            .map(|(key, seen)| (key.node_id, seen.status, seen.reason))
            .collect();
        let expected = [
            ("a".to_owned(), PresenceStatus::Offline, Some(OfflineReason::TtlExpired)),
            ("b".to_owned(), PresenceStatus::Offline, Some(OfflineReason::Explicit)),
        ];
        assert_eq!(found, expected);
    }
}
