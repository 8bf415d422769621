//! Sets whose tokens open a session. From then on a caller needs such a token to connect, or a grant that an operator
//! gave.

use std::time::Duration;

use spacetime_sync_proto::access::{Compatibility, SERVICE_SUBJECT, check_issuer_url};
use spacetime_sync_proto::limit;
use spacetimedb::{Identity, ReducerContext, reducer};

use crate::log_access::trust_row;
use crate::reducers::sweep_access;
use crate::refuse::{Refused, invalid_argument, refused};
use crate::tables::{Issuer, sync_trust};

/// `issuer` and `audience` must equal `iss` and `aud` of its tokens. A session sees nothing more `sweep_every_ms` after
/// it has expired, at the latest.
#[reducer]
pub fn trust_issuer(
    ctx: &ReducerContext,
    issuer: String,
    audience: String,
    sweep_every_ms: u32,
) -> Result<(), Refused> {
    let mut row = trust_row(ctx)?;
    row.trust().owner_only(ctx.sender()).map_err(refused)?;
    check_issuer_url(&issuer).map_err(|message| invalid_argument(format!("issuer: {message}")))?;
    if audience.is_empty() {
        return Err(invalid_argument("audience: expected a name, found an empty text"));
    }
    if !limit::SWEEP_MS.contains(&sweep_every_ms) {
        return Err(invalid_argument(format!(
            "sweep_every_ms: expected {} to {}, found {sweep_every_ms}",
            limit::SWEEP_MS.start(),
            limit::SWEEP_MS.end()
        )));
    }
    let compatibility = row
        .issuer
        .as_ref()
        .map_or_else(Compatibility::default, |held| held.policy().compatibility);
    row.issuer = Some(Issuer {
        service: Identity::from_claims(&issuer, SERVICE_SUBJECT),
        url: issuer,
        audience,
        sweep_every_ms,
        min_client_build_id: compatibility.min_client_build_id,
        max_client_build_id: compatibility.max_client_build_id,
        min_schema_version: compatibility.min_schema_version,
        max_schema_version: compatibility.max_schema_version,
    });
    ctx.db.sync_trust().id().update(row);
    sweep_access::schedule(ctx, Duration::from_millis(sweep_every_ms.into()));
    Ok(())
}
