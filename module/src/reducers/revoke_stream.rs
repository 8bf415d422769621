//! Takes the right to read a stream away from an identity. Delivery ends with this transaction, on live connections
//! too.

use spacetimedb::{Identity, ReducerContext, reducer};

use crate::access::{grant_row, operator, take};
use crate::log_access::trust_row;
use crate::refuse::{Refused, stream_id as parse_stream_id};
use crate::tables::grant_count;

#[reducer]
pub fn revoke_stream(ctx: &ReducerContext, identity: Identity, stream_id: String) -> Result<(), Refused> {
    let row = trust_row(ctx)?;
    operator(ctx, &row)?;
    let stream_key = row.stream_key(&parse_stream_id(&stream_id)?)?;
    if let Some(grant) = grant_row(ctx, identity, stream_key) {
        take(ctx, &grant);
        // So that the next token of a session looks at all streams again, and not only at those that it has.
        ctx.db.grant_count().identity().delete(identity);
    }
    Ok(())
}
