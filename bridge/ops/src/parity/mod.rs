//! Parity: finds out whether authority, SpacetimeDB and clients hold the same log, while all of them move.
//!
//! Logs only grow, so parity compares what they share, and not where they end. It reads a client's checkpoint before
//! the head of SpacetimeDB, and that before the authority. Each position must then lie on the log of the next, with the
//! chain hash that the authority has there. The chain covers every field of every event, so equal chain hashes at one
//! position mean that everything before it is equal, too. Parity also compares events one by one, each by its payload
//! and its chain hash, because a row may have been altered after the chain hash was computed. It looks again before it
//! calls a difference a mismatch. With a legacy lane beside this one, it compares the two as well.
//!
//! Parity reads, and never writes or repairs.

mod client_file;
mod event;
mod legacy;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rand::Rng;
use serde::Serialize;
use spacetime_sync_proto::{ChainHash, Position, Seq, StreamId, StreamProgress};

use crate::unpublished::{BrokenTail, Tail, broken_tail};
use spacetime_sync_authority::{Authority, AuthorityError};
use spacetime_sync_stdb::StdbError;
use spacetime_sync_stdb::link::Link;

pub use client_file::{ClientFile, ClientFileError};
pub use legacy::{Difference, Legacy, LegacyError, LegacyRound, LegacySource, TopicRound};

/// How often parity looks before something counts as a mismatch, and how long it waits between two looks.
const LOOKS: u32 = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);
/// Streams asked for at once.
const STREAMS: usize = 1_000;

/// Why a comparison failed.
#[derive(Debug, thiserror::Error)]
pub enum ParityError {
    /// The authority failed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// SpacetimeDB failed.
    #[error(transparent)]
    Stdb(#[from] StdbError),
    /// A client's file cannot be compared.
    #[error(transparent)]
    Client(#[from] ClientFileError),
    /// A legacy lane cannot be compared.
    #[error(transparent)]
    Legacy(#[from] LegacyError),
}

/// How many events are compared one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// This many, chosen at random.
    Sample(u64),
    /// All.
    Whole,
}

/// Who holds a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Party {
    /// The authority, a Postgres.
    Authority,
    /// SpacetimeDB.
    Spacetimedb,
    /// The client with this file.
    Client(PathBuf),
}

/// Something that differs from the authority, or that contradicts the authority's own hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// Whose log.
    pub party: Party,
    /// Of which stream.
    pub stream_id: String,
    /// At which position.
    pub seq: u64,
    /// What is wrong.
    pub what: String,
}

/// One comparison.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Round {
    /// Streams that the authority holds.
    pub streams: u64,
    /// Positions whose chain was compared: heads of SpacetimeDB and checkpoints of clients.
    pub positions: u64,
    /// Events that were compared one by one.
    pub events: u64,
    /// How many of the compared events lie before SpacetimeDB's window.
    pub events_below_window: u64,
    /// Comparisons of an event with one other party.
    pub comparisons: u64,
    /// Mismatches that vanished after another look.
    pub settled_by_another_look: u64,
    /// How many events SpacetimeDB was behind, over all streams.
    pub spacetimedb_behind: u64,
    /// How many events the slowest client was behind, over all its streams.
    pub clients_behind: u64,
    /// The mismatches.
    pub mismatches: Vec<Mismatch>,
    /// The comparison with a legacy lane, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub legacy: Option<LegacyRound>,
}

impl Round {
    /// The share of mismatches among all comparisons.
    pub fn mismatch_ratio(&self) -> f64 {
        self.mismatches.len() as f64 / (self.positions + self.comparisons).max(1) as f64
    }

    /// How many things differ, with those between the lane and a legacy lane.
    pub fn all_mismatches(&self) -> u64 {
        let legacy = self.legacy.as_ref().map_or(0, |legacy| legacy.mismatches);
        self.mismatches.len() as u64 + legacy
    }

    fn found(&mut self, found: Option<Mismatch>) {
        self.mismatches.extend(found);
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let party = match &self.party {
            Party::Authority => "authority".to_owned(),
            Party::Spacetimedb => "spacetimedb".to_owned(),
            Party::Client(path) => path.display().to_string(),
        };
        write!(f, "{party}: {} at seq {}: {}", self.stream_id, self.seq, self.what)
    }
}

/// The parties that are compared.
pub struct Parity<'a> {
    /// The authority, which is right by definition.
    pub authority: &'a Authority,
    /// SpacetimeDB.
    pub link: &'a Link,
    /// Clients, by their files.
    pub clients: &'a [ClientFile],
    /// A legacy lane.
    pub legacy: Option<&'a Legacy>,
}

impl Parity<'_> {
    /// Compares once.
    pub async fn round(&self, extent: Extent) -> Result<Round, ParityError> {
        let mut round = Round::default();
        let streams = self.streams().await?;
        round.streams = streams.len() as u64;
        let mut behind = vec![0; self.clients.len()];
        for position in &streams {
            self.positions(&position.stream_id, &mut round, &mut behind).await?;
        }
        round.clients_behind = behind.into_iter().max().unwrap_or(0);
        let tail = match extent {
            Extent::Sample(_) => Tail::NextPage,
            Extent::Whole => Tail::Whole,
        };
        for position in &streams {
            let broken = broken_tail(self.authority, position, tail).await?;
            round.found(broken.map(|BrokenTail { after, what }| {
                let what = format!("committed but cannot be published: {what}");
                mismatch(Party::Authority, &position.stream_id, after.next(), what)
            }));
        }
        for (stream_id, seqs) in chosen(&streams, extent) {
            match seqs {
                Some(seqs) => {
                    for seq in seqs {
                        self.event(&stream_id, seq, &mut round).await?;
                    }
                }
                None => self.whole(&stream_id, &mut round).await?,
            }
        }
        if let Some(legacy) = self.legacy {
            round.legacy = Some(self.legacy(legacy, extent, &mut round).await?);
        }
        Ok(round)
    }

    /// How far each stream has come.
    async fn streams(&self) -> Result<Vec<StreamProgress>, ParityError> {
        let mut streams = Vec::new();
        loop {
            let after = streams.last().map(|position: &StreamProgress| &position.stream_id);
            let page = self.authority.streams_after(after, STREAMS).await?;
            let last = page.len() < STREAMS;
            streams.extend(page);
            if last {
                return Ok(streams);
            }
        }
    }

    /// Compares how far each party is in a stream.
    async fn positions(&self, stream_id: &StreamId, round: &mut Round, behind: &mut [u64]) -> Result<(), ParityError> {
        for look in 1..=LOOKS {
            let mut found = Vec::new();
            let mut saved = Vec::new();
            for client in self.clients {
                saved.push(client.checkpoint(stream_id).await?);
            }
            let held = self.link.heads(std::slice::from_ref(stream_id)).await?;
            let held = held.first().copied();
            let position = self.authority.position(stream_id).await?;
            let (floor, head) = position.map_or((Seq::ZERO, Seq::ZERO), |found| (found.floor_seq, found.head_seq));
            let (mut positions, mut client_behind) = (0, vec![0; self.clients.len()]);
            if let Some(held) = held {
                positions += 1;
                found.extend(
                    self.on_the_log(Party::Spacetimedb, stream_id, held.seq, held.chain, head)
                        .await?,
                );
            }
            let published = held.map_or(Seq::ZERO, |held| held.seq);
            for (at, (client, saved)) in self.clients.iter().zip(&saved).enumerate() {
                // The client may not follow this stream.
                let Some(Position { seq, chain }) = saved else {
                    continue;
                };
                // The authority has purged that position. The client finds that out by itself.
                if *seq < floor {
                    continue;
                }
                positions += 1;
                client_behind[at] = head.get().saturating_sub(seq.get());
                let party = Party::Client(client.path().to_owned());
                if *seq > published {
                    let what = format!("its checkpoint is past SpacetimeDB's head, {published}");
                    found.push(mismatch(party, stream_id, *seq, what));
                } else {
                    found.extend(self.on_the_log(party, stream_id, *seq, *chain, head).await?);
                }
            }
            if found.is_empty() || look == LOOKS {
                round.settled_by_another_look += u64::from(look > 1 && found.is_empty());
                round.positions += positions;
                round.spacetimedb_behind += head.get().saturating_sub(published.get());
                behind
                    .iter_mut()
                    .zip(&client_behind)
                    .for_each(|(sum, events)| *sum += events);
                round.mismatches.extend(found);
                return Ok(());
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        Ok(())
    }

    /// Whether a position lies on the authority's log.
    async fn on_the_log(
        &self,
        party: Party,
        stream_id: &StreamId,
        seq: Seq,
        chain: ChainHash,
        head: Seq,
    ) -> Result<Option<Mismatch>, ParityError> {
        let what = match self.authority.chain_at(stream_id, seq).await? {
            Some(expected) if expected == chain => return Ok(None),
            Some(expected) => format!("expected chain hash {expected}, found {chain}"),
            None => format!("the authority's log ends at {head}"),
        };
        Ok(Some(mismatch(party, stream_id, seq, what)))
    }
}

fn mismatch(party: Party, stream_id: &StreamId, seq: Seq, what: String) -> Mismatch {
    Mismatch {
        party,
        stream_id: stream_id.as_str().to_owned(),
        seq: seq.get(),
        what,
    }
}

/// The events to compare in each stream; `None` means all. Only published events, which SpacetimeDB must hold, and only
/// events that the authority has not purged.
fn chosen(streams: &[StreamProgress], extent: Extent) -> Vec<(StreamId, Option<Vec<Seq>>)> {
    let published = |position: &StreamProgress| position.published_seq.min(position.head_seq).since(position.floor_seq);
    let events: u64 = streams.iter().map(published).sum();
    let count = match extent {
        Extent::Sample(count) if count < events => count,
        Extent::Sample(_) | Extent::Whole => {
            return streams
                .iter()
                .map(|position| (position.stream_id.clone(), None))
                .collect();
        }
    };
    let mut picked = picked(events, count, &mut rand::rng()).into_iter().peekable();
    let mut before = 0;
    let mut chosen = Vec::new();
    for position in streams {
        let end = before + published(position);
        let mut seqs = Vec::new();
        while let Some(place) = picked.next_if(|place| *place < end) {
            seqs.extend(Seq::new(position.floor_seq.get() + place - before + 1));
        }
        if !seqs.is_empty() {
            chosen.push((position.stream_id.clone(), Some(seqs)));
        }
        before = end;
    }
    chosen
}

/// So many of the numbers below `of`, which are at least as many. By Floyd's algorithm, every set of them is equally likely.
fn picked(of: u64, count: u64, random: &mut impl Rng) -> BTreeSet<u64> {
    let mut picked = BTreeSet::new();
    for last in of - count..of {
        let place = random.random_range(0..=last);
        if !picked.insert(place) {
            picked.insert(last);
        }
    }
    picked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(name: &str, head: u64, published: u64) -> StreamProgress {
        StreamProgress {
            floor_seq: Seq::ZERO,
            stream_id: StreamId::new(name).unwrap(),
            head_seq: Seq::new(head).unwrap(),
            published_seq: Seq::new(published).unwrap(),
        }
    }

    #[test]
    fn a_sample_is_spread_over_all_events_that_are_published_and_not_purged() {
        let purged = StreamProgress {
            floor_seq: Seq::new(500).unwrap(),
            ..position("d", 1_500, 1_500)
        };
        let streams = [
            position("a", 10, 5),
            position("b", 3, 0),
            position("c", 2_000, 1_000),
            purged,
        ];
        let chosen = chosen(&streams, Extent::Sample(800));
        let counts = chosen.iter().filter_map(|(_, seqs)| Some(seqs.as_ref()?.len()));
        assert_eq!(counts.sum::<usize>(), 800, "as many different events as asked for");
        let of = |name: &str| chosen.iter().find(|(stream_id, _)| stream_id.as_str() == name);
        assert!(of("b").is_none());
        let seqs = |name: &str| -> Vec<u64> {
            let seqs = of(name).unwrap().1.clone().unwrap();
            seqs.iter().map(|seq| seq.get()).collect()
        };
        assert!(
            seqs("d").iter().all(|seq| (501..=1_500).contains(seq)),
            "{:?}",
            seqs("d")
        );
        let seqs = seqs("c");
        assert!(
            seqs.len() > 200 && seqs.iter().all(|seq| (1..=1_000).contains(seq)),
            "{seqs:?}"
        );
        assert!(seqs.first() < Some(&100) && seqs.last() > Some(&900), "{seqs:?}");
    }

    #[test]
    fn a_sample_larger_than_the_log_is_the_whole_log() {
        let streams = [position("a", 10, 5), position("b", 3, 3)];
        for extent in [Extent::Whole, Extent::Sample(8)] {
            let all = streams
                .iter()
                .map(|position| (position.stream_id.clone(), None))
                .collect::<Vec<_>>();
            assert_eq!(chosen(&streams, extent), all);
        }
    }

    #[test]
    fn the_ratio_covers_everything_compared() {
        let mut round = Round {
            positions: 3,
            comparisons: 97,
            ..Round::default()
        };
        assert_eq!(round.mismatch_ratio(), 0.0);
        round.found(Some(mismatch(
            Party::Authority,
            &StreamId::new("a").unwrap(),
            Seq::ZERO,
            "x".to_owned(),
        )));
        assert_eq!(round.mismatch_ratio(), 0.01);
        assert_eq!(round.mismatches[0].to_string(), "authority: a at seq 0: x");
    }
}
