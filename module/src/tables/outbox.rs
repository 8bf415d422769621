//! The outbox: events for the world outside. A mirror sees them, sends them, and says what became of them.

use spacetimedb::sats::u256;
use spacetimedb::{Filter, Timestamp, client_visibility_filter, table};

#[table(accessor = bridge_outbox, public)]
pub struct BridgeOutbox {
    /// The key of its row in `outbox_entry`.
    #[primary_key]
    pub outbox_id: u64,
    /// Holders of a grant with this key see the row: mirrors.
    #[index(btree)]
    pub audience_key: u64,
    /// The event's name.
    pub event_id: String,
    /// By what it is sent.
    pub transport: String,
    /// What is sent: a JSON object. Empty once the event does not wait any more.
    pub payload: String,
    /// `pending`, `sent` or `dropped`.
    pub status: String,
    /// As what it was sent. Empty if it was not.
    pub published_as: String,
    pub enqueued_at: Timestamp,
    /// When its status changed last.
    pub changed_at: Timestamp,
}

#[client_visibility_filter]
const SEEN_OUTBOX: Filter = Filter::Sql(
    "SELECT o.* FROM bridge_outbox o JOIN stream_grant g ON o.audience_key = g.stream_key WHERE g.identity = :sender",
);

/// What a repeated call is told by, without the payloads. Private.
#[table(accessor = outbox_entry, index(accessor = by_age, btree(columns = [is_done, changed_at])))]
pub struct OutboxEntry {
    #[primary_key]
    #[auto_inc]
    pub outbox_id: u64,
    #[unique]
    pub event_id: String,
    /// The digest of the call that put it in.
    pub content: u256,
    /// Whether it does not wait any more.
    pub is_done: bool,
    pub changed_at: Timestamp,
}

/// How many events there are. Private.
#[table(accessor = outbox_count)]
pub struct OutboxCount {
    /// Always 0.
    #[primary_key]
    pub id: u8,
    /// Those that wait.
    pub pending: u32,
    /// Those that do not.
    pub done: u32,
}
