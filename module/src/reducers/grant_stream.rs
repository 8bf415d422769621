//! Lets an identity read a stream, even one that does not exist yet.

use spacetimedb::{Identity, ReducerContext, Table, reducer};

use crate::access::{grant_row, operator};
use crate::log_access::trust_row;
use crate::refuse::{Refused, stream_id as parse_stream_id};
use crate::tables::{StreamGrant, stream_grant};

#[reducer]
pub fn grant_stream(ctx: &ReducerContext, identity: Identity, stream_id: String) -> Result<(), Refused> {
    let row = trust_row(ctx)?;
    operator(ctx, &row)?;
    let stream_key = row.stream_key(&parse_stream_id(&stream_id)?)?;
    let row = StreamGrant {
        grant_id: 0,
        identity,
        stream_key,
        standing: true,
    };
    let grants = ctx.db.stream_grant();
    match grant_row(ctx, identity, stream_key) {
        None => {
            grants.insert(row);
        }
        Some(held) if held.standing => {}
        // From now on the grant outlives the session that it came with.
        Some(StreamGrant { grant_id, .. }) => {
            grants.grant_id().update(StreamGrant { grant_id, ..row });
        }
    }
    Ok(())
}
