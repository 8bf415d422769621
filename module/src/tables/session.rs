//! Sessions: who came in with a token, what they may do, and until when. Private: no client sees them.
//!
//! All tokens of a session have one subject, so a session is one identity. Its newest token says what it may do. Its
//! grants and patterns follow from that token and end with the session.

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
    /// When its newest token was signed, in microseconds.
    pub issued_at: u64,
    /// When that token expires.
    #[index(btree)]
    pub expires_at: Timestamp,
}

/// Sessions whose newest token has expired. None of their older tokens, which may be valid for longer, opens them again.
#[table(accessor = ended_session)]
pub struct EndedSession {
    #[primary_key]
    pub identity: Identity,
    /// When its newest token was signed, in microseconds.
    pub issued_at: u64,
    /// When that token expired.
    pub expired_at: Timestamp,
    /// When the row may be deleted: every token that was signed before that one has expired by then.
    #[index(btree)]
    pub until: Timestamp,
}

/// Which streams a session may see once they are created.
#[table(accessor = grant_pattern)]
pub struct GrantPattern {
    #[primary_key]
    #[auto_inc]
    pub pattern_id: u64,
    #[index(btree)]
    pub identity: Identity,
    /// The prefix of the streams' names.
    #[index(btree)]
    pub prefix: String,
}

/// How many streams a session with patterns sees. With this count a new stream can be granted within the bound without
/// reading all grants.
#[table(accessor = grant_count)]
pub struct GrantCount {
    #[primary_key]
    pub identity: Identity,
    /// May be too high until the session's next token arrives, and is never too low.
    pub grants: u32,
}

/// Sessions that were revoked.
#[table(accessor = revoked_session)]
pub struct RevokedSession {
    #[primary_key]
    pub session_id: String,
    /// When the row may be deleted: every token that the session may hold has expired by then.
    #[index(btree)]
    pub until: Timestamp,
}
