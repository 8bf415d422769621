//! How long the authority's policy keeps events here, and when a sweep must look at which stream. Private.

use spacetimedb::{ScheduleAt, Timestamp, table};

use crate::reducers::sweep_log::sweep_log;

#[table(accessor = retention_class)]
pub struct RetentionClass {
    #[primary_key]
    pub class: String,
    /// The prefix of its streams' names; the longest matching prefix decides.
    pub stream_prefix: String,
    pub window_events: u64,
    /// In microseconds.
    pub window_age: i64,
    /// Whether clients may see its events only once they are durable.
    pub durable_reads: bool,
}

/// When a sweep must next look at a stream: one row for each stream.
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
