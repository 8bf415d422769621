//! Records how far the caller has applied a stream. A checkpoint only moves forward.

use spacetime_sync_proto::Position;
use spacetime_sync_rules::checkpoint::{self, Ack};
use spacetime_sync_rules::log::{HeadRow, LogRows, chain_of_held};
use spacetime_sync_rules::quota::Call;
use spacetimedb::sats::u256;
use spacetimedb::{ReducerContext, Table, reducer};

use crate::access::may_acknowledge;
use crate::log_access::{StreamRows, chain_from_column, seq_argument, seq_from_column, trust_row};
use crate::quota::spend;
use crate::refuse::{Refused, refused, stream_id as parse_stream_id};
use crate::tables::{SyncCheckpoint, sync_checkpoint};

#[reducer]
pub fn ack_checkpoint(ctx: &ReducerContext, stream_id: String, seq: u64, chain_hash: u256) -> Result<(), Refused> {
    let stream_id = parse_stream_id(&stream_id)?;
    let stream_key = trust_row(ctx)?.stream_key(&stream_id)?;
    let identity = ctx.sender();
    may_acknowledge(ctx, stream_key)?;
    spend(ctx, Call::Acknowledgement)?;
    let checkpoint = Position {
        seq: seq_argument(seq)?,
        chain: chain_from_column(chain_hash),
    };
    let acknowledged = ctx
        .db
        .sync_checkpoint()
        .by_holder()
        .filter((identity, stream_key))
        .next();
    let previous = acknowledged.as_ref().map(|row| Position {
        seq: seq_from_column(row.seq),
        chain: chain_from_column(row.chain_hash),
    });
    let rows = StreamRows {
        ctx,
        stream_key,
        stream_id: &stream_id,
    };
    let held = rows.head().unwrap_or_else(|| HeadRow::start(&stream_id));
    let chain_of = |seq| chain_of_held(&rows, held, seq);
    match checkpoint::decide(previous, held.head, checkpoint, chain_of).map_err(refused)? {
        Ack::Repeated => {}
        Ack::Moved => {
            let checkpoint_id = acknowledged.map_or(0, |row| row.checkpoint_id);
            let row = SyncCheckpoint {
                checkpoint_id,
                identity,
                stream_key,
                seq,
                chain_hash,
                acked_at: ctx.timestamp,
            };
            if checkpoint_id == 0 {
                ctx.db.sync_checkpoint().insert(row);
            } else {
                ctx.db.sync_checkpoint().checkpoint_id().update(row);
            }
        }
    }
    Ok(())
}
