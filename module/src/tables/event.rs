//! The log: each row is a frame of consecutive events (docs/adr/0002).

use spacetimedb::sats::u256;
use spacetimedb::{Filter, client_visibility_filter, table};

#[table(
    accessor = sync_event,
    public,
    index(accessor = by_stream_seq, btree(columns = [stream_key, last_seq]))
)]
pub struct SyncEvent {
    #[index(btree)]
    pub stream_key: u64,
    /// Seq of the frame's first event.
    pub first_seq: u64,
    /// Seq of the frame's last event. A reader that has not reached it needs the frame.
    pub last_seq: u64,
    /// Chain hash before the frame's first event, big-endian.
    pub base_chain: u256,
    /// When its last event was committed, in microseconds since 1970-01-01 UTC, by the authority's clock.
    pub last_at: i64,
    /// The events: a `spacetime.sync.v1.EventFrame` of proto/spacetime/sync/v1/events.proto.
    pub frame: Vec<u8>,
    /// The section of the stream in which the frame begins, by which clients subscribe (docs/adr/0022). Frames of an earlier
    /// release have none, and clients read them as pages.
    #[index(btree)]
    #[default(0u128)]
    pub section: u128,
}

#[client_visibility_filter]
const GRANTED_EVENTS: Filter = Filter::Sql(
    "SELECT e.* FROM sync_event e JOIN stream_grant g ON e.stream_key = g.stream_key WHERE g.identity = :sender",
);
