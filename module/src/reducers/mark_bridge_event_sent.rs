//! A mirror says what became of an event of the outbox.

use spacetime_sync_proto::access::Scope;
use spacetime_sync_rules::outbox::{self, Effect};
use spacetime_sync_rules::quota::Call;
use spacetimedb::{ReducerContext, reducer};

use crate::access::own_session;
use crate::outbox::{Event, counts, forget_oldest, set_counts};
use crate::quota::spend;
use crate::refuse::{Refused, refused};
use crate::tables::{BridgeOutbox, OutboxEntry, bridge_outbox, outbox_entry};

/// `published_as` says as what it was sent. Empty: it never will be. The same call again changes nothing.
#[reducer]
pub fn mark_bridge_event_sent(ctx: &ReducerContext, event_id: String, published_as: String) -> Result<(), Refused> {
    own_session(ctx)?.may(Scope::Mirror)?;
    spend(ctx, Call::Outbox)?;
    let outcome = outbox::outcome(&event_id, &published_as).map_err(refused)?;
    let found = Event::find(ctx, &event_id);
    let held = found.as_ref().map(Event::held).transpose()?;
    let effect = outbox::mark(&outcome, held.as_ref()).map_err(refused)?;
    let (Effect::New, Some(Event { entry, row })) = (effect, found) else {
        return Ok(());
    };
    let mut counts = counts(ctx);
    if !entry.is_done {
        counts.pending = counts.pending.saturating_sub(1);
        if outbox::is_full(counts) {
            forget_oldest(ctx);
        } else {
            counts.done += 1;
        }
        set_counts(ctx, counts);
    }
    let changed_at = ctx.timestamp;
    ctx.db.outbox_entry().outbox_id().update(OutboxEntry {
        is_done: true,
        changed_at,
        ..entry
    });
    ctx.db.bridge_outbox().outbox_id().update(BridgeOutbox {
        payload: String::new(),
        status: outcome.status().as_str().to_owned(),
        published_as,
        changed_at,
        ..row
    });
    Ok(())
}
