//! Rows of the module's presence table, and the sessions that they show.

use std::time::SystemTime;

use crate::presence::{OfflineReason, PresenceKey, PresenceStatus, Presences, SeenPresence};

/// A row of the module's table.
pub(crate) struct PresenceRow {
    pub(crate) key: PresenceKey,
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) region: String,
    pub(crate) surface: String,
    pub(crate) nostr_pubkey: String,
    pub(crate) started_at: SystemTime,
    pub(crate) last_seen: SystemTime,
}

/// Merges rows into sessions. A session has one row for each reason to see it: the newest counts. A row with an unknown
/// status is left out.
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
                surface: row.surface,
                nostr_key: row.nostr_pubkey.parse().ok(),
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
    fn a_session_with_several_rows_is_seen_once_as_last_heard() {
        let row = |node: &str, status: &str, reason: &str, seconds| PresenceRow {
            key: PresenceKey {
                session_id: "s".to_owned(),
                node_id: node.to_owned(),
            },
            status: status.to_owned(),
            reason: reason.to_owned(),
            region: String::new(),
            surface: String::new(),
            nostr_pubkey: String::new(),
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
