//! Compares events one by one: the payload and the hashes that each party holds, field by field.

use std::collections::VecDeque;

use spacetime_sync_proto::{ChainHash, Event, PayloadHash, Seq, StreamId};
use spacetime_sync_stdb::upkeep::HeldPage;

use super::{BETWEEN_LOOKS, LOOKS, Parity, ParityError, Party, Round, mismatch};

/// Most events read from the authority at once, and most bytes of their payloads.
pub(super) const PAGE: (usize, usize) = (1_000, 4 << 20);

/// What SpacetimeDB holds of an event.
enum Held {
    Event(Box<Event>),
    /// It holds only later events.
    BelowWindow,
    /// It does not hold the event, or holds something that is not an event.
    Nothing(String),
}

impl Parity<'_> {
    /// Compares one event.
    pub(super) async fn event(&self, stream_id: &StreamId, seq: Seq, round: &mut Round) -> Result<(), ParityError> {
        let before = Seq::new(seq.get() - 1).unwrap_or(Seq::ZERO);
        for look in 1..=LOOKS {
            let page = self.link.page(stream_id, before).await?;
            let held = held(page, before, seq);
            let base = self.authority.chain_at(stream_id, before).await?;
            let event = self
                .authority
                .read_events(stream_id, before, 1, usize::MAX >> 1)
                .await?
                .pop();
            let mut compared = Round::default();
            self.compare(stream_id, seq, base, event.as_ref(), held, &mut compared)
                .await?;
            if take(round, compared, look) {
                return Ok(());
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        Ok(())
    }

    /// Compares all events of a stream that SpacetimeDB holds when the comparison begins.
    pub(super) async fn whole(&self, stream_id: &StreamId, round: &mut Round) -> Result<(), ParityError> {
        let held = self.link.heads(std::slice::from_ref(stream_id)).await?;
        let end = held.first().map_or(Seq::ZERO, |held| held.seq);
        // Both sides still hold everything after this.
        let window = self.link.page(stream_id, Seq::ZERO).await?.oldest_seq.previous();
        let floor = self.authority.position(stream_id).await?;
        let mut after = floor.map_or(Seq::ZERO, |position| position.floor_seq).max(window);
        let mut base = self.authority.chain_at(stream_id, after).await?;
        let mut lane: VecDeque<Event> = VecDeque::new();
        while after < end {
            let mut events = self.authority.read_events(stream_id, after, PAGE.0, PAGE.1).await?;
            events.retain(|event| event.seq <= end);
            if events.is_empty() {
                let position = self.authority.position(stream_id).await?;
                // The authority may have purged all the rest meanwhile.
                if position.is_none_or(|position| position.floor_seq < end) {
                    let what = format!("the log ends at {after}, but SpacetimeDB holds it up to {end}");
                    round.found(Some(mismatch(Party::Authority, stream_id, after.next(), what)));
                }
                return Ok(());
            }
            for event in events {
                let seq = after.next();
                if lane.front().is_none_or(|event| event.seq != seq) {
                    let page = self.link.page(stream_id, after).await?;
                    lane = page
                        .frames
                        .into_iter()
                        .flat_map(|frame| frame.into_events_after(after))
                        .collect();
                }
                let compared = match lane.pop_front() {
                    Some(held) if held.seq == seq && event.seq == seq => {
                        let mut compared = Round::default();
                        let held = Held::Event(Box::new(held));
                        self.compare(stream_id, seq, base, Some(&event), held, &mut compared)
                            .await?;
                        Some(compared).filter(|compared| compared.mismatches.is_empty())
                    }
                    _ => None,
                };
                match compared {
                    Some(compared) => drop(take(round, compared, 1)),
                    // Comparing the event on its own looks again, and says what is wrong.
                    None => {
                        lane.clear();
                        self.event(stream_id, seq, round).await?;
                    }
                }
                (after, base) = (seq, Some(event.chain_hash));
            }
        }
        Ok(())
    }

    async fn compare(
        &self,
        stream_id: &StreamId,
        seq: Seq,
        base: Option<ChainHash>,
        event: Option<&Event>,
        held: Held,
        round: &mut Round,
    ) -> Result<(), ParityError> {
        round.events = 1;
        let Some(event) = event.filter(|event| event.seq == seq) else {
            let position = self.authority.position(stream_id).await?;
            if position.is_some_and(|position| position.floor_seq >= seq) {
                round.events = 0;
                return Ok(());
            }
            round.comparisons = 1;
            let what = "the event is missing".to_owned();
            round.found(Some(mismatch(Party::Authority, stream_id, seq, what)));
            return Ok(());
        };
        round.comparisons = 1;
        round.found(sound(event, base).map(|what| mismatch(Party::Authority, stream_id, seq, what)));
        let of_lane = |what| mismatch(Party::Spacetimedb, stream_id, seq, what);
        match held {
            Held::BelowWindow => round.events_below_window = 1,
            Held::Nothing(what) => {
                round.comparisons += 1;
                round.found(Some(of_lane(what)));
            }
            Held::Event(held) => {
                round.comparisons += 1;
                round.found(different(event, &held).map(of_lane));
            }
        }
        for client in self.clients {
            let Some(effect) = client.effect(stream_id, seq).await? else {
                continue;
            };
            round.comparisons += 1;
            let of_client = |what| mismatch(Party::Client(client.path().to_owned()), stream_id, seq, what);
            round.found(match effect {
                None => Some(of_client("the event is missing below the checkpoint".to_owned())),
                Some(effect) => {
                    let sound = effect.payload_hash == event.payload_hash
                        && effect.chain_hash == event.chain_hash
                        && PayloadHash::of(&effect.payload) == event.payload_hash;
                    (!sound).then(|| of_client("the event differs from the authority's".to_owned()))
                }
            });
        }
        Ok(())
    }
}

/// Counts a look, unless it found a mismatch and another look may follow. Returns whether it counted.
fn take(round: &mut Round, compared: Round, look: u32) -> bool {
    let fits = compared.mismatches.is_empty();
    if !fits && look < LOOKS {
        return false;
    }
    round.settled_by_another_look += u64::from(fits && look > 1);
    round.events += compared.events;
    round.events_below_window += compared.events_below_window;
    round.comparisons += compared.comparisons;
    round.mismatches.extend(compared.mismatches);
    true
}

fn held(page: HeldPage, before: Seq, seq: Seq) -> Held {
    if seq < page.oldest_seq {
        return Held::BelowWindow;
    }
    let mut events = page
        .frames
        .into_iter()
        .flat_map(|frame| frame.into_events_after(before));
    match events.find(|event| event.seq == seq) {
        Some(event) => Held::Event(Box::new(event)),
        None => Held::Nothing(match page.invalid {
            Some(why) => format!("SpacetimeDB does not hold a valid frame there: {why}"),
            None => "the event is missing".to_owned(),
        }),
    }
}

/// What is wrong with an event, judged on its own.
fn sound(event: &Event, base: Option<ChainHash>) -> Option<String> {
    let payload = PayloadHash::of(&event.payload);
    if payload != event.payload_hash {
        return Some(format!(
            "expected payload hash {}, but the payload has {payload}",
            event.payload_hash
        ));
    }
    let chain = base?.link(
        event.seq,
        event.committed_at_us,
        &event.payload_hash,
        &event.idempotency_key,
        &event.kind,
    );
    (chain != event.chain_hash).then(|| format!("expected chain hash {chain}, found {}", event.chain_hash))
}

/// How SpacetimeDB's event differs from the authority's.
fn different(expected: &Event, found: &Event) -> Option<String> {
    if found == expected {
        return None;
    }
    let payload = PayloadHash::of(&found.payload);
    Some(if found.chain_hash != expected.chain_hash {
        format!(
            "expected chain hash {}, found {}",
            expected.chain_hash, found.chain_hash
        )
    } else if payload != expected.payload_hash {
        format!(
            "expected payload hash {}, but the payload has {payload}",
            expected.payload_hash
        )
    } else {
        "a field that the chain hash covers differs".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use spacetime_sync_proto::{IdempotencyKey, Kind};

    use super::*;

    fn event() -> (Event, ChainHash) {
        let base = ChainHash::genesis(&StreamId::new("a").unwrap());
        let (seq, payload) = (Seq::ZERO.next(), Bytes::from_static(b"payload"));
        let payload_hash = PayloadHash::of(&payload);
        let (idempotency_key, kind) = (IdempotencyKey::new("k").unwrap(), Kind::new("run.event").unwrap());
        let event = Event {
            seq,
            chain_hash: base.link(seq, 7, &payload_hash, &idempotency_key, &kind),
            idempotency_key,
            kind,
            payload,
            payload_hash,
            committed_at_us: 7,
        };
        (event, base)
    }

    #[test]
    fn whatever_is_altered_in_an_event_is_found() {
        let (event, base) = event();
        assert_eq!(sound(&event, Some(base)), None);
        assert_eq!(different(&event, &event.clone()), None);
        let altered = |alter: fn(&mut Event)| {
            let mut altered = event.clone();
            alter(&mut altered);
            assert!(sound(&altered, Some(base)).is_some(), "{altered:?}");
            assert!(different(&event, &altered).is_some(), "{altered:?}");
        };
        altered(|event| event.payload = Bytes::from_static(b"another"));
        altered(|event| event.kind = Kind::new("another").unwrap());
        altered(|event| event.idempotency_key = IdempotencyKey::new("another").unwrap());
        altered(|event| event.committed_at_us += 1);
        altered(|event| event.chain_hash = ChainHash::from_bytes([0; 32]));
        altered(|event| event.payload_hash = PayloadHash::from_bytes([0; 32]));
    }

    #[test]
    fn a_mismatch_counts_only_after_the_last_look() {
        let wrong = || {
            let stream_id = StreamId::new("a").unwrap();
            Round {
                comparisons: 1,
                mismatches: vec![mismatch(Party::Spacetimedb, &stream_id, Seq::ZERO, String::new())],
                ..Round::default()
            }
        };
        let right = || Round {
            comparisons: 1,
            ..Round::default()
        };
        let mut round = Round::default();
        assert!(!take(&mut round, wrong(), 1) && !take(&mut round, wrong(), 2));
        assert!(take(&mut round, right(), LOOKS));
        assert_eq!((round.mismatches.len(), round.settled_by_another_look), (0, 1));
        assert!(take(&mut round, wrong(), LOOKS));
        assert_eq!((round.mismatches.len(), round.comparisons), (1, 2));
    }
}
