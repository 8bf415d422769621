//! Lets an identity read a stream for some time, even a stream that does not exist yet.

use std::time::Duration;

use spacetime_sync_proto::limit;
use spacetimedb::{Identity, ReducerContext, Table, reducer};

use crate::access::grant_row;
use crate::log_access::trust_row;
use crate::reducers::sweep_access;
use crate::refuse::{Refused, invalid_argument, refused, stream_id as parse_stream_id};
use crate::tables::{StandingGrant, StreamGrant, standing_grant, stream_grant};

/// The grant ends after `seconds`. Given again, it ends that long from now.
#[reducer]
pub fn grant_stream(ctx: &ReducerContext, identity: Identity, stream_id: String, seconds: u64) -> Result<(), Refused> {
    let trust = trust_row(ctx)?;
    // Not the bridge: its token must not give rights that outlive it.
    trust.trust().owner_only(ctx.sender()).map_err(refused)?;
    let stream_key = trust.stream_key(&parse_stream_id(&stream_id)?)?;
    if !(1..=limit::GRANT_SECONDS).contains(&seconds) {
        let message = format!("a grant lasts 1 to {} s, not {seconds}", limit::GRANT_SECONDS);
        return Err(invalid_argument(message));
    }
    let grants = ctx.db.stream_grant();
    let given = ctx.db.standing_grant();
    let mut beside_session = false;
    let grant = match grant_row(ctx, identity, stream_key) {
        None => grants.insert(StreamGrant {
            grant_id: 0,
            identity,
            stream_key,
            standing: true,
        }),
        // From now on the grant outlives the session that it came with.
        Some(held) if !held.standing => {
            beside_session = true;
            grants.grant_id().update(StreamGrant { standing: true, ..held })
        }
        Some(held) => {
            beside_session = given
                .grant_id()
                .find(held.grant_id)
                .is_some_and(|given| given.beside_session);
            held
        }
    };
    given.grant_id().delete(grant.grant_id);
    given.insert(StandingGrant {
        grant_id: grant.grant_id,
        identity,
        stream_id,
        given_at: ctx.timestamp,
        ends_at: ctx.timestamp + Duration::from_secs(seconds),
        beside_session,
    });
    sweep_access::schedule_if_none(ctx);
    Ok(())
}
