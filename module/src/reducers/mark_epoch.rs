//! Takes down which history of the authority this is and how far it has come. One that is behind what was said before, or
//! another one, is refused: the authority was restored, and what clients have seen may be no part of it.

use spacetime_sync_proto::{Refusal, RefusalCode, limit};
use spacetimedb::{ReducerContext, Table, reducer};

use crate::access::operator;
use crate::log_access::trust_row;
use crate::refuse::{Refused, invalid_argument, refused};
use crate::tables::{LaneEpoch, lane_epoch};

/// `begin` says that an operator has made the streams end where this history has them: whatever was said before is over.
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
                "the authority is at epoch {} beat {}, this lane has carried epoch {} up to beat {}: the authority was \
                 restored to an earlier time, or is another one; run: spacetime-sync rewind",
                row.epoch, row.beat, held.epoch, held.beat
            );
            return Err(refused(Refusal::new(RefusalCode::EpochBehind, message)));
        }
    }
    Ok(())
}
