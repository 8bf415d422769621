//! Appends one event: a frame of one.

use bytes::Bytes;
use spacetime_sync_proto::{Event, Frame, IdempotencyKey, InvalidId, Kind, PayloadHash, Seq};
use spacetimedb::sats::u256;
use spacetimedb::{ReducerContext, reducer};

use super::append_sync_events::append_frame;
use crate::log_access::chain_from_column;
use crate::refuse::{Refused, invalid_argument};

/// `base_chain` is the chain hash before the event, big-endian; `committed_at_us` is the authority's time. The payload
/// is hashed here.
#[reducer]
// A reducer's arguments are its wire format.
#[allow(clippy::too_many_arguments)]
pub fn append_sync_event(
    ctx: &ReducerContext,
    stream_id: String,
    seq: u64,
    base_chain: u256,
    idempotency_key: String,
    kind: String,
    payload: Vec<u8>,
    committed_at_us: i64,
) -> Result<(), Refused> {
    let invalid = |invalid: InvalidId| invalid_argument(invalid.to_string());
    let base_chain = chain_from_column(base_chain);
    let event = Event {
        seq: Seq::new(seq).ok_or_else(|| invalid_argument(format!("{seq} is no seq")))?,
        idempotency_key: IdempotencyKey::new(&idempotency_key).map_err(invalid)?,
        kind: Kind::new(&kind).map_err(invalid)?,
        payload_hash: PayloadHash::of(&payload),
        payload: Bytes::from(payload),
        // Not part of a frame: it follows from the rest.
        chain_hash: base_chain,
        committed_at_us,
    };
    append_frame(ctx, &stream_id, seq, base_chain, Frame::encode(&[event]))
}
