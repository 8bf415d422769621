//! Which sessions are online, and on which nodes, as they report themselves. A session is seen by the other sessions of
//! its user, and by everyone who may read a stream that it serves. There is a row for each node and each of these
//! audiences, joined with the grants as the log is.

use spacetimedb::{Filter, Timestamp, client_visibility_filter, table};

#[table(accessor = session_presence, public)]
pub struct SessionPresence {
    #[primary_key]
    #[auto_inc]
    pub presence_id: u64,
    /// Holders of a grant with this key see the row.
    #[index(btree)]
    pub audience_key: u64,
    #[index(btree)]
    pub session_id: String,
    /// The machine or program that the session runs on.
    pub node_id: String,
    /// `online`, `busy`, `away` or `offline`.
    pub status: String,
    /// Why it is `offline`: `explicit_offline` or `ttl_expired`. Empty otherwise.
    pub reason: String,
    /// Where the node is; may be empty.
    pub region: String,
    /// Since when the session has been online there without a break.
    pub started_at: Timestamp,
    /// The last heartbeat.
    pub last_seen: Timestamp,
    /// Until when the row holds without another heartbeat.
    #[index(btree)]
    pub holds_until: Timestamp,
}

#[client_visibility_filter]
const SEEN_PRESENCE: Filter = Filter::Sql(
    "SELECT p.* FROM session_presence p JOIN stream_grant g ON p.audience_key = g.stream_key WHERE g.identity = :sender",
);
