//! The bridge has brought everything back: calls are accepted from here on.

use spacetime_sync_rules::journal::marks;
use spacetimedb::{ReducerContext, reducer};

use crate::access::bridge_only;
use crate::journal::{Rows, now_us};
use crate::log_access::trust_row;
use crate::refuse::{Refused, refused};

/// `epoch` is the authority's, and `newest` the newest mark that the authority was ever given. If it is another epoch than
/// before, or an older mark than what is settled, the authority may lack anything, so everything is marked again.
#[reducer]
pub fn open_journal(ctx: &ReducerContext, epoch: String, newest: u64) -> Result<(), Refused> {
    bridge_only(ctx, &trust_row(ctx)?)?;
    marks::open(&mut Rows(ctx), epoch, newest, now_us(ctx)).map_err(refused)
}
