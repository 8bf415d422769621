//! Finds the last position at which both sides have the same log. Two logs whose chain hashes agree at a position agree
//! in everything before it, so halving finds it.

use spacetime_sync_authority::Authority;
use spacetime_sync_proto::{ChainHash, Seq};
use spacetime_sync_stdb::link::Link;
use spacetime_sync_stdb::upkeep::HeldStream;

use super::RepairError;

/// One stream on both sides.
pub struct Common<'a> {
    authority: &'a Authority,
    link: &'a Link,
    held: &'a HeldStream,
}

impl<'a> Common<'a> {
    /// `held` says what SpacetimeDB holds of the stream.
    pub fn new(authority: &'a Authority, link: &'a Link, held: &'a HeldStream) -> Self {
        Self { authority, link, held }
    }

    /// Whether SpacetimeDB's log ends at a position of the authority's log.
    pub async fn agrees_at_head(&self) -> Result<bool, RepairError> {
        let head = self.held.head;
        self.agrees(head.seq, head.chain).await
    }

    /// The last position at which both sides agree, at or after the beginning of the window. `None` if they agree
    /// nowhere.
    pub async fn last(&self) -> Result<Option<Seq>, RepairError> {
        let floor = self.held.oldest_seq.previous();
        let Some(chain) = self.held_chain(floor).await? else {
            return Ok(None);
        };
        if !self.agrees(floor, chain).await? {
            return Ok(None);
        }
        // The two sides agree at `low`, and differ everywhere above `high`.
        let (mut low, mut high) = (floor, self.held.head.seq);
        while low < high {
            let middle = low.plus(high.since(low).div_ceil(2));
            let agrees = match self.held_chain(middle).await? {
                Some(chain) => self.agrees(middle, chain).await?,
                None => false,
            };
            if agrees {
                low = middle;
            } else {
                high = middle.previous();
            }
        }
        Ok(Some(low))
    }

    /// Reads everything that SpacetimeDB holds. Checks each event against its payload hash, and each frame against the
    /// frame before it and against the authority. Returns how many events there are, or what is wrong.
    pub async fn walk(&self) -> Result<Result<u64, String>, RepairError> {
        let (mut after, mut chain, mut events) = (self.held.oldest_seq.previous(), None, 0);
        while after < self.held.head.seq {
            let page = self.link.page(&self.held.stream_id, after).await?;
            // Retention has removed this part of the window in the meantime.
            if page.oldest_seq > after.next() {
                (after, chain) = (page.oldest_seq.previous(), None);
                continue;
            }
            if page.frames.is_empty() {
                let missing = || format!("no frame holds seq {}", after.next());
                return Ok(Err(page.invalid.unwrap_or_else(missing)));
            }
            for frame in page.frames {
                let (first, last) = (frame.first_seq(), frame.last_seq());
                if first > after.next() {
                    return Ok(Err(format!("no frame holds seq {}", after.next())));
                }
                if chain.is_some_and(|chain| frame.chain_at(after) != Some(chain)) {
                    return Ok(Err(format!("the frame at seq {first} does not follow the one before")));
                }
                let last_chain = frame.last_chain();
                if !self.agrees(last, last_chain).await? {
                    return Ok(Err(format!("the frame at seq {first} is not the authority's")));
                }
                for event in frame.into_events_after(after) {
                    if !event.payload_matches() {
                        return Ok(Err(format!("the payload of seq {} is not what was hashed", event.seq)));
                    }
                    events += 1;
                }
                (after, chain) = (last, Some(last_chain));
            }
        }
        Ok(Ok(events))
    }

    /// Whether the authority has this chain hash at this position. Where the authority has purged, nobody can tell, and
    /// the answer is yes.
    async fn agrees(&self, seq: Seq, chain: ChainHash) -> Result<bool, RepairError> {
        let stream_id = &self.held.stream_id;
        match self.authority.chain_at(stream_id, seq).await? {
            Some(there) => Ok(there == chain),
            None => {
                let extent = self.authority.extent(stream_id).await?;
                Ok(extent.is_some_and(|extent| seq < extent.floor()))
            }
        }
    }

    /// The chain hash that SpacetimeDB holds at a position, if it holds the position.
    async fn held_chain(&self, seq: Seq) -> Result<Option<ChainHash>, RepairError> {
        if seq == self.held.head.seq {
            return Ok(Some(self.held.head.chain));
        }
        let page = self.link.page(&self.held.stream_id, seq).await?;
        Ok(page.frames.first().and_then(|frame| frame.chain_at(seq)))
    }
}
