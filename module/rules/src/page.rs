//! Reading: what one read of a log returns.

use spacetime_sync_proto::{Seq, StreamId};

use crate::log::{HeadRow, LogRows, StoredFrame, next_frames};

/// A part of a stream's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Where the log begins and ends.
    pub held: HeadRow,
    /// Consecutive frames. The first one holds the event after the seq asked for, and may begin before it.
    pub frames: Vec<StoredFrame>,
}

/// Reads the frames after a seq: as many as fit into `most_bytes`, but at least one. The page is empty at the head, and
/// if the log no longer holds the event after `after`. A stream that does not exist reads like one without events.
pub fn read(rows: &impl LogRows, stream_id: &StreamId, after: Seq, most_bytes: usize) -> Page {
    let held = rows.head().unwrap_or_else(|| HeadRow::start(stream_id));
    let mut frames = Vec::new();
    let (mut reached, mut bytes) = (after, 0);
    'page: while reached < held.head.seq && reached >= held.held_after() {
        let next = next_frames(rows, reached.next());
        // This happens only if somebody deleted rows. The reader notices that the page does not reach the head.
        if next.is_empty() {
            break;
        }
        for stored in next {
            bytes += stored.frame.bytes.len();
            if !frames.is_empty() && bytes > most_bytes {
                break 'page;
            }
            reached = stored.frame.last_seq;
            frames.push(stored);
        }
    }
    Page { held, frames }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::memory::MemoryLog;
    use crate::log::tests::{events, head_of, held, hold, stream};

    /// A log whose window begins with seq 4: three frames, which end at the seqs 5, 6 and 9.
    fn window() -> MemoryLog {
        let log = events(9, 1);
        let mut rows = MemoryLog::default();
        hold(&mut rows, &log, 4, 5);
        hold(&mut rows, &log, 6, 6);
        hold(&mut rows, &log, 7, 9);
        rows
    }

    /// The seqs at which the frames of a page end.
    fn ends(rows: &MemoryLog, after: u64, most_bytes: usize) -> Vec<u64> {
        let page = read(rows, &stream(), Seq::new(after).unwrap(), most_bytes);
        assert_eq!(page.held, rows.head.unwrap());
        page.frames.iter().map(|stored| stored.frame.last_seq.get()).collect()
    }

    #[test]
    fn a_page_begins_with_the_frame_of_the_next_event_if_the_window_holds_it() {
        for (after, expected) in [
            (0, vec![]),
            (2, vec![]),
            (3, vec![5, 6, 9]),
            (4, vec![5, 6, 9]),
            (5, vec![6, 9]),
            (8, vec![9]),
            (9, vec![]),
            (10, vec![]),
        ] {
            assert_eq!(ends(&window(), after, usize::MAX), expected, "{after}");
        }
    }

    #[test]
    fn a_page_has_the_frames_that_fit_but_at_least_one() {
        let rows = window();
        let two = rows.frames[0].frame.bytes.len() + rows.frames[1].frame.bytes.len();
        let three = two + rows.frames[2].frame.bytes.len();
        for (most_bytes, expected) in [
            (0, vec![5]),
            (two - 1, vec![5]),
            (two, vec![5, 6]),
            (three - 1, vec![5, 6]),
            (three, vec![5, 6, 9]),
        ] {
            assert_eq!(ends(&rows, 3, most_bytes), expected, "{most_bytes}");
        }
    }

    #[test]
    fn a_page_has_more_frames_than_one_look_finds() {
        let rows = held(&events(100, 1));
        assert_eq!(ends(&rows, 20, usize::MAX), Vec::from_iter(21..=100));
    }

    #[test]
    fn a_page_ends_where_frames_were_deleted() {
        let mut rows = window();
        rows.frames.pop();
        assert_eq!(ends(&rows, 3, usize::MAX), [5, 6]);
    }

    #[test]
    fn nothing_is_looked_for_past_the_head() {
        let mut rows = window();
        rows.head.as_mut().unwrap().head = head_of(&events(6, 1));
        assert_eq!(ends(&rows, 6, usize::MAX), [0; 0]);
    }

    #[test]
    fn a_stream_that_does_not_exist_reads_like_one_without_events() {
        let page = read(&MemoryLog::default(), &stream(), Seq::ZERO, usize::MAX);
        let expected = Page {
            held: HeadRow::start(&stream()),
            frames: Vec::new(),
        };
        assert_eq!(page, expected);
    }
}
