//! Removes what has expired: sessions, the owner's grants, presences, capabilities, assignments and what is remembered for a
//! while. A bounded piece each time.

use std::time::Duration;

use spacetimedb::{ReducerContext, ScheduleAt, Table, TimeDuration, reducer};

use crate::access::{end_standing, expire};
use crate::refuse::{Refused, unauthorized};
use crate::tables::{
    AccessSweep, SyncSession, access_sweep, caller_quota, ended_session, revoked_session, standing_grant, stream_grant,
    sync_session,
};
use crate::{assignments, capabilities, presences};

/// Most rows of each kind in one sweep, so that a transaction stays short. The next sweep soon takes the rest.
const AT_ONCE: usize = 1_000;

/// How often a database sweeps that trusts no issuer: only the owner's grants end there.
const WITHOUT_ISSUER: Duration = Duration::from_secs(1);

#[reducer]
pub fn sweep_access(ctx: &ReducerContext, _due: AccessSweep) -> Result<(), Refused> {
    // Clients can call this reducer too.
    if ctx.sender() != ctx.database_identity() {
        return Err(unauthorized("only the database itself calls this"));
    }
    let now = ctx.timestamp;
    let sessions = ctx.db.sync_session();
    let expired: Vec<SyncSession> = sessions.expires_at().filter(..=now).take(AT_ONCE).collect();
    for session in expired {
        expire(ctx, session);
    }
    let forgotten = ctx.db.ended_session().until().filter(..=now).take(AT_ONCE);
    for identity in forgotten.map(|row| row.identity).collect::<Vec<_>>() {
        ctx.db.ended_session().identity().delete(identity);
    }

    let whole = ctx.db.caller_quota().until().filter(..=now).take(AT_ONCE);
    for identity in whole.map(|row| row.identity).collect::<Vec<_>>() {
        ctx.db.caller_quota().identity().delete(identity);
    }

    let given = ctx.db.standing_grant().ends_at().filter(..=now).take(AT_ONCE);
    for grant_id in given.map(|row| row.grant_id).collect::<Vec<_>>() {
        if let Some(grant) = ctx.db.stream_grant().grant_id().find(grant_id) {
            end_standing(ctx, grant);
        }
    }

    presences::sweep(ctx, AT_ONCE);
    capabilities::sweep(ctx, AT_ONCE);
    assignments::sweep(ctx);

    let forgotten: Vec<String> = ctx
        .db
        .revoked_session()
        .until()
        .filter(..=now)
        .take(AT_ONCE)
        .map(|row| row.session_id)
        .collect();
    for session_id in forgotten {
        ctx.db.revoked_session().session_id().delete(session_id);
    }
    Ok(())
}

/// Sweeps every so often from now on.
pub fn schedule(ctx: &ReducerContext, every: Duration) {
    let sweeps = ctx.db.access_sweep();
    let before: Vec<u64> = sweeps.iter().map(|row| row.sweep_id).collect();
    for sweep_id in before {
        sweeps.sweep_id().delete(sweep_id);
    }
    sweeps.insert(AccessSweep {
        sweep_id: 0,
        scheduled_at: ScheduleAt::Interval(TimeDuration::from_duration(every)),
    });
}

/// Sweeps, if nothing does yet.
pub fn schedule_if_none(ctx: &ReducerContext) {
    if ctx.db.access_sweep().count() == 0 {
        schedule(ctx, WITHOUT_ISSUER);
    }
}
