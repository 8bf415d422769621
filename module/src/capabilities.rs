//! Which user a provider's name belongs to, the end of capabilities, and how the journal has them.

use spacetime_sync_proto::{Label, Refusal, RefusalCode};
use spacetime_sync_rules::journal::{Capability, HeldClaim, Key, Standing, capability_comes_back, capability_is_over};
use spacetimedb::{ReducerContext, Table, Timestamp};

use crate::journal::{check_closed, mark};
use crate::log_access::{digest_from_column, digest_to_column};
use crate::refuse::{Refused, refused};
use crate::tables::{CapabilityClaim, ProviderCapability, capability_claim, provider_capability};

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

/// Forgets a capability, and that its provider's name is its user's.
pub fn forget(ctx: &ReducerContext, capability_id: u64) {
    let claims = ctx.db.capability_claim().capability_id();
    if let Some(claim) = claims.find(capability_id) {
        claims.delete(capability_id);
        let (provider_id, capability) = (claim.provider_id, claim.capability);
        mark(
            ctx,
            &Key::Capability {
                provider_id,
                capability,
            },
        );
    }
    ctx.db.provider_capability().capability_id().delete(capability_id);
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
        forget(ctx, capability_id);
    }
}

/// A capability as the journal has it.
pub fn document(ctx: &ReducerContext, provider_id: &str, capability: &str) -> Option<Capability> {
    let claim = claim(ctx, provider_id, capability)?;
    let stands = ctx.db.provider_capability().capability_id().find(claim.capability_id);
    Some(Capability {
        user_id: claim.user_id,
        version: claim.version,
        content: digest_from_column(claim.content),
        ends_at: claim.ends_at.to_micros_since_unix_epoch(),
        until: claim.until.to_micros_since_unix_epoch(),
        stands: stands.map(|row| Standing {
            price_hint_sats: row.price_hint_sats,
            region: row.region,
            document: row.document,
            published_at: row.published_at.to_micros_since_unix_epoch(),
        }),
    })
}

fn claim(ctx: &ReducerContext, provider_id: &str, capability: &str) -> Option<CapabilityClaim> {
    ctx.db
        .capability_claim()
        .by_name()
        .filter((provider_id, capability))
        .next()
}

/// Writes a capability as the journal has it, if that is newer than what is held.
pub fn bring_back(
    ctx: &ReducerContext,
    provider_id: String,
    capability: String,
    kept: Capability,
) -> Result<(), Refused> {
    let claims = ctx.db.capability_claim();
    let held = claim(ctx, &provider_id, &capability);
    let held = held.map(|held| HeldClaim {
        is_same_user: held.user_id == kept.user_id,
        version: held.version,
        content: digest_from_column(held.content),
        until: held.until.to_micros_since_unix_epoch(),
    });
    let now_us = ctx.timestamp.to_micros_since_unix_epoch();
    if capability_is_over(held, &kept, now_us) {
        mark(
            ctx,
            &Key::Capability {
                provider_id,
                capability,
            },
        );
        return Ok(());
    }
    if !capability_comes_back(held, &kept, now_us) {
        return Ok(());
    }
    check_closed(ctx)?;
    let of_others = claims.by_name().filter(provider_id.as_str());
    let of_others: Vec<u64> = of_others
        .filter(|claim| claim.user_id != kept.user_id || claim.capability == capability)
        .map(|claim| claim.capability_id)
        .collect();
    for capability_id in of_others {
        forget(ctx, capability_id);
    }
    let ends_at = Timestamp::from_micros_since_unix_epoch(kept.ends_at);
    let claim = claims.insert(CapabilityClaim {
        capability_id: 0,
        provider_id: provider_id.clone(),
        capability: capability.clone(),
        user_id: kept.user_id,
        version: kept.version,
        content: digest_to_column(kept.content),
        ends_at,
        until: Timestamp::from_micros_since_unix_epoch(kept.until),
    });
    if let Some(stands) = kept.stands
        && ends_at > ctx.timestamp
    {
        ctx.db.provider_capability().insert(ProviderCapability {
            capability_id: claim.capability_id,
            provider_id,
            capability,
            version: kept.version,
            price_hint_sats: stands.price_hint_sats,
            region: stands.region,
            document: stands.document,
            published_at: Timestamp::from_micros_since_unix_epoch(stands.published_at),
            ends_at,
        });
    }
    Ok(())
}
