//! The bridge brings back what SpacetimeDB has lost, as the authority keeps it.

use spacetime_sync_rules::journal::marks::check_closed;
use spacetimedb::{ReducerContext, reducer};

use crate::access::bridge_only;
use crate::journal::{self, JournalEntry, Rows, now_us};
use crate::log_access::trust_row;
use crate::refuse::{Refused, refused};

/// Writes those entries that are newer than what is held. Once the journal is open, nothing comes back.
#[reducer]
pub fn bring_back(ctx: &ReducerContext, entries: Vec<JournalEntry>) -> Result<(), Refused> {
    bridge_only(ctx, &trust_row(ctx)?)?;
    check_closed(&mut Rows(ctx), now_us(ctx)).map_err(refused)?;
    journal::bring_back(ctx, &entries)
}
