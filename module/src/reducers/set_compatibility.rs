//! Sets which clients may connect. The bridge applies the same rule when it issues tokens.

use spacetime_sync_proto::access::Compatibility;
use spacetimedb::{ReducerContext, reducer};

use crate::access::operator;
use crate::log_access::trust_row;
use crate::refuse::{Refused, invalid_argument};
use crate::tables::{Issuer, sync_trust};

/// See `Compatibility` of the contract. An empty `max_client_build_id` means that there is no upper bound.
#[reducer]
pub fn set_compatibility(
    ctx: &ReducerContext,
    min_client_build_id: String,
    max_client_build_id: String,
    min_schema_version: u32,
    max_schema_version: u32,
) -> Result<(), Refused> {
    let mut row = trust_row(ctx)?;
    operator(ctx, &row)?;
    let compatibility = Compatibility {
        min_client_build_id,
        max_client_build_id,
        min_schema_version,
        max_schema_version,
    };
    compatibility.check_bounds().map_err(invalid_argument)?;
    let issuer = row
        .issuer
        .ok_or_else(|| invalid_argument("no issuer is trusted yet: call trust_issuer first"))?;
    if issuer.policy().compatibility != compatibility {
        row.issuer = Some(Issuer {
            min_client_build_id: compatibility.min_client_build_id,
            max_client_build_id: compatibility.max_client_build_id,
            min_schema_version,
            max_schema_version,
            ..issuer
        });
        ctx.db.sync_trust().id().update(row);
    }
    Ok(())
}
