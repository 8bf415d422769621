//! The streams by name. A row is written once, with the stream's first frame.

use spacetimedb::{Filter, Timestamp, client_visibility_filter, table};

#[table(accessor = sync_stream, public, index(accessor = by_name, btree(columns = [stream_id, stream_key])))]
pub struct SyncStream {
    /// The key by which every other table names the stream.
    #[primary_key]
    pub stream_key: u64,
    /// The name that authority and clients use.
    #[unique]
    pub stream_id: String,
    /// When the first frame arrived.
    pub created_at: Timestamp,
}

#[client_visibility_filter]
const GRANTED_STREAMS: Filter = Filter::Sql(
    "SELECT s.* FROM sync_stream s JOIN stream_grant g ON s.stream_key = g.stream_key WHERE g.identity = :sender",
);
