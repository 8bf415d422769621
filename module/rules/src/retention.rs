//! Retention: which frames leave a stream's window, and when a sweep must look at the stream.

use spacetime_sync_proto::Seq;

use crate::log::{HeadRow, LogRows, next_frames, oldest_after};

/// If a stream has nothing to remove, a sweep looks at it again after this long, in microseconds.
const LOOK_AGAIN_US: i64 = 600 * 1_000_000;
/// A sweep also looks at a stream each time the stream has grown by this many events.
const LOOK_EVERY_EVENTS: u64 = 512;
/// One step removes the frames that end within this many seqs.
const STEP_EVENTS: u64 = 4_096;

/// How much of a stream SpacetimeDB holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// How many of the newest events, at most.
    pub events: u64,
    /// How old an event may get, in microseconds.
    pub age_us: i64,
}

impl Window {
    /// The last seq that the window has no room for; zero if it has room for all.
    pub fn past_count(&self, head: Seq) -> Seq {
        // Infallible: the number is not past the head.
        Seq::new(head.get().saturating_sub(self.events)).unwrap_or(head)
    }

    /// When a frame becomes too old. Its newest event decides, and times never go back within a stream.
    pub fn leaves_at(&self, last_at_us: i64) -> i64 {
        last_at_us.saturating_add(self.age_us)
    }

    /// Whether a frame is too old.
    pub fn is_past_age(&self, last_at_us: i64, now_us: i64) -> bool {
        self.leaves_at(last_at_us) < now_us
    }
}

/// How much one sweep may still do, over all the streams that it looks at. The last step may exceed it a little.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// How many frames it may remove.
    pub frames: u64,
    /// How many bytes of frames it may read to see how old they are.
    pub bytes: usize,
}

impl Default for Effort {
    fn default() -> Self {
        Self {
            frames: 4_096,
            bytes: 8 * 1024 * 1024,
        }
    }
}

/// How far a sweep got with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    /// Every frame that had to leave is removed.
    Done {
        /// When the stream must be looked at again, in microseconds.
        look_at_us: i64,
    },
    /// The effort was spent first. The next sweep continues.
    Unfinished,
}

/// Removes the frames that are outside a stream's window, the oldest first. Frames leave whole.
pub fn sweep(rows: &mut impl LogRows, window: Window, now_us: i64, effort: &mut Effort) -> Swept {
    let Some(before) = rows.head() else {
        return Swept::Done {
            look_at_us: now_us.saturating_add(LOOK_AGAIN_US),
        };
    };
    let mut held = before;
    let swept = if remove_past_count(rows, &mut held, window, effort) {
        remove_past_age(rows, &mut held, window, now_us, effort)
    } else {
        Swept::Unfinished
    };
    debug_assert!(held.oldest_seq >= before.oldest_seq && held.oldest_seq <= held.head.seq.next());
    if held != before {
        rows.update_head(held);
    }
    swept
}

/// Removes the frames that exceed the window's count. Returns false if the effort was spent first.
fn remove_past_count(rows: &mut impl LogRows, held: &mut HeadRow, window: Window, effort: &mut Effort) -> bool {
    let past_count = window.past_count(held.head.seq);
    let mut looked_to = held.held_after();
    while looked_to < past_count {
        if effort.frames == 0 {
            return false;
        }
        let to = past_count.min(looked_to.plus(STEP_EVENTS));
        let removed = rows.delete_frames_ending_in(held.oldest_seq..=to);
        effort.frames = effort.frames.saturating_sub(removed);
        looked_to = to;
        held.oldest_seq = oldest_after(&*rows, to, held.head.seq);
    }
    true
}

/// Removes the frames that are too old, and returns when the sweep must look at the stream again.
fn remove_past_age(
    rows: &mut impl LogRows,
    held: &mut HeadRow,
    window: Window,
    now_us: i64,
    effort: &mut Effort,
) -> Swept {
    let later = now_us.saturating_add(LOOK_AGAIN_US);
    let (first, mut leaving) = (held.oldest_seq, None);
    let mut swept = Swept::Done { look_at_us: later };
    'look: while !held.is_empty() {
        let frames = next_frames(&*rows, held.oldest_seq);
        if frames.is_empty() {
            break;
        }
        for stored in frames {
            if !window.is_past_age(stored.last_at_us, now_us) {
                swept = Swept::Done {
                    look_at_us: later.min(window.leaves_at(stored.last_at_us)),
                };
                break 'look;
            }
            if effort.bytes == 0 {
                swept = Swept::Unfinished;
                break 'look;
            }
            effort.bytes = effort.bytes.saturating_sub(stored.frame.bytes.len());
            held.oldest_seq = stored.frame.last_seq.next();
            leaving = Some(first..=stored.frame.last_seq);
        }
    }
    if let Some(leaving) = leaving {
        rows.delete_frames_ending_in(leaving);
    }
    swept
}

/// Whether the next sweep must look at a stream after an append. It must if the stream held no event, because nobody
/// has yet noted when its first frame gets too old, and if the stream has grown past a mark.
pub fn must_look_after_append(before: HeadRow, head: Seq) -> bool {
    before.is_empty() || before.head.seq.get() / LOOK_EVERY_EVENTS != head.get() / LOOK_EVERY_EVENTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::memory::MemoryLog;
    use crate::log::tests::{events, held, hold};

    /// A log of nine events, one committed every microsecond: three frames, which end at the seqs 2, 6 and 9.
    fn three_frames() -> MemoryLog {
        let log = events(9, 1);
        let mut rows = MemoryLog::default();
        hold(&mut rows, &log, 1, 2);
        hold(&mut rows, &log, 3, 6);
        hold(&mut rows, &log, 7, 9);
        rows
    }

    /// Sweeps, and expects that the window afterwards begins with the seq `oldest`, and that as many frames are `gone`.
    fn sweeps(before: &MemoryLog, window: Window, now_us: i64, mut effort: Effort, oldest: u64, gone: usize) -> Swept {
        let mut rows = before.clone();
        let swept = sweep(&mut rows, window, now_us, &mut effort);
        assert_eq!(rows.head.unwrap().oldest_seq.get(), oldest, "at {now_us}");
        assert_eq!(rows.frames, before.frames[gone..], "at {now_us}");
        swept
    }

    #[test]
    fn the_newest_events_stay_and_none_gets_too_old() {
        let window = Window {
            events: 10,
            age_us: 100,
        };
        let past_count = |head| window.past_count(Seq::new(head).unwrap()).get();
        assert_eq!([9, 10, 11, 25].map(past_count), [0, 0, 1, 15]);
        assert!(!window.is_past_age(50, 150));
        assert!(window.is_past_age(50, 151));
        assert!(!window.is_past_age(i64::MAX, i64::MAX));
    }

    #[test]
    fn a_frame_leaves_once_its_newest_event_is_too_old() {
        let window = Window {
            events: 100,
            age_us: 100,
        };
        for (now_us, oldest, gone, look_at_us) in [
            (50, 1, 0, 102),
            (102, 1, 0, 102),
            (103, 3, 1, 106),
            (106, 3, 1, 106),
            (107, 7, 2, 109),
            (110, 10, 3, 110 + LOOK_AGAIN_US),
        ] {
            let swept = sweeps(&three_frames(), window, now_us, Effort::default(), oldest, gone);
            assert_eq!(swept, Swept::Done { look_at_us }, "at {now_us}");
        }
    }

    #[test]
    fn a_sweep_looks_again_before_long_however_old_events_may_get() {
        let window = Window {
            events: 100,
            age_us: i64::MAX,
        };
        let swept = sweeps(&three_frames(), window, 50, Effort::default(), 1, 0);
        let look_at_us = 50 + LOOK_AGAIN_US;
        assert_eq!(swept, Swept::Done { look_at_us });
    }

    #[test]
    fn a_sweep_ends_when_its_effort_is_spent() {
        let window = Window { events: 5, age_us: 100 };
        let first = three_frames().frames[0].frame.bytes.len();
        for (frames, bytes, oldest, gone) in [(0, 1_000, 1, 0), (1, 0, 3, 1), (1, 1, 7, 2)] {
            let effort = Effort { frames, bytes };
            let swept = sweeps(&three_frames(), window, 1_000, effort, oldest, gone);
            assert_eq!(swept, Swept::Unfinished, "{effort:?}");
        }
        let whole = Window { events: 100, ..window };
        for (bytes, oldest, gone) in [(0, 1, 0), (1, 3, 1), (first, 3, 1), (first + 1, 7, 2)] {
            let effort = Effort { frames: 0, bytes };
            let swept = sweeps(&three_frames(), whole, 1_000, effort, oldest, gone);
            assert_eq!(swept, Swept::Unfinished, "{effort:?}");
        }
    }

    /// The owner deleted the oldest frames. The head row must not go on saying that the log holds them.
    #[test]
    fn a_sweep_passes_over_a_hole_at_the_beginning() {
        let mut rows = held(&events(30, 1));
        rows.frames.drain(..12);
        let window = Window {
            events: 20,
            age_us: i64::MAX,
        };
        sweeps(&rows, window, 0, Effort::default(), 13, 0);
    }
}
