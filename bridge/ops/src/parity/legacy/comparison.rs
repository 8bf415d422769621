//! Compares the entries of one topic with the events of its stream. Pure.

use std::collections::BTreeSet;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::Serialize;
use serde_json::Value;
use spacetime_sync_proto::access::Topic;
use spacetime_sync_proto::document::{DELETE, PUT};
use spacetime_sync_proto::{Event, Kind, PayloadHash, Seq, StreamProgress, canonical_json, document_hash};

use super::super::picked;
use super::emitted::{Entries, Entry};

/// How many differences of one topic are told of one by one.
const EXAMPLES: usize = 20;

/// How one topic compares.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TopicRound {
    /// The topic.
    pub topic: String,
    /// The stream that carries it.
    pub stream_id: Option<String>,
    /// Why no stream carries it. All its entries are mismatches then.
    pub no_stream: Option<String>,
    /// Entries of the legacy lane.
    pub entries: u64,
    /// Entries and events that were looked for on the other side, each once.
    pub looked_for: u64,
    /// Those of them that differ in any way, each once.
    pub mismatches: u64,
    /// Entries that were compared with their event.
    pub compared: u64,
    /// Entries whose event the lane does not have.
    pub missing_in_the_lane: u64,
    /// Events of which the legacy lane has no entry, although it has entries before, and after or by definition all.
    pub missing_in_the_legacy_lane: u64,
    /// Entries whose event has another payload.
    pub hash_differs: u64,
    /// Entries whose event is of another kind.
    pub kind_differs: u64,
    /// Events that the lane has after one that comes later in the topic.
    pub order_differs: u64,
    /// Entries from before what the authority still holds.
    pub purged: u64,
    /// Events from before the legacy lane's first entry.
    pub before_the_legacy_lane: u64,
    /// Events from after the legacy lane's last entry.
    pub legacy_lane_behind: u64,
    /// Deletions of documents of which the legacy lane has no entry.
    pub deletions_only_in_the_lane: u64,
    /// Events that are no documents, and whose keys name no seq of the topic: no legacy lane was told of them.
    pub without_topic_seq: u64,
}

/// What differs about one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The topic.
    pub topic: String,
    /// The topic's own seq.
    pub seq: u64,
    /// What is wrong.
    pub what: String,
}

/// What the comparison needs of an event of the lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    /// Its seq in the stream.
    pub(super) seq: u64,
    /// The seq by which a legacy lane knows it: the topic's own, if the idempotency key says it, and that in the stream, if it tells
    /// of a document.
    pub(super) legacy_seq: Option<u64>,
    kind: Kind,
    /// The hashes by which a legacy lane may know its content: of the payload as it is, of its canonical JSON, and of the document
    /// that it tells of.
    hashes: Vec<PayloadHash>,
}

impl Told {
    pub(super) fn of(topic: &Topic, event: &Event) -> Self {
        let mut hashes = vec![PayloadHash::of(&event.payload)];
        // What is canonical already has the same hash again, and what is no document has no other.
        if let Ok(canonical) = canonical_json(&event.payload)
            && canonical.as_bytes() != &event.payload[..]
        {
            hashes.push(PayloadHash::of(canonical.as_bytes()));
        }
        if event.kind.as_str() == PUT {
            hashes.extend(document_of(&event.payload));
        }
        let seq = event.seq.get();
        let is_document = [PUT, DELETE].contains(&event.kind.as_str());
        Self {
            seq,
            legacy_seq: topic
                .seq_of_key(event.idempotency_key.as_str())
                .or(is_document.then_some(seq)),
            kind: event.kind.clone(),
            hashes,
        }
    }
}

/// The hash of the document in an event: computed if the document is in it, and as it is stated if only a pointer is.
fn document_of(payload: &[u8]) -> Option<PayloadHash> {
    let event: Value = serde_json::from_slice(payload).ok()?;
    match event.get("payload") {
        Some(document) => document_hash(document.to_string().as_bytes()).ok(),
        None => event.get("payload_hash")?.as_str()?.parse().ok(),
    }
}

/// The comparison of one topic, event by event in the order of the stream.
pub(super) struct Comparison<'a> {
    entries: &'a Entries,
    /// The legacy lane is complete: what comes after its last entry is missing there.
    complete: bool,
    /// The stream's last seq before the entries were read.
    head: u64,
    found: BTreeSet<u64>,
    /// The last event of the topic so far.
    furthest: u64,
    round: TopicRound,
    differences: Vec<Difference>,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(topic: &Topic, entries: &'a Entries, complete: bool, head: u64) -> Self {
        let stream_id = topic.stream_id();
        Self {
            entries,
            complete,
            head,
            found: BTreeSet::new(),
            furthest: 0,
            round: TopicRound {
                topic: topic.as_str().to_owned(),
                no_stream: stream_id.as_ref().err().map(ToString::to_string),
                stream_id: stream_id.ok().map(|stream_id| stream_id.as_str().to_owned()),
                entries: entries.len() as u64,
                ..TopicRound::default()
            },
            differences: Vec::new(),
        }
    }

    /// No stream carries the topic, and so many of its entries were to be looked for.
    pub(super) fn nowhere(mut self, entries: u64) -> (TopicRound, Vec<Difference>) {
        self.round.looked_for = entries.max(1);
        self.round.mismatches = self.round.looked_for;
        self.end()
    }

    /// An event, which comes later in its stream than those before.
    pub(super) fn take(&mut self, told: &Told) {
        let Some(seq) = told.legacy_seq else {
            self.round.without_topic_seq += 1;
            return;
        };
        match self.entries.get(&seq) {
            Some(entry) if self.found.insert(seq) => self.compare(seq, entry, told),
            Some(_) => {
                self.round.missing_in_the_legacy_lane += 1;
                let what = format!("the lane has another event for it, at its seq {}", told.seq);
                self.differs(seq, vec![what]);
            }
            // It may have been committed after the entries were read.
            None if told.seq > self.head => {}
            None if self.entries.first_key_value().is_none_or(|(first, _)| seq < *first) => {
                self.round.before_the_legacy_lane += 1;
            }
            None if !self.complete && self.entries.last_key_value().is_some_and(|(last, _)| seq > *last) => {
                self.round.legacy_lane_behind += 1;
            }
            None if told.kind.as_str() == DELETE => self.round.deletions_only_in_the_lane += 1,
            None => {
                self.round.missing_in_the_legacy_lane += 1;
                let what = format!("the legacy lane has no entry, the lane has it at its seq {}", told.seq);
                self.differs(seq, vec![what]);
            }
        }
    }

    fn compare(&mut self, seq: u64, entry: &Entry, told: &Told) {
        self.round.compared += 1;
        let mut wrong = Vec::new();
        if !told.hashes.contains(&entry.payload_hash) {
            self.round.hash_differs += 1;
            let found: Vec<String> = told.hashes.iter().map(ToString::to_string).collect();
            wrong.push(format!(
                "the legacy lane has {}, the lane {}",
                entry.payload_hash,
                found.join(" or ")
            ));
        }
        if let Some(kind) = entry.kind.as_deref().filter(|kind| *kind != told.kind.as_str()) {
            self.round.kind_differs += 1;
            wrong.push(format!("the legacy lane has the kind {kind}, the lane {}", told.kind));
        }
        if seq < self.furthest {
            self.round.order_differs += 1;
            wrong.push(format!(
                "the lane has it at its seq {}, after {}",
                told.seq, self.furthest
            ));
        }
        self.furthest = self.furthest.max(seq);
        if wrong.is_empty() {
            self.round.looked_for += 1;
        } else {
            self.differs(seq, wrong);
        }
    }

    /// The lane does not have the event of an entry, and all that it has of the topic is from `oldest` on, if it has purged
    /// anything.
    pub(super) fn lacks(&mut self, seq: u64, oldest: Option<u64>) {
        // It was in the entries at an earlier look.
        if !self.entries.contains_key(&seq) {
            return;
        }
        if oldest.is_some_and(|oldest| seq < oldest) {
            self.round.purged += 1;
            return;
        }
        self.round.missing_in_the_lane += 1;
        self.differs(seq, vec!["the lane does not have it".to_owned()]);
    }

    /// The entries that no event was taken for.
    pub(super) fn unfound(&self) -> Vec<u64> {
        let seqs = self.entries.keys().copied();
        seqs.filter(|seq| !self.found.contains(seq)).collect()
    }

    pub(super) fn end(self) -> (TopicRound, Vec<Difference>) {
        (self.round, self.differences)
    }

    /// Counts one event or entry, whatever is wrong with it.
    fn differs(&mut self, seq: u64, wrong: Vec<String>) {
        self.round.looked_for += 1;
        self.round.mismatches += 1;
        if self.differences.len() < EXAMPLES {
            self.differences.push(Difference {
                topic: self.round.topic.clone(),
                seq,
                what: wrong.join("; "),
            });
        }
    }
}

/// What is looked at of one topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Draw {
    /// The seqs of entries.
    pub(super) entries: Vec<u64>,
    /// As many events of the lane, which the legacy lane may lack, by their seqs in the stream.
    pub(super) events: Vec<Seq>,
}

/// Draws a sample of this topic's entries and events. What other topics have does not matter.
pub(super) fn draw(seed: u64, topic: &str, entries: &Entries, share: u64, position: Option<&StreamProgress>) -> Draw {
    let mut random = random(seed, topic);
    let of_entries = picked(entries.len() as u64, share.min(entries.len() as u64), &mut random);
    let numbered = (0_u64..).zip(entries.keys());
    let floor = position.map_or(Seq::ZERO, |position| position.floor_seq);
    let held = position.map_or(0, |position| position.head_seq.since(floor));
    let of_events = picked(held, share.min(held), &mut random);
    Draw {
        entries: numbered
            .filter(|(at, _)| of_entries.contains(at))
            .map(|(_, seq)| *seq)
            .collect(),
        events: of_events.into_iter().map(|at| floor.plus(at + 1)).collect(),
    }
}

/// How many entries of each topic are looked at, of `sample` in total: as many of each as of every other, as far as they reach. Where
/// there are more topics than that, chance says which.
pub(super) fn shares(seed: u64, counts: &[u64], sample: u64) -> Vec<u64> {
    let mut shares = vec![0; counts.len()];
    let topics = counts.len() as u64;
    if sample < topics {
        let picked = picked(topics, sample, &mut random(seed, ""));
        let numbered = (0_u64..).zip(&mut shares).filter(|(at, _)| picked.contains(at));
        numbered.for_each(|(_, share)| *share = 1);
        return shares;
    }
    // The smallest come first and leave what they do not need.
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|at| counts[*at]);
    let mut rest = sample;
    for (done, at) in order.into_iter().enumerate() {
        shares[at] = (rest / (topics - done as u64)).min(counts[at]);
        rest -= shares[at];
    }
    shares
}

fn random(seed: u64, topic: &str) -> StdRng {
    let seed = PayloadHash::of(&[&seed.to_be_bytes(), topic.as_bytes()].concat());
    StdRng::from_seed(*seed.as_bytes())
}

#[cfg(test)]
mod tests;
