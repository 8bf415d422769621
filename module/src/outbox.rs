//! The rows of the outbox, and how many there are.

use spacetime_sync_rules::outbox::{Counts, Held};
use spacetimedb::{ReducerContext, Table};

use crate::log_access::digest_from_column;
use crate::refuse::{Refused, invalid_argument};
use crate::tables::{BridgeOutbox, OutboxCount, OutboxEntry, bridge_outbox, outbox_count, outbox_entry};

/// An event of the outbox.
pub struct Event {
    pub entry: OutboxEntry,
    pub row: BridgeOutbox,
}

impl Event {
    pub fn find(ctx: &ReducerContext, event_id: &str) -> Option<Self> {
        let entry = ctx.db.outbox_entry().event_id().find(event_id.to_owned())?;
        let row = ctx.db.bridge_outbox().outbox_id().find(entry.outbox_id)?;
        Some(Self { entry, row })
    }

    /// What the rules decide by.
    pub fn held(&self) -> Result<Held, Refused> {
        Ok(Held {
            content: digest_from_column(self.entry.content),
            status: self
                .row
                .status
                .parse()
                .map_err(|error| invalid_argument(format!("{error}")))?,
            published_as: self.row.published_as.clone(),
        })
    }
}

/// How many events there are.
pub fn counts(ctx: &ReducerContext) -> Counts {
    let row = ctx.db.outbox_count().id().find(0);
    row.map_or_else(Counts::default, |row| Counts {
        pending: row.pending,
        done: row.done,
    })
}

/// Notes how many events there are now.
pub fn set_counts(ctx: &ReducerContext, Counts { pending, done }: Counts) {
    let row = OutboxCount { id: 0, pending, done };
    let counts = ctx.db.outbox_count();
    if counts.id().find(0).is_some() {
        counts.id().update(row);
    } else {
        counts.insert(row);
    }
}

/// Forgets the event that has been done for longest.
pub fn forget_oldest(ctx: &ReducerContext) {
    let oldest = ctx.db.outbox_entry().by_age().filter(true).next();
    if let Some(OutboxEntry { outbox_id, .. }) = oldest {
        ctx.db.outbox_entry().outbox_id().delete(outbox_id);
        ctx.db.bridge_outbox().outbox_id().delete(outbox_id);
    }
}
