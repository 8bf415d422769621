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
