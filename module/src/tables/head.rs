//! The end of each stream's log. Every frame rewrites its row, so the row has a fixed size.

use spacetimedb::sats::u256;
use spacetimedb::{Filter, client_visibility_filter, table};

#[table(accessor = sync_head, public)]
pub struct SyncHead {
    #[primary_key]
    pub stream_key: u64,
    /// Seq of the last event.
    pub head_seq: u64,
    /// Seq of the first event held; one past the head if none is.
    pub oldest_seq: u64,
    /// Chain hash of the last event, big-endian.
    pub head_chain: u256,
}

#[client_visibility_filter]
const GRANTED_HEADS: Filter = Filter::Sql(
    "SELECT h.* FROM sync_head h JOIN stream_grant g ON h.stream_key = g.stream_key WHERE g.identity = :sender",
);
