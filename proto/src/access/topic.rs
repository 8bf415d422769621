//! Topics: the names that the runtime and its clients use for streams.

use std::fmt::Write as _;

use crate::id::{InvalidId, StreamId};

/// A topic, e.g. `run:42:events`. Each topic is one stream, and the stream's name leads back to the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic(String);

/// Streams whose topics begin with the same word: what retention and scopes know by name, for everybody, and with parts after it
/// for some.
const NAMED: [(&str, &str); 3] = [
    ("runtime.run_summaries", "run_summaries"),
    ("runtime.codex_worker_summaries", "codex_worker_summaries"),
    ("runtime.notifications", "notifications"),
];

impl Topic {
    /// Any text that is not empty.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The stream that carries this topic. There is none for the empty topic, nor for one whose stream's name would be too
    /// long.
    pub fn stream_id(&self) -> Result<StreamId, InvalidId> {
        if self.0.is_empty() {
            return Err(InvalidId::Empty { what: "the topic" });
        }
        let parts: Vec<&str> = self.0.split(':').collect();
        let known = match parts.as_slice() {
            ["run", id, "events"] => Some(format!("runtime.run.{}.events", escaped(id))),
            ["worker", id, "lifecycle"] => Some(format!("runtime.worker.{}.lifecycle", escaped(id))),
            ["fleet", whose @ ("user" | "guest"), id, "workers"] => {
                Some(format!("runtime.fleet.{whose}.{}.workers", escaped(id)))
            }
            ["runtime.codex_worker_events"] => Some("runtime.codex.worker.events".to_owned()),
            [first, parts @ ..] => NAMED
                .iter()
                .find(|(topic, _)| topic == first)
                .map(|(_, stream)| joined(&["runtime", stream], parts)),
            [] => None,
        };
        StreamId::new(&known.unwrap_or_else(|| joined(&["runtime", "topic"], &parts)))
    }

    /// The topic that a stream carries, if it carries one.
    pub fn of_stream(stream_id: &StreamId) -> Option<Self> {
        let parts: Vec<&str> = stream_id.as_str().split('.').collect();
        let text = match parts.as_slice() {
            ["runtime", "codex", "worker", "events"] => "runtime.codex_worker_events".to_owned(),
            ["runtime", "run", id, "events"] => format!("run:{}:events", unescaped(id)?),
            ["runtime", "worker", id, "lifecycle"] => format!("worker:{}:lifecycle", unescaped(id)?),
            ["runtime", "fleet", whose @ ("user" | "guest"), id, "workers"] => {
                format!("fleet:{whose}:{}:workers", unescaped(id)?)
            }
            ["runtime", "topic", parts @ ..] => parted(parts)?,
            ["runtime", stream, parts @ ..] => {
                let (topic, _) = NAMED.iter().find(|(_, named)| named == stream)?;
                match parts {
                    [] => (*topic).to_owned(),
                    parts => format!("{topic}:{}", parted(parts)?),
                }
            }
            _ => return None,
        };
        let topic = Self(text);
        // Accepts only the spelling that `stream_id` produces.
        (topic.stream_id().as_ref() == Ok(stream_id)).then_some(topic)
    }

    /// The idempotency key, in the topic's stream, of the event that the topic counts as this one.
    pub fn event_key(&self, seq: u64, kind: &str) -> String {
        format!("{}{kind}", self.event_key_beginning(seq))
    }

    /// What that key begins with, whatever the event's kind is.
    pub fn event_key_beginning(&self, seq: u64) -> String {
        format!("topic:{}:seq:{seq}:kind:", self.0)
    }

    /// The topic's own count of the event with this key. `None` if the key is not of that form.
    pub fn seq_of_key(&self, key: &str) -> Option<u64> {
        let rest = key
            .strip_prefix("topic:")?
            .strip_prefix(self.as_str())?
            .strip_prefix(":seq:")?;
        let (seq, _) = rest.split_once(":kind:")?;
        // Accepts only the spelling that `event_key` produces.
        seq.parse().ok().filter(|number: &u64| number.to_string() == seq)
    }
}

/// A stream's name of parts that stand as they are, and of a topic's parts.
fn joined(plain: &[&str], parts: &[&str]) -> String {
    let parts = parts.iter().map(|part| escaped(part));
    let all: Vec<String> = plain.iter().map(|part| (*part).to_owned()).chain(parts).collect();
    all.join(".")
}

/// A topic of the parts of a stream's name.
fn parted(parts: &[&str]) -> Option<String> {
    let parts: Option<Vec<String>> = parts.iter().map(|part| unescaped(part)).collect();
    Some(parts?.join(":"))
}

/// Writes `%` and two digits for every byte that separates parts or is not allowed in a name.
fn escaped(part: &str) -> String {
    let mut text = String::new();
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'/' | b'@' | b'+' | b'=' | b'~') {
            text.push(char::from(byte));
        } else {
            // Writing to a string never fails.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn unescaped(part: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = part.as_bytes();
    while let [first, others @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(others.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &others[2..];
        } else {
            bytes.push(*first);
            rest = others;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    #[derive(serde::Deserialize)]
    struct Vector {
        topic: Option<String>,
        stream_id: Option<StreamId>,
    }

    #[test]
    fn topics_and_streams_are_those_of_the_vectors() {
        let vectors: Vec<Vector> = serde_json::from_str(include_str!("../../vectors/topics.json")).unwrap();
        for Vector { topic, stream_id } in vectors {
            let topic = topic.map(|text| Topic::new(&text));
            if let Some(topic) = &topic {
                assert_eq!(topic.stream_id().ok(), stream_id, "{topic:?}");
            }
            if let Some(stream_id) = &stream_id {
                assert_eq!(Topic::of_stream(stream_id), topic, "{stream_id}");
            }
        }
    }

    #[test]
    fn the_key_of_a_topics_event_leads_back_to_its_seq() {
        let topic = Topic::new("run:k\u{e4}se:seq:9:kind:x:events");
        for seq in [0, 7, u64::MAX] {
            let key = topic.event_key(seq, "run.step:kind:2");
            assert!(key.starts_with(&topic.event_key_beginning(seq)), "{key}");
            assert_eq!(topic.seq_of_key(&key), Some(seq), "{key}");
        }
        assert_eq!(
            topic.event_key(7, "k"),
            "topic:run:k\u{e4}se:seq:9:kind:x:events:seq:7:kind:k"
        );
        let topic = Topic::new("a");
        for other in [
            "a:seq:7:kind:k",
            "topic:b:seq:7:kind:k",
            "topic:a:b:seq:7:kind:k",
            "topic:a:seq:07:kind:k",
            "topic:a:seq:+7:kind:k",
            "topic:a:seq::kind:k",
            "topic:a:seq:7",
            "topic:a:seq:18446744073709551616:kind:k",
            "doc:a:seq:7:projection:1",
        ] {
            assert_eq!(topic.seq_of_key(other), None, "{other}");
        }
    }

    #[test]
    fn a_topic_and_its_stream_lead_to_one_another_and_to_nothing_else() {
        let random = &mut StdRng::seed_from_u64(14);
        let words = [
            "run",
            "worker",
            "fleet",
            "user",
            "guest",
            "events",
            "lifecycle",
            "workers",
            "42",
            "a.b",
            "",
            "k\u{e4}se",
            "%41",
            "%",
            "runtime.codex_worker_events",
            "runtime.run_summaries",
            "runtime.notifications",
            "run_summaries",
            "topic",
            "runtime",
        ];
        let mut topics = std::collections::HashMap::new();
        for _ in 0..20_000 {
            let parts: Vec<_> = (0..random.random_range(1..5))
                .map(|_| words[random.random_range(0..words.len())])
                .collect();
            let text = parts.join([":", ".", ":"][random.random_range(0..3)]);
            let topic = Topic::new(&text);
            let Ok(stream_id) = topic.stream_id() else {
                assert_eq!(text, "");
                continue;
            };
            assert_eq!(Topic::of_stream(&stream_id), Some(topic.clone()), "{text} {stream_id}");
            let of_stream = topics.entry(stream_id.clone()).or_insert_with(|| topic.clone());
            assert_eq!(*of_stream, topic, "{stream_id} carries two topics");

            // The other way: whatever a stream is called, it carries the one topic that leads to it, or none.
            if let Ok(stream_id) = StreamId::new(&text.replace(['\u{e4}'], "%C3%A4")) {
                let carried = Topic::of_stream(&stream_id);
                assert!(carried.is_none_or(|topic| topic.stream_id() == Ok(stream_id)), "{text}");
            }
        }
    }
}
