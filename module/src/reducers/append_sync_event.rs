//! Appends one event, as a frame of one.

use bytes::Bytes;
use spacetime_sync_proto::{Event, Frame, FrameError, IdempotencyKey, InvalidId, Kind, PayloadHash, limit};
use spacetime_sync_rules::append::{Request, invalid_frame};
use spacetimedb::sats::u256;
use spacetimedb::{ReducerContext, reducer};

use super::append_sync_events::append_frame;
use crate::access::bridge_only;
use crate::log_access::{chain_from_column, seq_argument, trust_row};
use crate::refuse::{Refused, invalid_argument, refused};

/// `base_chain` is the chain hash before the event, big-endian; `committed_at_us` is the authority's time. The module
/// hashes the payload, and checks the whole event.
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
    // Hashing is the most expensive work in the module, so caller and sizes are checked first.
    let trust = trust_row(ctx)?;
    bridge_only(ctx, &trust)?;
    let invalid = |invalid: InvalidId| invalid_argument(invalid.to_string());
    let base_chain = chain_from_column(base_chain);
    let at = seq_argument(seq)?;
    let found = payload.len();
    if found > limit::PAYLOAD_BYTES {
        return Err(refused(invalid_frame(FrameError::PayloadSize { seq: at, found })));
    }
    let event = Event {
        seq: at,
        idempotency_key: IdempotencyKey::new(&idempotency_key).map_err(invalid)?,
        kind: Kind::new(&kind).map_err(invalid)?,
        payload_hash: PayloadHash::of(&payload),
        payload: Bytes::from(payload),
        // A frame does not carry the event's chain hash, so any value will do.
        chain_hash: base_chain,
        committed_at_us,
    };
    let request = Request::of_frame(seq, base_chain, Frame::encode(&[event], None)).map_err(refused)?;
    append_frame(ctx, &trust, &stream_id, request)
}
