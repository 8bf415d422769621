//! A provider says what it can do, or that it cannot any more.

use spacetime_sync_proto::access::Scope;
use spacetime_sync_rules::capability::{self, HeldCapability, Published, REMEMBERED, claimed_until};
use spacetime_sync_rules::journal::Key;
use spacetime_sync_rules::quota::Call;
use spacetimedb::{ReducerContext, Table, Timestamp, reducer};

use crate::access::own_session;
use crate::capabilities::forget;
use crate::journal::{check_room, mark};
use crate::log_access::{digest_from_column, digest_to_column};
use crate::quota::spend;
use crate::refuse::{Refused, refused};
use crate::tables::{CapabilityClaim, ProviderCapability, capability_claim, provider_capability};

/// The capability stands for `ttl_seconds`; zero withdraws it. A newer `version` replaces an older one, and the same call again
/// changes nothing.
#[reducer]
// A reducer's arguments are its wire format.
#[allow(clippy::too_many_arguments)]
pub fn publish_provider_capability(
    ctx: &ReducerContext,
    provider_id: String,
    capability: String,
    version: u64,
    price_hint_sats: u64,
    region: String,
    document: String,
    ttl_seconds: u64,
) -> Result<(), Refused> {
    let own = own_session(ctx)?;
    own.may(Scope::Provider)?;
    check_room(ctx)?;
    spend(ctx, Call::Publication)?;
    let names = [provider_id.as_str(), capability.as_str()];
    let publication =
        capability::publication(names, version, price_hint_sats, &region, &document, ttl_seconds).map_err(refused)?;
    let claims = ctx.db.capability_claim();
    let held = |row: CapabilityClaim| HeldCapability {
        capability_id: row.capability_id,
        is_own: row.user_id == own.user_id,
        capability: row.capability,
        version: row.version,
        content: digest_from_column(row.content),
        ends_at_us: row.ends_at.to_micros_since_unix_epoch(),
    };
    let of_provider: Vec<_> = claims.by_name().filter(provider_id.as_str()).map(held).collect();
    let of_user: Vec<_> = claims.user_id().filter(own.user_id.as_str()).map(held).collect();
    let now_us = ctx.timestamp.to_micros_since_unix_epoch();
    let published = capability::publish(&publication, &of_provider, &of_user, now_us).map_err(refused)?;
    let Published::Placed {
        replaces,
        forgets,
        ends_at_us,
    } = published
    else {
        return Ok(());
    };
    let capabilities = ctx.db.provider_capability();
    if let Some(forgotten) = forgets {
        forget(ctx, forgotten);
    }
    mark(
        ctx,
        &Key::Capability {
            provider_id: provider_id.clone(),
            capability: capability.clone(),
        },
    );
    let at = Timestamp::from_micros_since_unix_epoch;
    let ends_at = at(ends_at_us);
    let before = replaces.and_then(|capability_id| claims.capability_id().find(capability_id));
    let before_us = before.map(|claim| claim.until.to_micros_since_unix_epoch());
    let claim = CapabilityClaim {
        capability_id: replaces.unwrap_or(0),
        provider_id: provider_id.clone(),
        capability: capability.clone(),
        user_id: own.user_id,
        version,
        content: digest_to_column(publication.content),
        ends_at,
        until: at(claimed_until(
            (ends_at + REMEMBERED).to_micros_since_unix_epoch(),
            before_us,
        )),
    };
    let capability_id = if replaces.is_some() {
        claims.capability_id().update(claim).capability_id
    } else {
        claims.insert(claim).capability_id
    };
    let row = ProviderCapability {
        capability_id,
        provider_id,
        capability,
        version,
        price_hint_sats,
        region,
        document,
        published_at: ctx.timestamp,
        ends_at,
    };
    let stands = capabilities.capability_id().find(capability_id).is_some();
    match (stands, publication.ttl.is_zero()) {
        (true, true) => {
            capabilities.capability_id().delete(capability_id);
        }
        (true, false) => {
            capabilities.capability_id().update(row);
        }
        (false, true) => {}
        (false, false) => {
            capabilities.insert(row);
        }
    }
    Ok(())
}
