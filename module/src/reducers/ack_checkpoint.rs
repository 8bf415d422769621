//! Takes down how far a client has applied a stream: its own, and only forward.

use spacetime_sync_proto::Seq;
use spacetime_sync_rules::checkpoint::{self, Ack};
use spacetimedb::sats::u256;
use spacetimedb::{ReducerContext, Table, reducer};

use crate::access::may_acknowledge;
use crate::log_access::{chain_from_column, head, held_chain, seq_from_column, trust_row};
use crate::refuse::{Refused, invalid_argument, refused, stream_id as parse_stream_id};
use crate::tables::{SyncCheckpoint, sync_checkpoint};

#[reducer]
pub fn ack_checkpoint(ctx: &ReducerContext, stream_id: String, seq: u64, chain_hash: u256) -> Result<(), Refused> {
    let stream_id = parse_stream_id(&stream_id)?;
    let stream_key = trust_row(ctx)?.stream_key(&stream_id)?;
    let identity = ctx.sender();
    may_acknowledge(ctx, stream_key)?;
    let at = Seq::new(seq).ok_or_else(|| invalid_argument(format!("{seq} is no seq")))?;
    let held = ctx
        .db
        .sync_checkpoint()
        .by_holder()
        .filter((identity, stream_key))
        .next();
    let previous = held
        .as_ref()
        .map(|row| (seq_from_column(row.seq), chain_from_column(row.chain_hash)));
    let chain = chain_from_column(chain_hash);
    let log_head = head(ctx, stream_key, &stream_id);
    match checkpoint::decide(previous, log_head, at, chain, |seq| held_chain(ctx, stream_key, seq)).map_err(refused)? {
        Ack::Repeated => {}
        Ack::Moved => {
            let checkpoint_id = held.map_or(0, |row| row.checkpoint_id);
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
