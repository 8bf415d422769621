//! What a legacy lane emitted, by topic: read line by line or row by row, judged, and kept.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::Deserialize;
use serde_json::Value;
use spacetime_sync_authority::LegacyRow;
use spacetime_sync_proto::{PayloadHash, Seq};

/// The longest topic that can have a stream, and the longest kind, in bytes.
const LONGEST: (usize, usize) = (255, 128);
/// How many of the entries that are no use are told of one by one.
const EXAMPLES: usize = 20;

/// What is known of one event of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) payload_hash: PayloadHash,
    /// What the payload is, if the legacy lane says it.
    pub(super) kind: Option<Box<str>>,
}

/// The entries of a topic, by the topic's own seq.
pub(super) type Entries = BTreeMap<u64, Entry>;

/// Everything that a legacy lane emitted.
#[derive(Debug, Default)]
pub(super) struct Emitted {
    pub(super) topics: BTreeMap<String, Entries>,
    /// Entries of different events.
    pub(super) entries: u64,
    /// Entries that say again what one before them said.
    pub(super) repeated: u64,
    /// Entries that say something else of an event than one before them. The first counts.
    pub(super) contradictory: u64,
    /// What is no entry.
    pub(super) invalid: u64,
    /// The first of those that are contradictory or invalid, and why.
    pub(super) examples: Vec<String>,
    /// The file ends within a line: somebody writes it.
    pub(super) unfinished_line: bool,
    /// Entries of topics that do not begin so are passed over.
    pub(super) beginning: String,
}

/// A line of a file. What else it holds does not matter.
#[derive(Deserialize)]
struct Line {
    topic: String,
    seq: Value,
    payload_hash: String,
    kind: Option<String>,
}

impl Emitted {
    /// Takes a line of JSON, with its number.
    pub(super) fn line(&mut self, number: u64, line: &[u8]) {
        self.take(format_args!("line {number}"), parsed(line));
    }

    /// Takes the last line of a file if it is whole, although it does not end as lines do.
    pub(super) fn last_line(&mut self, number: u64, line: &[u8]) {
        match parsed(line) {
            Ok(found) => self.take(format_args!("line {number}"), Ok(found)),
            Err(_) => self.unfinished_line = true,
        }
    }

    /// Takes a row of a table, with its number in the order of reading.
    pub(super) fn row(&mut self, number: u64, row: LegacyRow) {
        let found = match (row.topic, row.seq, row.payload_hash) {
            (Some(topic), Some(seq), Some(hash)) => found(topic, &seq, &hash, row.kind),
            _ => Err("topic, seq or payload_hash is null".to_owned()),
        };
        self.take(format_args!("row {number}"), found);
    }

    /// Counts what is no entry.
    pub(super) fn refuse(&mut self, place: impl Display, why: impl Display) {
        self.invalid += 1;
        self.example(place, why);
    }

    /// Everything that was taken, whatever became of it.
    pub(super) fn taken(&self) -> u64 {
        self.entries + self.repeated + self.contradictory + self.invalid
    }

    fn take(&mut self, place: impl Display, found: Result<(String, u64, Entry), String>) {
        let (topic, seq, entry) = match found {
            Ok(found) => found,
            Err(why) => return self.refuse(place, why),
        };
        if !topic.starts_with(&self.beginning) {
            return;
        }
        let entries = self.topics.entry(topic.clone()).or_default();
        match entries.get(&seq) {
            None => {
                entries.insert(seq, entry);
                self.entries += 1;
            }
            Some(held) if *held == entry => self.repeated += 1,
            Some(held) => {
                let why = format!(
                    "{topic} seq {seq} has {} here, and {} before",
                    entry.payload_hash, held.payload_hash
                );
                self.contradictory += 1;
                self.example(place, why);
            }
        }
    }

    fn example(&mut self, place: impl Display, why: impl Display) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(format!("{place}: {why}"));
        }
    }
}

fn parsed(line: &[u8]) -> Result<(String, u64, Entry), String> {
    let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let seq = match &line.seq {
        Value::Number(seq) => seq.to_string(),
        Value::String(seq) => seq.clone(),
        other => return Err(format!("seq is {other}, expected a whole number")),
    };
    found(line.topic, &seq, &line.payload_hash, line.kind)
}

fn found(topic: String, seq: &str, hash: &str, kind: Option<String>) -> Result<(String, u64, Entry), String> {
    for (what, length, most) in [
        ("topic", topic.len(), LONGEST.0),
        ("kind", kind.as_ref().map_or(0, String::len), LONGEST.1),
    ] {
        if length > most {
            return Err(format!("{what} has {length} bytes, expected at most {most}"));
        }
    }
    let number = seq.parse::<u64>().ok().filter(|number| Seq::new(*number).is_some());
    let number = number.ok_or_else(|| format!("seq is {seq:?}, expected a whole number from 0 to {}", Seq::MAX))?;
    let payload_hash = hash
        .parse::<PayloadHash>()
        .map_err(|error| format!("payload_hash: {error}"))?;
    let kind = kind.map(String::into_boxed_str);
    Ok((topic, number, Entry { payload_hash, kind }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn lines(lines: &[&str]) -> Emitted {
        let mut emitted = Emitted::default();
        for (number, line) in (1..).zip(lines) {
            emitted.line(number, line.replace("HASH", HASH).as_bytes());
        }
        emitted
    }

    #[test]
    fn each_line_is_an_entry_a_repeat_a_contradiction_or_invalid() {
        let emitted = lines(&[
            r#"{"topic":"a","seq":1,"payload_hash":"HASH"}"#,
            r#"{"topic":"a","seq":"2","payload_hash":"HASH","kind":"k","more":[1]}"#,
            r#"{"topic":"a","seq":1,"payload_hash":"HASH"}"#,
            r#"{"topic":"a","seq":1,"payload_hash":"HASH","kind":"k"}"#,
            "{",
        ]);
        assert_eq!((emitted.entries, emitted.repeated), (2, 1));
        assert_eq!((emitted.contradictory, emitted.invalid), (1, 1));
        assert_eq!(emitted.taken(), 5);
        assert_eq!(emitted.topics["a"].len(), 2);
        let [contradiction, invalid] = &emitted.examples[..] else {
            panic!("{:?}", emitted.examples)
        };
        assert!(
            contradiction.starts_with("line 4: a seq 1 has sha256:"),
            "{contradiction}"
        );
        assert!(invalid.starts_with("line 5: EOF"), "{invalid}");
    }

    #[test]
    fn what_is_no_entry_says_why_and_what_follows_is_read() {
        for (line, why) in [
            ("[]", "invalid length 0"),
            (r#"{"seq":1,"payload_hash":"HASH"}"#, "missing field `topic`"),
            (r#"{"topic":"a","payload_hash":"HASH"}"#, "missing field `seq`"),
            (
                r#"{"topic":"a","topic":"b","seq":1,"payload_hash":"HASH"}"#,
                "duplicate field",
            ),
            (r#"{"topic":"a","seq":null,"payload_hash":"HASH"}"#, "seq is null"),
            (r#"{"topic":"a","seq":1.5,"payload_hash":"HASH"}"#, "seq is \"1.5\""),
            (r#"{"topic":"a","seq":-1,"payload_hash":"HASH"}"#, "seq is \"-1\""),
            (
                r#"{"topic":"a","seq":9223372036854775808,"payload_hash":"HASH"}"#,
                "seq is",
            ),
            (r#"{"topic":"a","seq":1,"payload_hash":"md5:00"}"#, "sha256: and 64"),
            (
                r#"{"topic":"a","seq":1,"payload_hash":"sha256:E3B0"}"#,
                "sha256: and 64",
            ),
        ] {
            let emitted = lines(&[line, r#"{"topic":"a","seq":1,"payload_hash":"HASH"}"#]);
            assert_eq!((emitted.invalid, emitted.entries), (1, 1), "{line}");
            assert!(emitted.examples[0].contains(why), "{line}: {:?}", emitted.examples);
        }
        let mut emitted = Emitted::default();
        emitted.line(1, b"{\"topic\":\"\xff\",\"seq\":1}");
        emitted.row(2, LegacyRow::default());
        assert_eq!(emitted.invalid, 2);
        for number in 0..100 {
            emitted.line(number, b"");
        }
        assert_eq!((emitted.invalid, emitted.examples.len()), (102, EXAMPLES));
        for (topic, kind, good) in [(255, 128, true), (256, 128, false), (255, 129, false)] {
            let (topic, kind) = ("t".repeat(topic), "k".repeat(kind));
            let emitted = lines(&[&format!(
                "{{\"topic\":\"{topic}\",\"seq\":1,\"payload_hash\":\"HASH\",\"kind\":\"{kind}\"}}"
            )]);
            assert_eq!((emitted.entries, emitted.invalid), if good { (1, 0) } else { (0, 1) });
        }
    }

    #[test]
    fn topics_that_begin_otherwise_are_passed_over() {
        let mut emitted = Emitted {
            beginning: "run:".to_owned(),
            ..Emitted::default()
        };
        for topic in ["run:1:events", "worker:1:lifecycle"] {
            let line = format!("{{\"topic\":\"{topic}\",\"seq\":1,\"payload_hash\":\"{HASH}\"}}");
            emitted.line(1, line.as_bytes());
        }
        assert_eq!((emitted.taken(), emitted.topics.len()), (1, 1));
    }
}
