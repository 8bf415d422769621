//! Removes from the windows the events that their classes no longer keep, a bounded piece each time.

use std::time::Duration;

use spacetime_sync_proto::StreamId;
use spacetime_sync_rules::retention::{Effort, Swept, Window, sweep};
use spacetimedb::{ReducerContext, ScheduleAt, Table, TimeDuration, Timestamp, reducer};

use crate::log_access::{StreamRows, stream_class};
use crate::refuse::{Refused, unauthorized};
use crate::tables::{LogSweep, LogWindow, RetentionClass, log_sweep, log_window, retention_class, sync_stream};

/// How often a sweep looks for streams that are due.
const EVERY: Duration = Duration::from_millis(250);
/// How long a sweep leaves a stream without a class alone.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// Most streams in one sweep.
const STREAMS: usize = 1_000;

#[reducer]
pub fn sweep_log(ctx: &ReducerContext, _due: LogSweep) -> Result<(), Refused> {
    // Clients can call this reducer too.
    if ctx.sender() != ctx.database_identity() {
        return Err(unauthorized("only the database itself calls this"));
    }
    let classes: Vec<RetentionClass> = ctx.db.retention_class().iter().collect();
    if classes.is_empty() {
        return Ok(());
    }
    let windows = ctx.db.log_window();
    let due: Vec<LogWindow> = windows.due_at().filter(..=ctx.timestamp).take(STREAMS).collect();
    let mut effort = Effort::default();
    for row in due {
        let Some(due_at) = sweep_stream(ctx, row.stream_key, &classes, &mut effort) else {
            // The effort is spent, and the stream stays due.
            return Ok(());
        };
        windows.stream_key().update(LogWindow { due_at, ..row });
    }
    Ok(())
}

/// Returns when the next sweep must look at the stream. `None` if the effort was spent before the work was done.
fn sweep_stream(
    ctx: &ReducerContext,
    stream_key: u64,
    classes: &[RetentionClass],
    effort: &mut Effort,
) -> Option<Timestamp> {
    let later = ctx.timestamp + LOOK_AGAIN;
    let Some(stream) = ctx.db.sync_stream().stream_key().find(stream_key) else {
        return Some(later);
    };
    let Some(class) = stream_class(classes, &stream.stream_id) else {
        return Some(later);
    };
    // Never fails: the table holds only valid stream names.
    let Ok(stream_id) = StreamId::new(&stream.stream_id) else {
        return Some(later);
    };
    let window = Window {
        events: class.window_events,
        age_us: class.window_age,
    };
    let mut rows = StreamRows {
        ctx,
        stream_key,
        stream_id: &stream_id,
    };
    let now_us = ctx.timestamp.to_micros_since_unix_epoch();
    match sweep(&mut rows, window, now_us, effort) {
        Swept::Done { look_at_us } => Some(Timestamp::from_micros_since_unix_epoch(look_at_us)),
        Swept::Unfinished => None,
    }
}

/// Makes the next sweep look at the stream.
pub fn look_at(ctx: &ReducerContext, stream_key: u64) {
    let windows = ctx.db.log_window();
    let row = LogWindow {
        stream_key,
        due_at: ctx.timestamp,
    };
    match windows.stream_key().find(stream_key) {
        None => {
            windows.insert(row);
        }
        Some(held) if held.due_at > ctx.timestamp => {
            windows.stream_key().update(row);
        }
        Some(_) => {}
    }
}

/// Schedules the sweeps, unless they already are.
pub fn schedule(ctx: &ReducerContext) {
    if ctx.db.log_sweep().count() == 0 {
        let every = TimeDuration::from_duration(EVERY);
        ctx.db.log_sweep().insert(LogSweep {
            sweep_id: 0,
            scheduled_at: ScheduleAt::Interval(every),
        });
    }
}
