//! How far each client says it has applied a stream. Only operators read it: a client resumes from its own store. A row
//! is deleted with the grant under which it was written, so there are never more rows than grants.

use spacetimedb::sats::u256;
use spacetimedb::{Filter, Identity, Timestamp, client_visibility_filter, table};

#[table(
    accessor = sync_checkpoint,
    public,
    index(accessor = by_holder, btree(columns = [identity, stream_key])),
    index(accessor = by_stream_seq, btree(columns = [stream_key, seq]))
)]
pub struct SyncCheckpoint {
    #[primary_key]
    #[auto_inc]
    pub checkpoint_id: u64,
    pub identity: Identity,
    pub stream_key: u64,
    /// Seq of the last event applied.
    pub seq: u64,
    /// The chain hash at `seq`, big-endian.
    pub chain_hash: u256,
    pub acked_at: Timestamp,
}

#[client_visibility_filter]
const OWN_CHECKPOINTS: Filter = Filter::Sql("SELECT * FROM sync_checkpoint WHERE identity = :sender");
