//! Makes a stream's log end where the authority's does, whatever SpacetimeDB holds. The bridge calls it when it refills
//! a window, an operator after a restore. One call is one bounded step. The caller reads the head and calls again until
//! the log ends there.

use spacetime_sync_proto::{Position, limit};
use spacetime_sync_rules::rewind;
use spacetimedb::sats::u256;
use spacetimedb::{ReducerContext, reducer};

use crate::access::operator;
use crate::log_access::{StreamRows, chain_from_column, seal_argument, seq_argument, seq_from_column, trust_row};
use crate::refuse::{Refused, refused, stream_id as parse_stream_id};

/// `chain_hash` is the authority's chain hash at `seq`. `seal` is the bridge's seal of that position, or empty: a frame
/// that is cut there ends with it. `seen_seq` and `seen_chain_hash` are the head as the caller last saw it.
#[reducer]
pub fn rewind_stream(
    ctx: &ReducerContext,
    stream_id: String,
    seq: u64,
    chain_hash: u256,
    seal: Vec<u8>,
    seen_seq: u64,
    seen_chain_hash: u256,
) -> Result<(), Refused> {
    let trust = trust_row(ctx)?;
    operator(ctx, &trust)?;
    let stream_id = parse_stream_id(&stream_id)?;
    let target = Position {
        seq: seq_argument(seq)?,
        chain: chain_from_column(chain_hash),
    };
    let seal = seal_argument(&seal)?;
    let mut rows = StreamRows {
        ctx,
        stream_key: trust.stream_key(&stream_id)?,
        stream_id: &stream_id,
    };
    let seen = Position {
        seq: seq_from_column(seen_seq),
        chain: chain_from_column(seen_chain_hash),
    };
    rewind::step(
        &mut rows,
        &stream_id,
        target,
        seal.as_ref(),
        seen,
        limit::REWIND_STEP_EVENTS,
    )
    .map_err(refused)?;
    Ok(())
}
