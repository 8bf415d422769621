//! Counts what each caller does.

use spacetime_sync_rules::quota::Call;
use spacetimedb::{ReducerContext, Table, Timestamp};

use crate::refuse::{Refused, refused};
use crate::tables::{CallerQuota, caller_quota};

/// Counts a call of a caller who may make it, or refuses it because there were too many. Nobody else is counted: identities
/// cost nothing, and each would leave a row.
pub fn spend(ctx: &ReducerContext, call: Call) -> Result<(), Refused> {
    let (quotas, now) = (ctx.db.caller_quota(), ctx.timestamp);
    let held = quotas.identity().find(ctx.sender());
    let is_held = held.is_some();
    let mut row = held.unwrap_or(CallerQuota {
        identity: ctx.sender(),
        acknowledgements: now,
        heartbeats: now,
        until: now,
        publications: now,
        assignments: now,
        signals: now,
        challenges: now,
        outbox: now,
    });
    let whole_at = match call {
        Call::Acknowledgement => &mut row.acknowledgements,
        Call::Heartbeat => &mut row.heartbeats,
        Call::Publication => &mut row.publications,
        Call::Assignment => &mut row.assignments,
        Call::Signal => &mut row.signals,
        Call::Challenge => &mut row.challenges,
        Call::Outbox => &mut row.outbox,
    };
    let (whole_at_us, now_us) = (whole_at.to_micros_since_unix_epoch(), now.to_micros_since_unix_epoch());
    let after_us = call.rate().take(whole_at_us, now_us).map_err(refused)?;
    *whole_at = Timestamp::from_micros_since_unix_epoch(after_us);
    let others = [
        row.heartbeats,
        row.publications,
        row.assignments,
        row.signals,
        row.challenges,
        row.outbox,
    ];
    row.until = others.into_iter().fold(row.acknowledgements, Timestamp::max);
    if is_held {
        quotas.identity().update(row);
    } else {
        quotas.insert(row);
    }
    Ok(())
}
