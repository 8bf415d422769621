//! The authority keeps what the bridge has read.

use spacetime_sync_rules::journal::marks;
use spacetimedb::{ReducerContext, reducer};

use crate::access::bridge_only;
use crate::journal::{Rows, now_us};
use crate::log_access::trust_row;
use crate::refuse::{Refused, refused};

/// Forgets the marks up to `to`. What has changed since it was read has a later mark. A repeat changes nothing.
#[reducer]
pub fn settle_journal(ctx: &ReducerContext, to: u64) -> Result<(), Refused> {
    bridge_only(ctx, &trust_row(ctx)?)?;
    marks::settle(&mut Rows(ctx), to, now_us(ctx)).map_err(refused)
}
