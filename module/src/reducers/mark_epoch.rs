//! Records the authority's epoch and beat. An older beat or another epoch is refused: the authority was restored, and
//! its history may lack events that clients have seen.

use spacetime_sync_proto::{Refusal, RefusalCode, limit};
use spacetimedb::{ReducerContext, Table, reducer};

use crate::access::operator;
use crate::log_access::trust_row;
use crate::refuse::{Refused, invalid_argument, refused};
use crate::tables::{LaneEpoch, lane_epoch};

/// With `begin` the call replaces the record. An operator sets it after rewinding the streams to this history.
#[reducer]
pub fn mark_epoch(ctx: &ReducerContext, epoch: String, beat: u64, begin: bool) -> Result<(), Refused> {
    operator(ctx, &trust_row(ctx)?)?;
    if epoch.is_empty() || epoch.len() > limit::NAME_BYTES {
        return Err(invalid_argument(format!(
            "epoch: expected 1 to {} bytes, found {}",
            limit::NAME_BYTES,
            epoch.len()
        )));
    }
    let row = LaneEpoch { id: 0, epoch, beat };
    match ctx.db.lane_epoch().id().find(0) {
        None => {
            ctx.db.lane_epoch().insert(row);
        }
        Some(held) if begin || (held.epoch == row.epoch && held.beat <= row.beat) => {
            ctx.db.lane_epoch().id().update(row);
        }
        Some(held) => {
            let message = format!(
                "the authority is at epoch {} beat {}, but this lane has carried epoch {} up to beat {}: the authority was \
                 restored to an earlier time, or is another one; run: spacetime-sync rewind",
                row.epoch, row.beat, held.epoch, held.beat
            );
            return Err(refused(Refusal::new(RefusalCode::EpochBehind, message)));
        }
    }
    Ok(())
}
