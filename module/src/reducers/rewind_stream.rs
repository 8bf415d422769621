//! Makes a stream's log end where the authority says it does, whatever is held: for the bridge that fills a window anew, and
//! for an operator after a restore. A bounded step each call; the caller looks at the head and calls again.

use bytes::Bytes;
use spacetime_sync_proto::{Frame, Position, Seq};
use spacetime_sync_rules::rewind::{self, Extent, Step};
use spacetimedb::sats::u256;
use spacetimedb::{ReducerContext, Table, reducer};

use super::append_sync_events::new_stream;
use crate::access::operator;
use crate::log_access::{
    chain_from_column, chain_to_column, frames_from, head, held_chain, seq_from_column, trust_row,
};
use crate::refuse::{Refused, invalid_argument, refused, stream_id as parse_stream_id};
use crate::tables::{SyncEvent, SyncHead, sync_checkpoint, sync_event, sync_head};

/// Most events that one step removes.
const EVENTS: u64 = 8_192;

/// `chain_hash` is the authority's at `seq`, `seen_seq` the head as the caller saw it.
#[reducer]
pub fn rewind_stream(
    ctx: &ReducerContext,
    stream_id: String,
    seq: u64,
    chain_hash: u256,
    seen_seq: u64,
) -> Result<(), Refused> {
    let trust = trust_row(ctx)?;
    operator(ctx, &trust)?;
    let stream_id = parse_stream_id(&stream_id)?;
    let stream_key = trust.stream_key(&stream_id)?;
    let target = Position {
        seq: Seq::new(seq).ok_or_else(|| invalid_argument(format!("{seq} is no seq")))?,
        chain: chain_from_column(chain_hash),
    };
    let row = match ctx.db.sync_head().stream_key().find(stream_key) {
        Some(row) => row,
        None => {
            new_stream(ctx, &stream_id, stream_key, Position::start(&stream_id))?;
            ctx.db
                .sync_head()
                .stream_key()
                .find(stream_key)
                .ok_or_else(|| invalid_argument("the stream cannot be made"))?
        }
    };
    let held = Extent {
        floor: seq_from_column(row.oldest_seq).previous(),
        head: head(ctx, stream_key, &stream_id),
    };
    rewind::is_as_seen(held, seq_from_column(seen_seq)).map_err(refused)?;
    let there = if target.seq == held.floor {
        floor_chain(ctx, stream_key, held)
    } else {
        held_chain(ctx, stream_key, target.seq)
    };
    match rewind::decide(held, target, there, EVENTS) {
        Step::Done => {}
        Step::Cut { after } => cut(ctx, row, held.floor, after)?,
        Step::Begin => {
            ctx.db.sync_head().stream_key().update(SyncHead {
                head_seq: target.seq.get(),
                head_chain: chain_to_column(target.chain),
                oldest_seq: target.seq.next().get(),
                ..row
            });
        }
    }
    let ends = ctx.db.sync_head().stream_key().find(stream_key);
    if ends.is_some_and(|row| row.head_seq == target.seq.get()) {
        // A client that was further may begin again from here: what it said before is of a log that is gone.
        let past = target.seq.next().get();
        ctx.db.sync_checkpoint().by_stream_seq().delete((stream_key, past..));
    }
    Ok(())
}

/// The chain hash before the first event that is held.
fn floor_chain(ctx: &ReducerContext, stream_key: u64, held: Extent) -> Option<spacetime_sync_proto::ChainHash> {
    if held.head.seq == held.floor {
        return Some(held.head.chain);
    }
    let first = frames_from(ctx, stream_key, held.floor.next()).into_iter().next()?;
    Some(chain_from_column(first.base_chain))
}

/// Removes the events after a position that is held, or just before what is held.
fn cut(ctx: &ReducerContext, row: SyncHead, floor: Seq, after: Seq) -> Result<(), Refused> {
    let stream_key = row.stream_key;
    let broken = || {
        invalid_argument(format!(
            "what is held after seq {after} is no log; delete the stream's data"
        ))
    };
    let first = frames_from(ctx, stream_key, after.next())
        .into_iter()
        .next()
        .ok_or_else(broken)?;
    ctx.db
        .sync_event()
        .by_stream_seq()
        .delete((stream_key, after.next().get()..=row.head_seq));
    let base_chain = first.base_chain;
    let mut head_chain = base_chain;
    if first.first_seq <= after.get() {
        let frame = Frame::decode(first.first_seq, chain_from_column(base_chain), Bytes::from(first.frame))
            .map_err(|_| broken())?;
        head_chain = chain_to_column(frame.chain_at(after).ok_or_else(broken)?);
        let rest = frame.encode_until(after).ok_or_else(broken)?;
        let kept = Frame::decode(first.first_seq, chain_from_column(base_chain), rest.clone()).map_err(|_| broken())?;
        ctx.db.sync_event().insert(SyncEvent {
            last_seq: after.get(),
            last_at: kept.last_at_us(),
            frame: rest.into(),
            ..first
        });
    }
    ctx.db.sync_head().stream_key().update(SyncHead {
        head_seq: after.get(),
        head_chain,
        oldest_seq: row.oldest_seq.max(floor.next().get()),
        ..row
    });
    Ok(())
}
