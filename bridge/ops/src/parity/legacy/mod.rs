//! Compares the lane with a legacy lane that it is to replace, by topic.
//!
//! What the legacy lane emitted is a file with one JSON object a line, or a table in the authority's database: topic, seq, payload
//! hash and, if it has it, kind. The lane's event of an entry is the one whose idempotency key names topic and seq
//! (`topic:<topic>:seq:<seq>:kind:<kind>`). Where no key does, it is the event with the same seq in the topic's stream: so it is for
//! documents, of which the dual sink tells the legacy lane by that seq.
//!
//! The entries are read after the lane's heads and before its events. So what a transaction told both lanes is in both, whenever it
//! was committed.

mod comparison;
mod emitted;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::Serialize;
use spacetime_sync_authority::LegacyTable;
use spacetime_sync_proto::access::Topic;
use spacetime_sync_proto::{Seq, StreamId, StreamProgress};

pub use comparison::{Difference, TopicRound};

use super::event::PAGE;
use super::{BETWEEN_LOOKS, Extent, LOOKS, Parity, ParityError, Round, picked};
use comparison::{Comparison, Told, chosen, shares};
use emitted::Emitted;

/// The most entries that are read.
const MOST_ENTRIES: u64 = 1_000_000;
/// The longest line of a file, in bytes. A topic and a kind have a few hundred.
const LONGEST_LINE: u64 = 64 * 1024;
/// How many differences of all topics are told of one by one.
const EXAMPLES: usize = 1_000;

/// Why a legacy lane cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum LegacyError {
    /// The file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is nothing to compare.
    #[error(
        "{name}: expected entries with topic, seq and payload_hash, found none; was the legacy lane told of anything?"
    )]
    Empty {
        /// The file or table.
        name: String,
    },
    /// There is too much to compare at once.
    #[error("{name}: expected at most {MOST_ENTRIES} entries, found more; compare it in parts, for example by topic")]
    TooMany {
        /// The file or table.
        name: String,
    },
}

/// What a legacy lane emitted.
#[derive(Debug, Clone)]
pub enum LegacySource {
    /// A file, with one JSON object a line. It may end anywhere: what comes after its last entry of a topic is not missing in it.
    File(PathBuf),
    /// A table in the authority's database, which is told of everything in the same transaction.
    Table(LegacyTable),
}

/// A legacy lane to compare with.
#[derive(Debug, Clone)]
pub struct Legacy {
    /// What it emitted.
    pub source: LegacySource,
    /// Determines which entries are in a sample.
    pub seed: u64,
}

/// One comparison with a legacy lane.
#[derive(Debug, Clone, Default, Serialize)]
pub struct LegacyRound {
    /// What determined the sample.
    pub seed: u64,
    /// Entries of different events, in all topics.
    pub entries: u64,
    /// Entries that say again what one before them said.
    pub repeated: u64,
    /// Entries that say something else of an event than one before them.
    pub contradictory: u64,
    /// Lines or rows that are no entries.
    pub invalid: u64,
    /// The first of those that are contradictory or invalid, and why.
    pub invalid_examples: Vec<String>,
    /// Entries that were compared with their event, in all topics.
    pub compared: u64,
    /// How many things differ, in all topics, with what is contradictory or invalid.
    pub mismatches: u64,
    /// The share of mismatches in what was looked for.
    pub mismatch_ratio: f64,
    /// Whether it took another look.
    pub settled_by_another_look: bool,
    /// Each topic.
    pub topics: Vec<TopicRound>,
    /// The first differences.
    pub differences: Vec<Difference>,
}

/// A topic's counts, and its first differences.
type Compared = (TopicRound, Vec<Difference>);

impl LegacyRound {
    fn of(emitted: Emitted, seed: u64, topics: Vec<Compared>) -> Self {
        let mut round = Self {
            seed,
            entries: emitted.entries,
            repeated: emitted.repeated,
            contradictory: emitted.contradictory,
            invalid: emitted.invalid,
            invalid_examples: emitted.examples,
            mismatches: emitted.contradictory + emitted.invalid,
            ..Self::default()
        };
        let mut looked_for = round.mismatches;
        for (topic, differences) in topics {
            round.compared += topic.compared;
            round.mismatches += topic.mismatches();
            looked_for += topic.looked_for();
            let room = EXAMPLES - round.differences.len();
            round.differences.extend(differences.into_iter().take(room));
            round.topics.push(topic);
        }
        round.mismatch_ratio = round.mismatches as f64 / looked_for.max(1) as f64;
        round
    }
}

impl Parity<'_> {
    /// Compares with a legacy lane. What is in the sample is compared in SpacetimeDB and in clients, too, as part of `round`; the
    /// whole is compared there anyway.
    pub(super) async fn legacy(
        &self,
        legacy: &Legacy,
        extent: Extent,
        round: &mut Round,
    ) -> Result<LegacyRound, ParityError> {
        let mut look = 1;
        loop {
            let streams = self.streams().await?;
            let streams = streams.iter().map(|position| (&position.stream_id, position)).collect();
            let emitted = self.emitted(&legacy.source).await?;
            let complete = matches!(legacy.source, LegacySource::Table(_));
            let mut random = StdRng::seed_from_u64(legacy.seed);
            let (topics, seen) = self.topics(&emitted, &streams, extent, complete, &mut random).await?;
            let mut found = LegacyRound::of(emitted, legacy.seed, topics);
            if found.mismatches == 0 || look == LOOKS {
                found.settled_by_another_look = look > 1 && found.mismatches == 0;
                for (stream_id, seq) in seen {
                    self.event(&stream_id, seq, round).await?;
                }
                return Ok(found);
            }
            look += 1;
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    /// Compares each topic. Returns as well which published events were in the sample.
    async fn topics(
        &self,
        emitted: &Emitted,
        streams: &BTreeMap<&StreamId, &StreamProgress>,
        extent: Extent,
        complete: bool,
        random: &mut StdRng,
    ) -> Result<(Vec<Compared>, Vec<(StreamId, Seq)>), ParityError> {
        let counts: Vec<u64> = emitted.topics.values().map(|entries| entries.len() as u64).collect();
        let shares = match extent {
            Extent::Sample(count) => Some(shares(&counts, count, random)),
            Extent::Whole => None,
        };
        let (mut compared, mut seen) = (Vec::new(), Vec::new());
        for (at, (topic, entries)) in emitted.topics.iter().enumerate() {
            let topic = Topic::new(topic);
            let Ok(stream_id) = topic.stream_id() else {
                compared.push(Comparison::new(&topic, entries, complete, 0).end());
                continue;
            };
            let position = streams.get(&stream_id);
            let head = position.map_or(0, |position| position.head_seq.get());
            let mut comparison = Comparison::new(&topic, entries, complete, head);
            let unfound = match &shares {
                None => {
                    self.walk(&topic, &stream_id, &mut comparison).await?;
                    comparison.unfound()
                }
                Some(shares) => {
                    let seqs = chosen(entries, shares[at], random);
                    // As many events of the lane, which the legacy lane may lack.
                    let floor = position.map_or(Seq::ZERO, |position| position.floor_seq);
                    let held = position.map_or(0, |position| position.head_seq.since(floor));
                    let places = picked(held, shares[at].min(held), random);
                    let places = places.into_iter().map(|place| floor.plus(place)).collect();
                    let (events, unfound) = self.sampled(&topic, &stream_id, seqs, places).await?;
                    let published = position.map(|position| position.published_seq);
                    for told in &events {
                        comparison.take(told);
                        let seq = Seq::new(told.seq).filter(|seq| Some(*seq) <= published);
                        seen.extend(seq.map(|seq| (stream_id.clone(), seq)));
                    }
                    unfound
                }
            };
            let oldest = match unfound.first() {
                Some(_) => self.oldest(&topic, &stream_id).await?,
                None => None,
            };
            for seq in unfound {
                comparison.lacks(seq, oldest);
            }
            compared.push(comparison.end());
        }
        Ok((compared, seen))
    }

    /// The events of these entries, and those after these seqs of the stream, in the order of the stream. Returns as well the
    /// entries that have none.
    async fn sampled(
        &self,
        topic: &Topic,
        stream_id: &StreamId,
        seqs: Vec<u64>,
        places: Vec<Seq>,
    ) -> Result<(Vec<Told>, Vec<u64>), ParityError> {
        let (mut events, mut unfound) = (BTreeMap::new(), Vec::new());
        for seq in seqs {
            let found = self.told_of(topic, stream_id, seq).await?;
            if found.is_empty() {
                unfound.push(seq);
            }
            events.extend(found.into_iter().map(|told| (told.seq, told)));
        }
        for after in places {
            let told = self.told_at(topic, stream_id, after).await?;
            events.extend(told.map(|told| (told.seq, told)));
        }
        Ok((events.into_values().collect(), unfound))
    }

    /// Takes every event of a stream, up to where it ends at the beginning.
    async fn walk(
        &self,
        topic: &Topic,
        stream_id: &StreamId,
        comparison: &mut Comparison<'_>,
    ) -> Result<(), ParityError> {
        let position = self.authority.position(stream_id).await?;
        let end = position.map_or(Seq::ZERO, |position| position.head_seq);
        let mut after = Seq::ZERO;
        while after < end {
            let events = self.authority.read_events(stream_id, after, PAGE.0, PAGE.1).await?;
            let Some(last) = events.last() else { break };
            after = last.seq;
            for event in &events {
                comparison.take(&Told::of(topic, event));
            }
        }
        Ok(())
    }

    /// The seq in the topic of the oldest event that the authority holds, if it has purged what was before.
    async fn oldest(&self, topic: &Topic, stream_id: &StreamId) -> Result<Option<u64>, ParityError> {
        let position = self.authority.position(stream_id).await?;
        let Some(floor) = position
            .map(|position| position.floor_seq)
            .filter(|floor| *floor > Seq::ZERO)
        else {
            return Ok(None);
        };
        let told = self.told_at(topic, stream_id, floor).await?;
        // With nothing left, all that was appended is purged.
        Ok(Some(told.map_or(u64::MAX, |told| told.legacy_seq)))
    }

    /// The first event after a seq of the stream.
    async fn told_at(&self, topic: &Topic, stream_id: &StreamId, after: Seq) -> Result<Option<Told>, ParityError> {
        let events = self.authority.read_events(stream_id, after, 1, usize::MAX >> 1).await?;
        Ok(events.first().map(|event| Told::of(topic, event)))
    }

    /// What the lane has for an entry: by its key, or by its seq. Should be one event.
    async fn told_of(&self, topic: &Topic, stream_id: &StreamId, seq: u64) -> Result<Vec<Told>, ParityError> {
        let events = self.authority.topic_events(topic, stream_id, seq, 2).await?;
        if !events.is_empty() {
            return Ok(events.iter().map(|event| Told::of(topic, event)).collect());
        }
        let Some(before) = seq.checked_sub(1).and_then(Seq::new) else {
            return Ok(Vec::new());
        };
        let told = self.told_at(topic, stream_id, before).await?;
        // The authority may have purged it, and an event whose key names another seq is another one.
        let is_it = |told: &Told| told.seq == seq && told.legacy_seq == seq;
        Ok(told.filter(is_it).into_iter().collect())
    }

    async fn emitted(&self, source: &LegacySource) -> Result<Emitted, ParityError> {
        let (name, emitted) = match source {
            LegacySource::File(path) => {
                let file = path.clone();
                let read = tokio::task::spawn_blocking(move || read_file(&file)).await;
                let read = read.map_err(|error| LegacyError::Unreadable {
                    path: path.clone(),
                    source: std::io::Error::other(error),
                })?;
                (path.display().to_string(), read?)
            }
            LegacySource::Table(table) => {
                let mut emitted = Emitted::default();
                let mut number = 0;
                let most = usize::try_from(MOST_ENTRIES + 1).unwrap_or(usize::MAX);
                let take = |row| {
                    number += 1;
                    emitted.row(number, row);
                };
                self.authority.legacy_rows(table, most, take).await?;
                (table.name().to_owned(), emitted)
            }
        };
        if emitted.taken() > MOST_ENTRIES {
            return Err(LegacyError::TooMany { name }.into());
        }
        if emitted.taken() == 0 {
            return Err(LegacyError::Empty { name }.into());
        }
        Ok(emitted)
    }
}

/// Reads a file line by line. It ends early once there are too many.
fn read_file(path: &Path) -> Result<Emitted, LegacyError> {
    let unreadable = |source| LegacyError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut file = BufReader::new(std::fs::File::open(path).map_err(unreadable)?);
    let mut emitted = Emitted::default();
    let mut number = 0;
    let mut line = Vec::new();
    while emitted.taken() <= MOST_ENTRIES {
        line.clear();
        number += 1;
        let read = file
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)
            .map_err(unreadable)?;
        if read == 0 {
            break;
        }
        if read as u64 == LONGEST_LINE && line.last() != Some(&b'\n') {
            emitted.refuse(
                format_args!("line {number}"),
                format_args!("longer than {LONGEST_LINE} bytes"),
            );
            file.skip_until(b'\n').map_err(unreadable)?;
        } else if !line.trim_ascii().is_empty() {
            emitted.line(number, &line);
        }
    }
    Ok(emitted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_to_its_end_whatever_its_lines_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let missing = read_file(&path).unwrap_err();
        assert!(matches!(missing, LegacyError::Unreadable { .. }), "{missing}");
        let hash = format!("sha256:{}", "0".repeat(64));
        let line = |seq: u64| format!("{{\"topic\":\"a\",\"seq\":{seq},\"payload_hash\":\"{hash}\"}}");
        let long = "x".repeat(LONGEST_LINE as usize + 5);
        let text = format!("{}\r\n\n{long}\n  \n{}\n{}", line(1), line(2), line(3));
        std::fs::write(&path, text).unwrap();
        let emitted = read_file(&path).unwrap();
        assert_eq!((emitted.entries, emitted.invalid), (3, 1));
        assert_eq!(emitted.examples, ["line 3: longer than 65536 bytes"]);
        std::fs::write(&path, "").unwrap();
        assert_eq!(read_file(&path).unwrap().taken(), 0);
    }
}
