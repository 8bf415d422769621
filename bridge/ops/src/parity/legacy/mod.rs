//! Compares the lane with a legacy lane that it is to replace, by topic.
//!
//! What the legacy lane emitted is a file with one JSON object a line, or a table in the authority's database: topic, seq, payload
//! hash and, if it has it, kind. The lane's event of an entry is the one whose idempotency key names topic and seq
//! (`topic:<topic>:seq:<seq>:kind:<kind>`). An event that tells of a document is the one of its own seq in the topic's stream, which
//! is what the dual sink tells the legacy lane.
//!
//! The entries are read after the lane's heads and before its events. So what a transaction told both lanes is in both, whenever it
//! was committed. A sample is drawn once, so another look is at what the first one saw.

mod comparison;
mod emitted;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use spacetime_sync_authority::LegacyTable;
use spacetime_sync_proto::access::Topic;
use spacetime_sync_proto::{Seq, StreamId, StreamProgress};

pub use comparison::{Difference, TopicRound};

use super::event::PAGE;
use super::{BETWEEN_LOOKS, Extent, LOOKS, Parity, ParityError, Round};
use comparison::{Comparison, Draw, Told, draw, shares};
use emitted::Emitted;

/// The most entries that are read.
const MOST_ENTRIES: u64 = 1_000_000;
/// The longest line of a file, in bytes. A topic and a kind have a few hundred.
const LONGEST_LINE: u64 = 64 * 1024;
/// How many differences of all topics are told of one by one, and how many topics.
const EXAMPLES: usize = 1_000;
const TOPICS: usize = 1_000;
/// How many topics are named that only the lane has.
const NAMES: usize = 20;

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
    #[error(
        "{name}: expected at most {MOST_ENTRIES} entries, found more; compare it in parts: --legacy-topic BEGINNING"
    )]
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
    /// Only topics that begin so are compared.
    pub beginning: String,
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
    /// The share of those that are contradictory or invalid in everything that was read.
    pub invalid_ratio: f64,
    /// The file ends within a line: somebody writes it, and the next round reads that line.
    pub unfinished_line: bool,
    /// Entries that were compared with their event, in all topics.
    pub compared: u64,
    /// How many events and entries differ, in all topics, with what is contradictory or invalid. If nothing could be compared, it
    /// is one.
    pub mismatches: u64,
    /// The share of the topics' mismatches in what was looked for there.
    pub mismatch_ratio: f64,
    /// Whether it took another look.
    pub settled_by_another_look: bool,
    /// How many topics the legacy lane names.
    pub topic_count: u64,
    /// The first topics, those that differ before all others.
    pub topics: Vec<TopicRound>,
    /// Topics of the lane that the legacy lane never names, which is right if those were never its own.
    pub topics_only_in_the_lane: u64,
    /// The first of them.
    pub topics_only_in_the_lane_examples: Vec<String>,
    /// The first differences.
    pub differences: Vec<Difference>,
}

/// A topic's counts, and its first differences.
type Compared = (TopicRound, Vec<Difference>);

impl LegacyRound {
    fn of(emitted: Emitted, seed: u64, topics: Vec<Compared>) -> Self {
        let wrong = emitted.contradictory + emitted.invalid;
        let mut round = Self {
            seed,
            entries: emitted.entries,
            repeated: emitted.repeated,
            contradictory: emitted.contradictory,
            invalid: emitted.invalid,
            invalid_ratio: wrong as f64 / emitted.taken().max(1) as f64,
            invalid_examples: emitted.examples,
            unfinished_line: emitted.unfinished_line,
            topic_count: topics.len() as u64,
            ..Self::default()
        };
        let mut looked_for = 0;
        for (topic, differences) in topics {
            round.compared += topic.compared;
            round.mismatches += topic.mismatches;
            looked_for += topic.looked_for;
            let room = EXAMPLES - round.differences.len();
            round.differences.extend(differences.into_iter().take(room));
            round.topics.push(topic);
        }
        round.mismatch_ratio = round.mismatches as f64 / looked_for.max(1) as f64;
        round.mismatches += wrong;
        if round.compared == 0 && round.mismatches == 0 {
            round.mismatches = 1;
            let why = "nothing was compared: no entry has an event that the lane still holds";
            round.invalid_examples.push(why.to_owned());
        }
        round.topics.sort_by_key(|topic| topic.mismatches == 0);
        round.topics.truncate(TOPICS);
        round
    }

    /// Keeps the totals alone, as a long watch does of its earlier rounds.
    pub fn forget_details(&mut self) {
        self.topics.clear();
        self.differences.clear();
        self.topics_only_in_the_lane_examples.clear();
        self.invalid_examples.clear();
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
        let mut draws = None;
        let mut look = 1;
        loop {
            let positions = self.streams().await?;
            let streams = positions
                .iter()
                .map(|position| (&position.stream_id, position))
                .collect();
            let emitted = self.emitted(legacy).await?;
            if let (Extent::Sample(count), None) = (extent, &draws) {
                draws = Some(drawn(legacy.seed, &emitted, &streams, count));
            }
            let complete = matches!(legacy.source, LegacySource::Table(_));
            let (topics, seen) = self.topics(&emitted, &streams, draws.as_ref(), complete).await?;
            let only = only_in_the_lane(&emitted, &positions);
            let mut found = LegacyRound::of(emitted, legacy.seed, topics);
            if found.mismatches > 0 && look < LOOKS {
                look += 1;
                tokio::time::sleep(BETWEEN_LOOKS).await;
                continue;
            }
            found.settled_by_another_look = look > 1 && found.mismatches == 0;
            found.topics_only_in_the_lane = only.len() as u64;
            found.topics_only_in_the_lane_examples = only.into_iter().take(NAMES).collect();
            for (stream_id, seq) in seen {
                self.event(&stream_id, seq, round).await?;
            }
            return Ok(found);
        }
    }

    /// Compares each topic: all of it, or what was drawn. Returns as well which published events were drawn.
    async fn topics(
        &self,
        emitted: &Emitted,
        streams: &BTreeMap<&StreamId, &StreamProgress>,
        draws: Option<&BTreeMap<String, Draw>>,
        complete: bool,
    ) -> Result<(Vec<Compared>, Vec<(StreamId, Seq)>), ParityError> {
        let (mut compared, mut seen) = (Vec::new(), Vec::new());
        // A topic that came after the draw has its turn in the next round.
        let nothing = Draw::default();
        for (name, entries) in &emitted.topics {
            let topic = Topic::new(name);
            let draw = draws.map(|draws| draws.get(name).unwrap_or(&nothing));
            let Ok(stream_id) = topic.stream_id() else {
                let share = draw.map_or(entries.len(), |draw| draw.entries.len());
                compared.push(Comparison::new(&topic, entries, complete, 0).nowhere(share as u64));
                continue;
            };
            let position = streams.get(&stream_id);
            let head = position.map_or(0, |position| position.head_seq.get());
            let mut comparison = Comparison::new(&topic, entries, complete, head);
            let unfound = match draw {
                None => {
                    self.walk(&topic, &stream_id, &mut comparison).await?;
                    comparison.unfound()
                }
                Some(draw) => {
                    let (events, unfound) = self.sampled(&topic, &stream_id, draw).await?;
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

    /// The events that were drawn, by their entries or by themselves, in the order of the stream. Returns as well the entries that
    /// have none.
    async fn sampled(
        &self,
        topic: &Topic,
        stream_id: &StreamId,
        draw: &Draw,
    ) -> Result<(Vec<Told>, Vec<u64>), ParityError> {
        let (mut events, mut unfound) = (BTreeMap::new(), Vec::new());
        for seq in &draw.entries {
            let found = self.told_of(topic, stream_id, *seq).await?;
            if found.is_empty() {
                unfound.push(*seq);
            }
            events.extend(found.into_iter().map(|told| (told.seq, told)));
        }
        for seq in &draw.events {
            let told = self.told_at(topic, stream_id, seq.get()).await?;
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
        let floor = position.map(|position| position.floor_seq);
        let Some(floor) = floor.filter(|floor| *floor > Seq::ZERO) else {
            return Ok(None);
        };
        let events = self.authority.read_events(stream_id, floor, PAGE.0, PAGE.1).await?;
        if events.is_empty() {
            // All that was appended is purged.
            return Ok(Some(u64::MAX));
        }
        Ok(events.iter().find_map(|event| Told::of(topic, event).legacy_seq))
    }

    /// The event with this seq of the stream, if the authority holds it.
    async fn told_at(&self, topic: &Topic, stream_id: &StreamId, seq: u64) -> Result<Option<Told>, ParityError> {
        let Some(before) = seq.checked_sub(1).and_then(Seq::new) else {
            return Ok(None);
        };
        let events = self
            .authority
            .read_events(stream_id, before, 1, usize::MAX >> 1)
            .await?;
        let event = events.first().filter(|event| event.seq.get() == seq);
        Ok(event.map(|event| Told::of(topic, event)))
    }

    /// What the lane has for an entry: by its key, or as a document by its seq. Should be one event.
    async fn told_of(&self, topic: &Topic, stream_id: &StreamId, seq: u64) -> Result<Vec<Told>, ParityError> {
        let events = self.authority.topic_events(topic, stream_id, seq, 2).await?;
        if !events.is_empty() {
            return Ok(events.iter().map(|event| Told::of(topic, event)).collect());
        }
        let told = self.told_at(topic, stream_id, seq).await?;
        let told = told.filter(|told| told.legacy_seq == Some(seq));
        Ok(told.into_iter().collect())
    }

    async fn emitted(&self, legacy: &Legacy) -> Result<Emitted, ParityError> {
        let beginning = legacy.beginning.clone();
        let (name, emitted) = match &legacy.source {
            LegacySource::File(path) => {
                let file = path.clone();
                let read = tokio::task::spawn_blocking(move || read_file(&file, beginning)).await;
                let read = read.map_err(|error| LegacyError::Unreadable {
                    path: path.clone(),
                    source: std::io::Error::other(error),
                })?;
                (path.display().to_string(), read?)
            }
            LegacySource::Table(table) => {
                let mut emitted = Emitted {
                    beginning,
                    ..Emitted::default()
                };
                let mut number = 0;
                let most = usize::try_from(MOST_ENTRIES + 1).unwrap_or(usize::MAX);
                let take = |row| {
                    number += 1;
                    emitted.row(number, row);
                };
                self.authority.legacy_rows(table, &legacy.beginning, most, take).await?;
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

/// What is looked at of each topic, of so many entries in total.
fn drawn(
    seed: u64,
    emitted: &Emitted,
    streams: &BTreeMap<&StreamId, &StreamProgress>,
    count: u64,
) -> BTreeMap<String, Draw> {
    let counts: Vec<u64> = emitted.topics.values().map(|entries| entries.len() as u64).collect();
    let topics = emitted.topics.iter().zip(shares(seed, &counts, count));
    let draws = topics.map(|((topic, entries), share)| {
        let stream_id = Topic::new(topic).stream_id().ok();
        let position = stream_id.and_then(|stream_id| streams.get(&stream_id).copied());
        (topic.clone(), draw(seed, topic, entries, share, position))
    });
    draws.collect()
}

/// The topics of the lane that the legacy lane does not name.
fn only_in_the_lane(emitted: &Emitted, streams: &[StreamProgress]) -> Vec<String> {
    let topics = streams
        .iter()
        .filter_map(|position| Topic::of_stream(&position.stream_id));
    let topics = topics.map(|topic| topic.as_str().to_owned());
    topics
        .filter(|topic| topic.starts_with(&emitted.beginning) && !emitted.topics.contains_key(topic))
        .collect()
}

/// Reads a file line by line. It ends early once there are too many.
fn read_file(path: &Path, beginning: String) -> Result<Emitted, LegacyError> {
    let unreadable = |source| LegacyError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut file = BufReader::new(std::fs::File::open(path).map_err(unreadable)?);
    let mut emitted = Emitted {
        beginning,
        ..Emitted::default()
    };
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
        let whole = line.last() == Some(&b'\n');
        if read as u64 == LONGEST_LINE && !whole {
            emitted.refuse(
                format_args!("line {number}"),
                format_args!("longer than {LONGEST_LINE} bytes"),
            );
            file.skip_until(b'\n').map_err(unreadable)?;
        } else if !whole {
            emitted.last_line(number, &line);
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
    fn with_nothing_compared_nothing_is_equal() {
        for (compared, mismatches) in [(0, 1), (1, 0)] {
            let topic = TopicRound {
                purged: 5,
                compared,
                looked_for: compared,
                ..TopicRound::default()
            };
            let round = LegacyRound::of(Emitted::default(), 7, vec![(topic, Vec::new())]);
            assert_eq!((round.mismatches, round.mismatch_ratio), (mismatches, 0.0));
        }
    }

    #[test]
    fn what_is_read_and_what_is_compared_have_ratios_of_their_own() {
        let emitted = Emitted {
            entries: 6,
            invalid: 2,
            ..Emitted::default()
        };
        let topic = TopicRound {
            compared: 3,
            looked_for: 4,
            mismatches: 1,
            ..TopicRound::default()
        };
        let round = LegacyRound::of(emitted, 7, vec![(topic, Vec::new())]);
        let ratios = (round.mismatch_ratio, round.invalid_ratio);
        assert_eq!((round.mismatches, ratios), (3, (0.25, 0.25)));
    }

    #[test]
    fn a_file_is_read_to_its_end_whatever_its_lines_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let missing = read_file(&path, String::new()).unwrap_err();
        assert!(matches!(missing, LegacyError::Unreadable { .. }), "{missing}");
        let hash = format!("sha256:{}", "0".repeat(64));
        let line = |seq: u64| format!("{{\"topic\":\"a\",\"seq\":{seq},\"payload_hash\":\"{hash}\"}}");
        let long = "x".repeat(LONGEST_LINE as usize + 5);
        let text = format!("{}\r\n\n{long}\n  \n{}\n{}", line(1), line(2), line(3));
        std::fs::write(&path, text).unwrap();
        let emitted = read_file(&path, String::new()).unwrap();
        assert_eq!((emitted.entries, emitted.invalid), (3, 1));
        assert_eq!(emitted.examples, ["line 3: longer than 65536 bytes"]);
        assert!(!emitted.unfinished_line);
        // Somebody writes it.
        std::fs::write(&path, format!("{}\n{}", line(1), &line(2)[..20])).unwrap();
        let emitted = read_file(&path, String::new()).unwrap();
        assert_eq!(
            (emitted.entries, emitted.invalid, emitted.unfinished_line),
            (1, 0, true)
        );
        std::fs::write(&path, "").unwrap();
        assert_eq!(read_file(&path, String::new()).unwrap().taken(), 0);
    }
}
