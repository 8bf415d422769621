//! When the next sweep of sessions and presences is due.

use spacetimedb::{ScheduleAt, table};

use crate::reducers::sweep_access::sweep_access;

#[table(accessor = access_sweep, scheduled(sweep_access))]
pub struct AccessSweep {
    #[primary_key]
    #[auto_inc]
    pub sweep_id: u64,
    pub scheduled_at: ScheduleAt,
}
