//! Reading the log's tables the way the rules want to see them.

use bytes::Bytes;
use spacetime_sync_proto::retention::class_of;
use spacetime_sync_proto::{ChainHash, Frame, Position, Seq, StreamId, limit};
use spacetime_sync_rules::stream_key;
use spacetime_sync_rules::trust::{Trust, not_configured};
use spacetimedb::sats::u256;
use spacetimedb::{Identity, ReducerContext};

use crate::refuse::{Refused, refused};
use crate::tables::{RetentionClass, SyncEvent, SyncTrust, sync_event, sync_head, sync_trust};

/// The one row of `sync_trust`, which `init` writes.
pub fn trust_row(ctx: &ReducerContext) -> Result<SyncTrust, Refused> {
    ctx.db
        .sync_trust()
        .id()
        .find(0)
        .ok_or_else(|| refused(not_configured()))
}

impl SyncTrust {
    pub fn trust(&self) -> Trust<Identity> {
        Trust {
            owner: self.owner,
            bridge: self.bridge,
        }
    }

    pub fn stream_key(&self, stream_id: &StreamId) -> Result<u64, Refused> {
        Ok(stream_key::derive(self.secret()?, stream_id))
    }

    pub fn secret(&self) -> Result<&[u8], Refused> {
        if self.key_secret.is_empty() {
            return Err(refused(not_configured()));
        }
        Ok(&self.key_secret)
    }
}

pub fn chain_to_column(chain: ChainHash) -> u256 {
    u256::from_be_bytes(*chain.as_bytes())
}

pub fn chain_from_column(column: u256) -> ChainHash {
    ChainHash::from_bytes(column.to_be_bytes())
}

/// A position out of a column that only this module writes.
pub fn seq_from_column(column: u64) -> Seq {
    Seq::new(column).unwrap_or(Seq::MAX)
}

pub fn head(ctx: &ReducerContext, stream_key: u64, stream_id: &StreamId) -> Position {
    match ctx.db.sync_head().stream_key().find(stream_key) {
        None => Position::start(stream_id),
        Some(row) => Position {
            seq: seq_from_column(row.head_seq),
            chain: chain_from_column(row.head_chain),
        },
    }
}

/// The next frames from `from` on, in order: a few, and none only if there is none. The host gathers a whole range
/// before it hands out the first row, so short ones are asked for, one after the other. No frame has more events than the
/// longest.
pub fn frames_from(ctx: &ReducerContext, stream_key: u64, from: Seq) -> Vec<SyncEvent> {
    let log = ctx.db.sync_event();
    for skipped in (0..limit::FRAME_EVENTS as u64).step_by(LOOK_EVENTS) {
        let start = from.plus(skipped).get();
        let end = from.plus(skipped + LOOK_EVENTS as u64 - 1).get();
        let rows: Vec<_> = log.by_stream_seq().filter((stream_key, start..=end)).collect();
        if !rows.is_empty() {
            return rows;
        }
    }
    Vec::new()
}

/// Positions looked at in one range: the frames that end there have some 8 MiB if each event is of the largest.
const LOOK_EVENTS: usize = 32;

/// The class of a stream, if it has one.
pub fn stream_class<'a>(classes: &'a [RetentionClass], stream_id: &str) -> Option<&'a RetentionClass> {
    class_of(classes, |class| &class.stream_prefix, stream_id)
}

/// The chain hash of an event that is held, none if it is not.
pub fn held_chain(ctx: &ReducerContext, stream_key: u64, seq: Seq) -> Option<ChainHash> {
    let row = frames_from(ctx, stream_key, seq).into_iter().next()?;
    let frame = Frame::decode(row.first_seq, chain_from_column(row.base_chain), Bytes::from(row.frame)).ok()?;
    frame.chain_at(seq)
}
