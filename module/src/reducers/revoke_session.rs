//! Ends a session before it expires, and keeps it from coming back. Delivery ends with this transaction.

use std::time::Duration;

use spacetime_sync_proto::Label;
use spacetime_sync_proto::access::SyncClaims;
use spacetime_sync_rules::session::REVOKED_SECONDS;
use spacetimedb::{ReducerContext, Table, reducer};

use crate::access::{end, operator};
use crate::log_access::trust_row;
use crate::refuse::{Refused, invalid_argument};
use crate::tables::{RevokedSession, revoked_session, sync_session};

#[reducer]
pub fn revoke_session(ctx: &ReducerContext, session_id: String) -> Result<(), Refused> {
    operator(ctx, &trust_row(ctx)?)?;
    let name = Label::new(&session_id).map_err(|error| invalid_argument(format!("session_id: {error}")))?;
    SyncClaims::check_session_name(&name).map_err(|error| invalid_argument(error.to_string()))?;
    let revoked = ctx.db.revoked_session();
    revoked.session_id().delete(session_id.clone());
    let until = ctx.timestamp + Duration::from_secs(REVOKED_SECONDS);
    if let Some(session) = ctx.db.sync_session().session_id().find(session_id.clone()) {
        end(ctx, session.identity);
    }
    revoked.insert(RevokedSession { session_id, until });
    Ok(())
}
