//! Reads what is new in the authority's log into the outbox: a few events of one stream after the other, so that no stream waits
//! for another.

use std::collections::BTreeMap;
use std::time::Duration;

use spacetime_sync_authority::{
    Authority, AuthorityError, Behind, Entry, Kept, MirrorPolicy, MirrorSource, MirroredEvent,
};
use spacetime_sync_proto::access::StreamPattern;
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Seq, StreamId};
use tokio::time::Instant;

use crate::things;

/// How many streams one look covers.
const STREAMS: usize = 1_000;
/// The most events of one pass.
pub(crate) const PASS: usize = 256;

/// Where each policy goes on to look.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    rounds: BTreeMap<String, Round>,
}

/// One policy's way through its streams, in the order of their names, again and again.
#[derive(Debug, Default)]
struct Round {
    /// Behind this stream the next pass begins.
    after: Option<StreamId>,
    /// Whether an event was read since the round began.
    found: bool,
    /// Until then nothing new is expected: the round before found nothing.
    rests_until: Option<Instant>,
}

impl Round {
    fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    /// A pass ended early behind this stream.
    fn ended_early(&mut self, after: Option<StreamId>) {
        self.after = after;
        self.found = true;
    }

    /// A pass has seen a whole page of streams, of which this is the last; none: the round is over. Returns whether to look again
    /// at once.
    fn saw_page(&mut self, after: Option<StreamId>, found: bool, now: Instant, poll: Duration) -> bool {
        self.found |= found;
        self.after = after;
        if self.after.is_some() {
            return true;
        }
        let found = std::mem::take(&mut self.found);
        self.rests_until = (!found).then(|| now + poll);
        found
    }
}

/// What a pass came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Read {
    /// Events that were read.
    pub(crate) events: usize,
    /// Entries that are new.
    pub(crate) entries: usize,
    /// Events that were purged before the mirror had read them.
    pub(crate) missed: u64,
    /// Whether there may be more at once.
    pub(crate) has_more: bool,
}

impl Tail {
    /// One pass of a policy that names events. It reads at most `room` events. After a round in which there was none it rests.
    pub(crate) async fn pass(
        &mut self,
        authority: &Authority,
        policy: &MirrorPolicy,
        author: &str,
        room: usize,
        poll: Duration,
    ) -> Result<Read, AuthorityError> {
        let MirrorSource::Events(pattern) = &policy.source else {
            return Ok(Read::default());
        };
        let round = self.rounds.entry(policy.policy_id.clone()).or_default();
        if round.rests(Instant::now()) {
            return Ok(Read::default());
        }
        let room = room.min(PASS);
        let mut read = Read::default();
        let positions = authority
            .mirror_positions(&policy.policy_id, pattern, round.after.as_ref(), STREAMS)
            .await?;
        let is_last_page = positions.len() < STREAMS;
        let mut after = round.after.clone();
        for position in positions.iter().filter(|position| is_behind(pattern, position)) {
            if read.events >= room {
                // The next pass begins behind the last stream that was read.
                round.ended_early(after);
                read.has_more = true;
                return Ok(read);
            }
            let left = room - read.events;
            match read_stream(authority, policy, position, author, left, &mut read).await {
                Ok(()) => {}
                // The stream holds what the contract does not allow. Others go on.
                Err(error) if error.class() == RefusalClass::Reject => {
                    tracing::error!(%error, stream = %position.stream_id, "a stream cannot be mirrored");
                }
                Err(error) => return Err(error),
            }
            after = Some(position.stream_id.clone());
        }
        let last = positions.last().filter(|_| !is_last_page);
        let last = last.map(|position| position.stream_id.clone());
        read.has_more = round.saw_page(last, read.events > 0, Instant::now(), poll);
        Ok(read)
    }

    /// Forgets what is of no policy any more.
    pub(crate) fn keep(&mut self, policies: &[MirrorPolicy]) {
        let is_there = |id: &String| policies.iter().any(|policy| policy.policy_id == *id);
        self.rounds.retain(|id, _| is_there(id));
    }
}

/// Reads the next events of a stream, and writes their entries and the cursor behind them at once.
async fn read_stream(
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
    let journaled = authority.journal(&policy.source, Kept::Publish(policy), Some(moved), &entries);
    let Some(fresh) = journaled.await? else {
        // Another mirror still led. Its entries are the same.
        tracing::info!(stream = %position.stream_id, "somebody else has moved the cursor");
        return Ok(());
    };
    let missed = missed(position.cursor, &events);
    if missed > 0 {
        tracing::warn!(stream = %position.stream_id, missed, "events were purged before they were mirrored");
    }
    read.missed += missed;
    read.events += events.len();
    read.entries += fresh;
    Ok(())
}

fn is_behind(pattern: &StreamPattern, position: &Behind) -> bool {
    pattern.matches(&position.stream_id) && position.cursor < position.head && position.floor < position.head
}

/// The entries of those events that the policy names.
pub fn entries_of(policy: &MirrorPolicy, stream_id: &StreamId, events: &[MirroredEvent], author: &str) -> Vec<Entry> {
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
    fn a_round_through_idle_streams_ends_however_many_pages_they_fill() {
        const POLL: Duration = Duration::from_millis(500);
        let now = Instant::now();
        let pages = || (1..=3).map(|page| (page < 3).then(|| StreamId::new(&format!("s{page}")).unwrap()));
        // Two policies out of step, so that one is always in the middle of a round unless both come to rest.
        let (mut first, mut second) = (Round::default(), Round::default());
        assert!(second.saw_page(pages().next().unwrap(), false, now, POLL));
        let mut looks = 0;
        while [&first, &second].iter().any(|round| !round.rests(now)) {
            for round in [&mut first, &mut second] {
                if round.rests(now) {
                    continue;
                }
                let at = round.after.as_ref().map_or(0, |after| {
                    usize::from(after.as_str() == "s1") + 2 * usize::from(after.as_str() == "s2")
                });
                let again = round.saw_page(pages().nth(at).unwrap(), false, now, POLL);
                assert_eq!(again, !round.rests(now));
                looks += 1;
            }
            assert!(looks < 10, "it never rests");
        }
        assert_eq!(looks, 5);
        assert!(!first.rests(now + POLL) && first.after.is_none());
        // What was read anywhere in a round is a reason for another one.
        assert!(first.saw_page(pages().next().unwrap(), true, now + POLL, POLL));
        assert!(first.saw_page(None, false, now + POLL, POLL) && !first.rests(now + POLL));
        first.ended_early(Some(StreamId::new("s2").unwrap()));
        assert!(first.saw_page(None, false, now + POLL, POLL));
        assert!(!first.saw_page(None, false, now + POLL, POLL) && first.rests(now + POLL));
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
