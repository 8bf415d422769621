//! The bridge brings back what SpacetimeDB has lost, as the authority keeps it.

use spacetimedb::{ReducerContext, reducer};

use crate::access::bridge_only;
use crate::journal::{self, JournalEntry};
use crate::log_access::trust_row;
use crate::refuse::Refused;

/// Writes those entries that are newer than what is held, and marks what is over. If there is a newer one while the journal is open,
/// the call is refused, and the bridge knows that the module has lost something.
#[reducer]
pub fn bring_back(ctx: &ReducerContext, entries: Vec<JournalEntry>) -> Result<(), Refused> {
    bridge_only(ctx, &trust_row(ctx)?)?;
    journal::bring_back(ctx, entries)
}
