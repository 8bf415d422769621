//! Which sessions are online, and on which nodes, as they report themselves. A session is seen by the other sessions of
//! its user, and by everyone who may read a stream that it serves. There is a row for each node and each of these
//! audiences, joined with the grants as the log is.

use spacetimedb::{Filter, Identity, Timestamp, client_visibility_filter, table};

#[table(accessor = session_presence, public)]
#[derive(Clone)]
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
    /// The last heartbeat that is told: while nothing else changes, it may be ten minutes older than the last one.
    pub last_seen: Timestamp,
    /// When a sweep looks at the row: to tell of a later heartbeat, or to forget a node that is offline.
    #[index(btree)]
    pub holds_until: Timestamp,
    /// What kind of application or machine the node is; may be empty.
    #[default("")]
    pub surface: String,
    /// The Nostr key that is bound to the node, in hex. Empty if none is.
    #[default("")]
    pub nostr_pubkey: String,
}

#[client_visibility_filter]
const SEEN_PRESENCE: Filter = Filter::Sql(
    "SELECT p.* FROM session_presence p JOIN stream_grant g ON p.audience_key = g.stream_key WHERE g.identity = :sender",
);

/// A node that is there, and the last heartbeat that was noted. Private, so that nobody is told of those that only repeat.
#[table(accessor = presence_beat, index(accessor = by_node, btree(columns = [session_id, node_id])))]
pub struct PresenceBeat {
    #[primary_key]
    #[auto_inc]
    pub beat_id: u64,
    pub session_id: String,
    pub node_id: String,
    pub seen_at: Timestamp,
    /// When the node goes offline without another heartbeat.
    #[index(btree)]
    pub stale_at: Timestamp,
}

/// How a node of a session changed. It is told once, to whoever sees the node and listens, and kept nowhere: what a node is
/// like, `session_presence` says.
#[table(accessor = presence_change, public, event)]
pub struct PresenceChange {
    /// Holders of a grant with this key hear it, if their subscription names the key.
    #[index(btree)]
    pub audience_key: u64,
    pub session_id: String,
    pub node_id: String,
    pub status: String,
    pub reason: String,
    pub region: String,
    pub surface: String,
    pub nostr_pubkey: String,
    pub changed_at: Timestamp,
}

#[client_visibility_filter]
const HEARD_CHANGES: Filter = Filter::Sql(
    "SELECT c.* FROM presence_change c JOIN stream_grant g ON c.audience_key = g.stream_key WHERE g.identity = :sender",
);

/// How many are there. Anyone connected can read it.
#[table(accessor = presence_count, public)]
pub struct PresenceCount {
    /// Always 0.
    #[primary_key]
    pub id: u8,
    /// How many Nostr keys are bound to a node that is not offline, each counted once. The sweep counts them.
    pub providers_online: u64,
    /// When that number changed.
    pub counted_at: Timestamp,
}

/// Which Nostr key is bound to which node. Private: `session_presence` shows it. It ends when the node is forgotten.
#[table(accessor = nostr_binding, index(accessor = by_node, btree(columns = [session_id, node_id])))]
pub struct NostrBinding {
    #[primary_key]
    #[auto_inc]
    pub binding_id: u64,
    /// A key is bound to one node.
    #[unique]
    pub nostr_pubkey: String,
    pub session_id: String,
    pub node_id: String,
    /// Whether the node is not offline.
    #[index(btree)]
    pub is_there: bool,
    pub bound_at: Timestamp,
}

/// The newest challenge of a session for each of its nodes, until it expires. Private.
#[table(accessor = nostr_challenge, index(accessor = by_node, btree(columns = [identity, node_id])))]
pub struct NostrChallenge {
    #[primary_key]
    #[auto_inc]
    pub challenge_id: u64,
    pub identity: Identity,
    pub node_id: String,
    /// When it was made, in milliseconds. Its text says so.
    pub made_ms: u64,
    /// Whether somebody tried to answer it.
    pub is_spent: bool,
    #[index(btree)]
    pub expires_at: Timestamp,
}
