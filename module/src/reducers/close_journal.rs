//! The bridge has found that the module has lost what the authority keeps: SpacetimeDB was restored to an earlier time.

use spacetime_sync_rules::journal::marks;
use spacetimedb::{ReducerContext, reducer};

use crate::access::bridge_only;
use crate::journal::{Rows, now_us};
use crate::log_access::trust_row;
use crate::refuse::{Refused, refused};

/// Refuses calls until the bridge opens the journal again. `settled` is up to where the bridge has found it settled.
#[reducer]
pub fn close_journal(ctx: &ReducerContext, settled: u64) -> Result<(), Refused> {
    bridge_only(ctx, &trust_row(ctx)?)?;
    marks::close(&mut Rows(ctx), settled, now_us(ctx)).map_err(refused)
}
