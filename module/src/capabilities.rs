//! Which user a provider's name belongs to, and the end of capabilities.

use spacetime_sync_proto::{Label, Refusal, RefusalCode};
use spacetimedb::ReducerContext;

use crate::refuse::{Refused, refused};
use crate::tables::{capability_claim, provider_capability};

/// The user to whom a provider's name belongs.
pub fn user_of(ctx: &ReducerContext, provider_id: &Label) -> Result<String, Refused> {
    let claims = ctx.db.capability_claim();
    let claim = claims.by_name().filter(provider_id.as_str()).next();
    claim.map(|claim| claim.user_id).ok_or_else(|| {
        let message =
            format!("nobody has published a capability as {provider_id} lately: a provider publishes one first");
        refused(Refusal::new(RefusalCode::CapabilityConflict, message))
    })
}

/// Removes capabilities that have ended, and forgets those that ended long ago, at most so many of each.
pub fn sweep(ctx: &ReducerContext, most: usize) {
    let now = ctx.timestamp;
    let capabilities = ctx.db.provider_capability();
    let ended = capabilities.ends_at().filter(..=now).take(most);
    for capability_id in ended.map(|row| row.capability_id).collect::<Vec<_>>() {
        capabilities.capability_id().delete(capability_id);
    }
    let claims = ctx.db.capability_claim();
    let forgotten = claims.until().filter(..=now).take(most);
    for capability_id in forgotten.map(|row| row.capability_id).collect::<Vec<_>>() {
        claims.capability_id().delete(capability_id);
    }
}
