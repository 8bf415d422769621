//! Lets an identity read a stream, also one that does not exist yet.

use spacetimedb::{Identity, ReducerContext, Table, reducer};

use crate::log_access::{holds_grant, trust_row};
use crate::refuse::{Refused, refused, stream_id as parse_stream_id};
use crate::tables::{StreamGrant, stream_grant};

#[reducer]
pub fn grant_stream(ctx: &ReducerContext, identity: Identity, stream_id: String) -> Result<(), Refused> {
    let row = trust_row(ctx)?;
    row.trust().operator(ctx.sender()).map_err(refused)?;
    let stream_key = row.stream_key(&parse_stream_id(&stream_id)?)?;
    if !holds_grant(ctx, identity, stream_key) {
        ctx.db.stream_grant().insert(StreamGrant {
            grant_id: 0,
            identity,
            stream_key,
        });
    }
    Ok(())
}
