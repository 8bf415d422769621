//! Checks whether committed events that are not yet published can be published. It reads the authority's log as the
//! bridge does. Whatever it finds has halted the stream, or will.

use serde::Serialize;
use spacetime_sync_authority::{Authority, AuthorityError};
use spacetime_sync_lane::prepare;
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Seq, StreamProgress, error_text};

/// Most events read at once, and most bytes of their payloads: the bridge's defaults.
const PAGE_EVENTS: usize = 1_000;
const PAGE_BYTES: usize = 1024 * 1024;
/// Most bytes of a frame. The frames only serve to check the events.
const FRAME_BYTES: usize = 256 * 1024;

/// How many of the unpublished events to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// The page that the bridge publishes next.
    NextPage,
    /// All of them.
    Whole,
}

/// A log that cannot be published past a seq.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BrokenTail {
    /// The seq after which the bridge reads on.
    pub after: Seq,
    /// What is wrong with the events after it.
    pub what: String,
}

/// Checks a stream's events that are not yet published. `None` means that the bridge can publish them.
pub async fn broken_tail(
    authority: &Authority,
    position: &StreamProgress,
    tail: Tail,
) -> Result<Option<BrokenTail>, AuthorityError> {
    let found = match look(authority, position, tail).await {
        Ok(None) => return Ok(None),
        Ok(Some(broken)) => broken,
        Err(error) if error.class() == RefusalClass::Reject => BrokenTail {
            after: position.published_seq,
            what: error_text(&error),
        },
        Err(error) => return Err(error),
    };
    // Events that were published in the meantime may also have been purged.
    let now = authority.position(&position.stream_id).await?;
    let is_purged = now.is_some_and(|now| now.floor_seq > found.after);
    Ok((!is_purged).then_some(found))
}

async fn look(
    authority: &Authority,
    position: &StreamProgress,
    tail: Tail,
) -> Result<Option<BrokenTail>, AuthorityError> {
    let (stream_id, head) = (&position.stream_id, position.head_seq);
    let mut after = position.published_seq;
    if after >= head {
        return Ok(None);
    }
    let broken = |after: Seq, what: String| Ok(Some(BrokenTail { after, what }));
    let Some(mut chain) = authority.chain_at(stream_id, after).await? else {
        return broken(after, format!("the log has no seq {after}, and its head is {head}"));
    };
    while after < head {
        let events = authority.read_events(stream_id, after, PAGE_EVENTS, PAGE_BYTES).await?;
        match prepare(after, chain, &events, FRAME_BYTES, None) {
            Err(reason) => return broken(after, reason.to_string()),
            Ok(frames) => match frames.last() {
                None => {
                    return broken(
                        after,
                        format!("seq {} is missing, and the head is {head}", after.next()),
                    );
                }
                Some(last) => (after, chain) = (last.row.last_seq, last.last_chain),
            },
        }
        if tail == Tail::NextPage {
            break;
        }
    }
    Ok(None)
}
