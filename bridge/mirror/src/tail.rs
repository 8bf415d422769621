//! Reads what is new in the authority's log into the outbox: a few events of one stream after the other, so that no stream waits
//! for another.

use std::collections::BTreeMap;

use spacetime_sync_authority::{
    Authority, AuthorityError, Behind, Entry, Kept, MirrorPolicy, MirrorSource, MirroredEvent,
};
use spacetime_sync_proto::access::StreamPattern;
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Seq, StreamId};

use crate::things;

/// How many streams one look covers.
const STREAMS: usize = 1_000;
/// The most events of one pass.
pub(crate) const PASS: usize = 256;

/// Where each policy goes on to look.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    after: BTreeMap<String, StreamId>,
}

/// What a pass came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Read {
    /// Events that were read.
    pub(crate) events: usize,
    /// Entries that were written.
    pub(crate) entries: usize,
    /// Events that were purged before the mirror had read them.
    pub(crate) missed: u64,
    /// Whether there may be more at once.
    pub(crate) has_more: bool,
}

impl Tail {
    /// One pass of a policy that names events. It reads at most `room` events.
    pub(crate) async fn pass(
        &mut self,
        authority: &Authority,
        policy: &MirrorPolicy,
        author: &str,
        room: usize,
    ) -> Result<Read, AuthorityError> {
        let MirrorSource::Events(pattern) = &policy.source else {
            return Ok(Read::default());
        };
        let room = room.min(PASS);
        let mut read = Read::default();
        let after = self.after.remove(&policy.policy_id);
        let positions = authority
            .mirror_positions(&policy.policy_id, pattern, after.as_ref(), STREAMS)
            .await?;
        let is_last_page = positions.len() < STREAMS;
        let last = positions.last().map(|position| position.stream_id.clone());
        for position in positions.iter().filter(|position| is_behind(pattern, position)) {
            if read.events >= room {
                read.has_more = true;
                return Ok(read);
            }
            match self
                .read(authority, policy, position, author, room - read.events, &mut read)
                .await
            {
                Ok(()) => {}
                // The stream holds what the contract does not allow. Others go on.
                Err(error) if error.class() == RefusalClass::Reject => {
                    tracing::error!(%error, stream = %position.stream_id, "a stream cannot be mirrored");
                }
                Err(error) => return Err(error),
            }
            // After an early end the next pass begins behind this stream.
            self.after.insert(policy.policy_id.clone(), position.stream_id.clone());
        }
        match last {
            Some(last) if !is_last_page => {
                self.after.insert(policy.policy_id.clone(), last);
                read.has_more = true;
            }
            Some(_) | None => {
                // What lies before the stream where this pass began comes next.
                read.has_more |= after.is_some();
                self.after.remove(&policy.policy_id);
            }
        }
        Ok(read)
    }

    /// Reads the next events of a stream, and writes their entries and the cursor behind them at once.
    async fn read(
        &self,
        authority: &Authority,
        policy: &MirrorPolicy,
        position: &Behind,
        author: &str,
        room: usize,
        read: &mut Read,
    ) -> Result<(), AuthorityError> {
        let begin = position.cursor.max(position.floor);
        let events = authority.mirrored_events(&position.stream_id, begin, room).await?;
        let Some(last) = events.last() else { return Ok(()) };
        let entries = entries_of(policy, &position.stream_id, &events, author);
        let moved = (&position.stream_id, position.cursor, last.seq);
        if !authority
            .journal(&policy.source, Kept::Publish(policy), Some(moved), &entries)
            .await?
        {
            // Another mirror still led. Its entries are the same.
            tracing::info!(stream = %position.stream_id, "somebody else has moved the cursor");
            return Ok(());
        }
        let missed = missed(position.cursor, &events);
        if missed > 0 {
            tracing::warn!(stream = %position.stream_id, missed, "events were purged before they were mirrored");
        }
        read.missed += missed;
        read.events += events.len();
        read.entries += entries.len();
        read.has_more |= last.seq < position.head;
        Ok(())
    }
}

fn is_behind(pattern: &StreamPattern, position: &Behind) -> bool {
    pattern.matches(&position.stream_id) && position.cursor < position.head && position.floor < position.head
}

/// The entries of those events that the policy names.
fn entries_of(policy: &MirrorPolicy, stream_id: &StreamId, events: &[MirroredEvent], author: &str) -> Vec<Entry> {
    let named =
        |event: &&MirroredEvent| policy.kinds.is_empty() || policy.kinds.iter().any(|kind| kind == event.kind.as_str());
    let entry = |event| match things::receipt(policy, stream_id, event, author) {
        Ok(entry) => Some(entry),
        Err(error) => {
            tracing::error!(%error, %stream_id, "an event cannot be mirrored");
            None
        }
    };
    events.iter().filter(named).filter_map(entry).collect()
}

/// How many events are missing after the cursor.
fn missed(cursor: Seq, events: &[MirroredEvent]) -> u64 {
    let first = events.first().map_or(0, |event| event.seq.get());
    first.saturating_sub(cursor.get() + 1)
}

#[cfg(test)]
mod tests {
    use spacetime_sync_proto::{Kind, PayloadHash};

    use super::*;

    fn event(seq: u64, kind: &str) -> MirroredEvent {
        MirroredEvent {
            seq: Seq::new(seq).unwrap(),
            kind: Kind::new(kind).unwrap(),
            payload_hash: PayloadHash::of(b"p"),
            committed_at_us: 1_000_000,
        }
    }

    #[test]
    fn a_policy_names_kinds_or_takes_all() {
        let stream = StreamId::new("s").unwrap();
        let events = [event(3, "a"), event(4, "b"), event(5, "a.b")];
        let author = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        for (kinds, expected) in [(vec![], 3), (vec!["a"], 1), (vec!["a", "b"], 2), (vec!["c"], 0)] {
            let policy = MirrorPolicy {
                policy_id: "p".to_owned(),
                source: MirrorSource::Events(StreamPattern::new("s").unwrap()),
                kinds: kinds.into_iter().map(str::to_owned).collect(),
                schema: things::RECEIPT_SCHEMA.to_owned(),
                nostr_kind: things::RECEIPT_KIND,
                relays: vec!["ws://127.0.0.1:1".to_owned()],
                quorum: 1,
            };
            assert_eq!(entries_of(&policy, &stream, &events, author).len(), expected);
        }
        assert_eq!(missed(Seq::ZERO, &events), 2);
        assert_eq!(missed(Seq::new(2).unwrap(), &events), 0);
    }
}
