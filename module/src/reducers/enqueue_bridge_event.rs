//! An event for the world outside is put into the outbox.

use spacetime_sync_proto::OutboxStatus;
use spacetime_sync_proto::access::Scope;
use spacetime_sync_rules::outbox::{self, Counts, Effect};
use spacetime_sync_rules::quota::Call;
use spacetimedb::{ReducerContext, Table, reducer};

use crate::access::own_session;
use crate::log_access::{digest_to_column, trust_row};
use crate::outbox::{Event, counts, set_counts};
use crate::quota::spend;
use crate::refuse::{Refused, refused};
use crate::tables::{BridgeOutbox, OutboxEntry, bridge_outbox, outbox_entry};

/// The same call again changes nothing, whatever has become of the event.
#[reducer]
pub fn enqueue_bridge_event(
    ctx: &ReducerContext,
    event_id: String,
    transport: String,
    payload: String,
) -> Result<(), Refused> {
    own_session(ctx)?.may(Scope::Mirror)?;
    spend(ctx, Call::Outbox)?;
    let event = outbox::enqueued(&event_id, &transport, &payload).map_err(refused)?;
    let held = Event::find(ctx, &event_id).map(|held| held.held()).transpose()?;
    let before = counts(ctx);
    let effect = outbox::enqueue(&event, held.as_ref(), before).map_err(refused)?;
    if effect == Effect::Repeated {
        return Ok(());
    }
    let entry = ctx.db.outbox_entry().insert(OutboxEntry {
        outbox_id: 0,
        event_id: event_id.clone(),
        content: digest_to_column(event.content),
        is_done: false,
        changed_at: ctx.timestamp,
    });
    ctx.db.bridge_outbox().insert(BridgeOutbox {
        outbox_id: entry.outbox_id,
        audience_key: trust_row(ctx)?.mirrors_key()?,
        event_id,
        transport,
        payload: event.payload,
        status: OutboxStatus::Pending.as_str().to_owned(),
        published_as: String::new(),
        enqueued_at: ctx.timestamp,
        changed_at: ctx.timestamp,
    });
    let pending = before.pending + 1;
    set_counts(ctx, Counts { pending, ..before });
    Ok(())
}
