//! Topics: the names that the runtime and its clients use for streams.

use std::fmt::Write as _;

use crate::id::{InvalidId, StreamId};

/// A topic, e.g. `run:42:events`. Each topic is one stream, and the stream's name leads back to the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic(String);

impl Topic {
    /// Any text that is not empty.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The stream that carries this topic.
    pub fn stream_id(&self) -> Result<StreamId, InvalidId> {
        let parts: Vec<&str> = self.0.split(':').collect();
        let known = match parts.as_slice() {
            ["run", id, "events"] => Some(format!("runtime.run.{}.events", escaped(id))),
            ["worker", id, "lifecycle"] => Some(format!("runtime.worker.{}.lifecycle", escaped(id))),
            ["fleet", whose @ ("user" | "guest"), id, "workers"] => {
                Some(format!("runtime.fleet.{whose}.{}.workers", escaped(id)))
            }
            ["runtime.codex_worker_events"] => Some("runtime.codex.worker.events".to_owned()),
            _ => None,
        };
        let other = || {
            let parts: Vec<String> = parts.iter().map(|part| escaped(part)).collect();
            format!("runtime.topic.{}", parts.join("."))
        };
        StreamId::new(&known.unwrap_or_else(other))
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
            ["runtime", "topic", parts @ ..] => {
                let parts: Option<Vec<String>> = parts.iter().map(|part| unescaped(part)).collect();
                parts?.join(":")
            }
            _ => return None,
        };
        let topic = Self(text);
        // Accepts only the spelling that `stream_id` produces.
        (topic.stream_id().as_ref() == Ok(stream_id)).then_some(topic)
    }
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
    use super::*;

    #[test]
    fn every_topic_is_one_stream_and_comes_back_from_its_name() {
        for (topic, stream) in [
            ("run:42:events", "runtime.run.42.events"),
            ("run:a.b:events", "runtime.run.a%2Eb.events"),
            ("worker:7:lifecycle", "runtime.worker.7.lifecycle"),
            ("fleet:user:7:workers", "runtime.fleet.user.7.workers"),
            ("fleet:guest:x:workers", "runtime.fleet.guest.x.workers"),
            ("runtime.codex_worker_events", "runtime.codex.worker.events"),
            ("notes", "runtime.topic.notes"),
            ("a:b", "runtime.topic.a.b"),
            ("a.b", "runtime.topic.a%2Eb"),
            ("run:42", "runtime.topic.run.42"),
            ("käse 100%", "runtime.topic.k%C3%A4se%20100%25"),
        ] {
            let id = Topic::new(topic).stream_id().unwrap();
            assert_eq!(id.as_str(), stream);
            assert_eq!(Topic::new(topic).as_str(), topic);
            assert_eq!(Topic::of_stream(&id), Some(Topic::new(topic)), "{stream}");
        }
    }

    #[test]
    fn a_stream_that_no_topic_names_carries_no_topic() {
        for stream in [
            "notes",
            "runtime.run.42",
            "runtime.topic.%zz",
            "runtime.topic.a%2e",
            "runtime.topic.%41",
        ] {
            assert_eq!(Topic::of_stream(&StreamId::new(stream).unwrap()), None, "{stream}");
        }
    }
}
