//! How long events are held, as the authority's policy says, and which streams are to be looked at for it. Private.

use spacetimedb::{ScheduleAt, Timestamp, table};

use crate::reducers::sweep_log::sweep_log;

#[table(accessor = retention_class)]
pub struct RetentionClass {
    #[primary_key]
    pub class: String,
    /// What the names of its streams begin with; the longest beginning decides.
    pub stream_prefix: String,
    pub window_events: u64,
    /// In microseconds.
    pub window_age: i64,
    /// Whether clients may see its events only when they are durable.
    pub durable_reads: bool,
}

/// One row a stream: when the sweep looks at it next.
#[table(accessor = log_window)]
pub struct LogWindow {
    #[primary_key]
    pub stream_key: u64,
    #[index(btree)]
    pub due_at: Timestamp,
}

/// When the next sweep is due.
#[table(accessor = log_sweep, scheduled(sweep_log))]
pub struct LogSweep {
    #[primary_key]
    #[auto_inc]
    pub sweep_id: u64,
    pub scheduled_at: ScheduleAt,
}
