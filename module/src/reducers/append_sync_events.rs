//! Appends a frame of consecutive events. The call is one transaction, and a repeated frame changes nothing. What the call
//! states about the frame must continue the log; whether the frame is what was stated, clients check (docs/adr/0019).

use bytes::Bytes;
use spacetime_sync_rules::append::{Appended, Request, append};
use spacetimedb::sats::u256;
use spacetimedb::{ReducerContext, reducer};

use super::sweep_log::look_at;
use crate::access::bridge_only;
use crate::log_access::{StreamRows, chain_from_column, trust_row};
use crate::refuse::{Refused, refused, stream_id as parse_stream_id};
use crate::tables::SyncTrust;

/// `base_chain` is the chain hash before the frame's first event, `last_chain` that of its last event, both big-endian.
/// `last_at` is when the last event was committed, by the authority's clock.
#[reducer]
// A reducer's arguments are its wire format.
#[allow(clippy::too_many_arguments)]
pub fn append_sync_events(
    ctx: &ReducerContext,
    stream_id: String,
    first_seq: u64,
    last_seq: u64,
    base_chain: u256,
    last_chain: u256,
    last_at: i64,
    frame: Vec<u8>,
) -> Result<(), Refused> {
    let trust = trust_row(ctx)?;
    bridge_only(ctx, &trust)?;
    let request = Request {
        first_seq,
        last_seq,
        base_chain: chain_from_column(base_chain),
        last_chain: chain_from_column(last_chain),
        last_at_us: last_at,
        frame: Bytes::from(frame),
    };
    append_frame(ctx, &trust, &stream_id, request)
}

/// Appends a frame. The caller has checked that the bridge sent it.
pub fn append_frame(ctx: &ReducerContext, trust: &SyncTrust, stream_id: &str, request: Request) -> Result<(), Refused> {
    let stream_id = parse_stream_id(stream_id)?;
    let mut rows = StreamRows {
        ctx,
        stream_key: trust.stream_key(&stream_id)?,
        stream_id: &stream_id,
    };
    match append(&mut rows, &stream_id, request).map_err(refused)? {
        Appended::Extended { must_look: true } => look_at(ctx, rows.stream_key),
        Appended::Extended { must_look: false } | Appended::Absorbed => {}
    }
    Ok(())
}
