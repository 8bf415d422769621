//! Which sessions are there, and on which nodes, as they say themselves. The sessions of the same user see them, and so does
//! who may read a stream that a session serves: there is a row for each node and each of these audiences, joined with the
//! grants as the log is.

use spacetimedb::{Filter, Timestamp, client_visibility_filter, table};

#[table(accessor = session_presence, public)]
pub struct SessionPresence {
    #[primary_key]
    #[auto_inc]
    pub presence_id: u64,
    /// Who sees this row: holders of a grant with this key.
    #[index(btree)]
    pub audience_key: u64,
    #[index(btree)]
    pub session_id: String,
    /// The machine or program.
    pub node_id: String,
    /// `online`, `busy`, `away` or `offline`.
    pub status: String,
    /// Why it is `offline`: `explicit_offline` or `ttl_expired`. Empty otherwise.
    pub reason: String,
    /// Where it is; may be empty.
    pub region: String,
    /// Since when it is there without a break.
    pub started_at: Timestamp,
    /// Its last heartbeat.
    pub last_seen: Timestamp,
    /// Until when this holds without another heartbeat.
    #[index(btree)]
    pub holds_until: Timestamp,
}

#[client_visibility_filter]
const SEEN_PRESENCE: Filter = Filter::Sql(
    "SELECT p.* FROM session_presence p JOIN stream_grant g ON p.audience_key = g.stream_key WHERE g.identity = :sender",
);
