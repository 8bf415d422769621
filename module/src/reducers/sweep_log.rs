//! What a stream's class does not hold any longer leaves its window: whole frames, the oldest first, a bounded piece each
//! time.

use std::time::Duration;

use spacetime_sync_proto::Seq;
use spacetime_sync_rules::retention::Window;
use spacetimedb::{ReducerContext, ScheduleAt, Table, TimeDuration, Timestamp, reducer};

use crate::log_access::{frames_from, seq_from_column, stream_class};
use crate::refuse::{Refused, unauthorized};
use crate::tables::{
    LogSweep, LogWindow, RetentionClass, SyncHead, log_sweep, log_window, retention_class, sync_event, sync_head,
    sync_stream,
};

/// How often it looks for streams that are due.
const EVERY: Duration = Duration::from_millis(250);
/// How long a stream is left alone for which nothing is to be done, unless it grows.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// A stream is looked at again each time that it has grown by so many events.
const LOOK_EVERY_EVENTS: u64 = 512;
/// Most streams in one sweep.
const STREAMS: usize = 1_000;
/// Most frames that one sweep removes, about.
const FRAMES: u64 = 4_096;
/// Events whose frames are removed at once.
const STEP_EVENTS: u64 = 4_096;
/// Most bytes of frames that one sweep reads to see how old they are, about.
const BYTES: usize = 8 * 1024 * 1024;

/// What one sweep may still do.
struct Effort {
    frames: u64,
    bytes: usize,
}

#[reducer]
pub fn sweep_log(ctx: &ReducerContext, _due: LogSweep) -> Result<(), Refused> {
    // Clients can call it, too.
    if ctx.sender() != ctx.database_identity() {
        return Err(unauthorized("sweeps are the database's own"));
    }
    let classes: Vec<RetentionClass> = ctx.db.retention_class().iter().collect();
    if classes.is_empty() {
        return Ok(());
    }
    let windows = ctx.db.log_window();
    let due: Vec<LogWindow> = windows.due_at().filter(..=ctx.timestamp).take(STREAMS).collect();
    let mut effort = Effort {
        frames: FRAMES,
        bytes: BYTES,
    };
    for row in due {
        let Some(due_at) = sweep_stream(ctx, row.stream_key, &classes, &mut effort) else {
            // The effort is spent, and the stream stays due.
            return Ok(());
        };
        windows.stream_key().update(LogWindow { due_at, ..row });
    }
    Ok(())
}

/// Says when the stream is to be looked at next; none when there is more to do than there was effort left.
fn sweep_stream(
    ctx: &ReducerContext,
    stream_key: u64,
    classes: &[RetentionClass],
    effort: &mut Effort,
) -> Option<Timestamp> {
    let later = ctx.timestamp + LOOK_AGAIN;
    let stream = ctx.db.sync_stream().stream_key().find(stream_key);
    let head = ctx.db.sync_head().stream_key().find(stream_key);
    let (Some(stream), Some(head)) = (stream, head) else {
        return Some(later);
    };
    let Some(class) = stream_class(classes, &stream.stream_id) else {
        return Some(later);
    };
    let window = Window {
        events: class.window_events,
        age_us: class.window_age,
    };
    let mut oldest = head.oldest_seq;

    let past_count = window.past_count(head.head_seq);
    let mut looked_to = oldest.saturating_sub(1);
    while looked_to < past_count {
        if effort.frames == 0 {
            begin_at(ctx, head, oldest);
            return None;
        }
        let to = past_count.min(looked_to + STEP_EVENTS);
        let gone = ctx.db.sync_event().by_stream_seq().delete((stream_key, oldest..=to));
        effort.frames = effort.frames.saturating_sub(gone);
        looked_to = to;
        if gone > 0 {
            let next = frames_from(ctx, stream_key, seq_from_column(to).next())
                .into_iter()
                .next();
            oldest = next.map_or(head.head_seq + 1, |frame| frame.first_seq);
        }
    }

    let now = ctx.timestamp.to_micros_since_unix_epoch();
    let (mut aged_to, mut next) = (None, Some(later));
    'look: while oldest <= head.head_seq {
        let frames = frames_from(ctx, stream_key, seq_from_column(oldest));
        if frames.is_empty() {
            break;
        }
        for frame in frames {
            if !window.is_past_age(frame.last_at, now) {
                let leaves_at = Timestamp::from_micros_since_unix_epoch(window.leaves_at(frame.last_at));
                next = Some(later.min(leaves_at));
                break 'look;
            }
            if effort.bytes == 0 {
                next = None;
                break 'look;
            }
            effort.bytes = effort.bytes.saturating_sub(frame.frame.len());
            aged_to = Some(frame.last_seq);
            oldest = frame.last_seq + 1;
        }
    }
    if let Some(to) = aged_to {
        ctx.db
            .sync_event()
            .by_stream_seq()
            .delete((stream_key, head.oldest_seq..=to));
    }
    begin_at(ctx, head, oldest);
    next
}

fn begin_at(ctx: &ReducerContext, head: SyncHead, oldest_seq: u64) {
    if head.oldest_seq != oldest_seq {
        ctx.db.sync_head().stream_key().update(SyncHead { oldest_seq, ..head });
    }
}

/// Whether a stream has grown so far that it is to be looked at.
pub fn is_mark_passed(before: Seq, after: Seq) -> bool {
    before.get() / LOOK_EVERY_EVENTS != after.get() / LOOK_EVERY_EVENTS
}

/// The stream is looked at with the next sweep.
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

/// Sees to it that there is a sweep, and one only.
pub fn schedule(ctx: &ReducerContext) {
    if ctx.db.log_sweep().count() == 0 {
        let every = TimeDuration::from_duration(EVERY);
        ctx.db.log_sweep().insert(LogSweep {
            sweep_id: 0,
            scheduled_at: ScheduleAt::Interval(every),
        });
    }
}
