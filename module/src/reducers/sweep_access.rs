//! Removes what has expired: sessions, presences and remembered revocations. A bounded piece each time.

use spacetime_sync_rules::presence::{self, OFFLINE, TTL_EXPIRED};
use spacetimedb::{Identity, ReducerContext, reducer};

use crate::access::end;
use crate::refuse::{Refused, unauthorized};
use crate::tables::{AccessSweep, SessionPresence, revoked_session, session_presence, sync_session};

/// Most rows of each kind in one sweep, so that a transaction stays short. The next sweep soon takes the rest.
const AT_ONCE: usize = 1_000;

#[reducer]
pub fn sweep_access(ctx: &ReducerContext, _due: AccessSweep) -> Result<(), Refused> {
    // Clients can call this reducer too.
    if ctx.sender() != ctx.database_identity() {
        return Err(unauthorized("only the database itself calls this"));
    }
    let now = ctx.timestamp;
    let ended: Vec<Identity> = ctx
        .db
        .sync_session()
        .expires_at()
        .filter(..=now)
        .take(AT_ONCE)
        .map(|row| row.identity)
        .collect();
    for identity in ended {
        end(ctx, identity);
    }

    let presences = ctx.db.session_presence();
    let stale: Vec<SessionPresence> = presences.holds_until().filter(..=now).take(AT_ONCE).collect();
    for row in stale {
        if row.status == OFFLINE {
            presences.presence_id().delete(row.presence_id);
        } else {
            presences.presence_id().update(SessionPresence {
                status: OFFLINE.to_owned(),
                reason: TTL_EXPIRED.to_owned(),
                holds_until: now + presence::holds_for(OFFLINE),
                ..row
            });
        }
    }

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
