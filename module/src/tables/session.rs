//! Sessions: who is let in by a token, what they may do, and until when. Private: no client sees them.
//!
//! A session is one identity, for its tokens have one subject. Its newest token says what it may do; grants and patterns
//! follow from it and end with it.

use spacetimedb::{Identity, Timestamp, table};

#[table(accessor = sync_session)]
pub struct SyncSession {
    #[primary_key]
    pub identity: Identity,
    #[unique]
    pub session_id: String,
    pub user_id: String,
    pub org_id: Option<String>,
    /// The device to which the session's first token bound it.
    pub device_id: String,
    /// The names of the scopes.
    pub scopes: Vec<String>,
    /// When its newest token was signed, in seconds.
    pub issued_at: u64,
    /// When that token ends.
    #[index(btree)]
    pub expires_at: Timestamp,
}

/// What a session may see of streams that come to exist later.
#[table(accessor = grant_pattern)]
pub struct GrantPattern {
    #[primary_key]
    #[auto_inc]
    pub pattern_id: u64,
    #[index(btree)]
    pub identity: Identity,
    /// What the stream's name begins with.
    #[index(btree)]
    pub prefix: String,
}

/// How many streams a session with patterns sees. The count is kept so that a new stream can be granted within the
/// bound without reading all grants.
#[table(accessor = grant_count)]
pub struct GrantCount {
    #[primary_key]
    pub identity: Identity,
    /// It may be too high until the session comes with its next token, and is never too low.
    pub grants: u32,
}

/// Sessions that were revoked.
#[table(accessor = revoked_session)]
pub struct RevokedSession {
    #[primary_key]
    pub session_id: String,
    /// When the row may be forgotten: after every token that the session may hold has expired.
    #[index(btree)]
    pub until: Timestamp,
}
