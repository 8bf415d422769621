//! Appends a frame of consecutive events. One transaction: all or nothing, and a repeat changes nothing.

use bytes::Bytes;
use spacetime_sync_proto::{ChainHash, Position, StreamId};
use spacetime_sync_rules::append::{self, Append, Request};
use spacetimedb::sats::u256;
use spacetimedb::{ReducerContext, Table, reducer};

use super::sweep_log::{is_mark_passed, look_at};
use crate::access::{bridge_only, grant_new_stream};
use crate::log_access::{chain_from_column, chain_to_column, head, held_chain, trust_row};
use crate::refuse::{Refused, invalid_argument, refused, stream_id as parse_stream_id};
use crate::tables::{SyncEvent, SyncHead, SyncStream, SyncTrust, sync_event, sync_head, sync_stream};

/// `base_chain` is the chain hash before the frame's first event, big-endian.
#[reducer]
pub fn append_sync_events(
    ctx: &ReducerContext,
    stream_id: String,
    first_seq: u64,
    base_chain: u256,
    frame: Vec<u8>,
) -> Result<(), Refused> {
    let trust = trust_row(ctx)?;
    bridge_only(ctx, &trust)?;
    let base_chain = chain_from_column(base_chain);
    append_frame(ctx, &trust, &stream_id, first_seq, base_chain, Bytes::from(frame))
}

/// Appends what the bridge sent: whether it was the bridge, the caller has asked.
pub fn append_frame(
    ctx: &ReducerContext,
    trust: &SyncTrust,
    stream_id: &str,
    first_seq: u64,
    base_chain: ChainHash,
    frame: Bytes,
) -> Result<(), Refused> {
    let stream_id = parse_stream_id(stream_id)?;
    let stream_key = trust.stream_key(&stream_id)?;
    let before = head(ctx, stream_key, &stream_id);
    let request = Request {
        first_seq,
        base_chain,
        frame,
    };
    let decided = append::decide(before, request, |seq| held_chain(ctx, stream_key, seq)).map_err(refused)?;
    let Append::Extend {
        first_seq,
        frame,
        head: after,
        last_at_us,
    } = decided
    else {
        return Ok(());
    };

    ctx.db.sync_event().insert(SyncEvent {
        stream_key,
        first_seq: first_seq.get(),
        last_seq: after.seq.get(),
        base_chain: chain_to_column(before.chain),
        last_at: last_at_us,
        frame: frame.into(),
    });
    let held_nothing = write_head(ctx, &stream_id, stream_key, after)?;
    if held_nothing || is_mark_passed(before.seq, after.seq) {
        look_at(ctx, stream_key);
    }
    Ok(())
}

/// Says whether the stream held nothing before: it did not exist, or its window was empty.
fn write_head(ctx: &ReducerContext, stream_id: &StreamId, stream_key: u64, after: Position) -> Result<bool, Refused> {
    let head_chain = chain_to_column(after.chain);
    let Some(row) = ctx.db.sync_head().stream_key().find(stream_key) else {
        new_stream(ctx, stream_id, stream_key, after)?;
        return Ok(true);
    };
    let held_nothing = row.oldest_seq > row.head_seq;
    ctx.db.sync_head().stream_key().update(SyncHead {
        head_seq: after.seq.get(),
        head_chain,
        ..row
    });
    Ok(held_nothing)
}

/// A stream with its name, its head, and the grants of sessions whose patterns cover it.
pub fn new_stream(ctx: &ReducerContext, stream_id: &StreamId, stream_key: u64, head: Position) -> Result<(), Refused> {
    let row = SyncStream {
        stream_key,
        stream_id: stream_id.as_str().to_owned(),
        created_at: ctx.timestamp,
    };
    ctx.db.sync_stream().try_insert(row).map_err(|error| {
        invalid_argument(format!(
            "stream {stream_id} has the key of another stream, choose another name: {error}"
        ))
    })?;
    ctx.db.sync_head().insert(SyncHead {
        stream_key,
        head_seq: head.seq.get(),
        oldest_seq: 1,
        head_chain: chain_to_column(head.chain),
    });
    grant_new_stream(ctx, stream_id, stream_key);
    Ok(())
}
