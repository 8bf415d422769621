//! Events of topics, as the runtime says them.

use serde::Serialize;
use spacetime_sync_proto::access::Topic;
use spacetime_sync_proto::{PayloadHash, Seq, StreamId, canonical_json};

use super::ProjectError;

/// An event of a topic. Its stream and its idempotency key follow from topic, seq and kind, so whoever knows these finds it again.
#[derive(Debug)]
pub struct TopicEvent<'a> {
    topic: Topic,
    seq: u64,
    kind: &'a str,
    stream_id: StreamId,
    payload: String,
    payload_hash: PayloadHash,
}

impl<'a> TopicEvent<'a> {
    /// The event with this seq of a topic, which is the runtime's count and not the stream's. The payload is the canonical JSON of
    /// `content`.
    pub fn of(topic: &str, seq: u64, kind: &'a str, content: &impl Serialize) -> Result<Self, ProjectError> {
        if Seq::new(seq).is_none() {
            return Err(ProjectError::SeqOutOfRange {
                topic: topic.to_owned(),
                seq,
            });
        }
        let document = || format!("{topic} {seq}");
        let name = Topic::new(topic);
        let stream_id = name.stream_id().map_err(|source| ProjectError::NoStream {
            topic: topic.to_owned(),
            source,
        })?;
        let content = serde_json::to_vec(content).map_err(|source| ProjectError::Unwritable {
            document: document(),
            source,
        })?;
        let payload = canonical_json(&content).map_err(|source| ProjectError::NotCanonical {
            document: document(),
            source,
        })?;
        Ok(Self {
            topic: name,
            seq,
            kind,
            stream_id,
            payload_hash: PayloadHash::of(payload.as_bytes()),
            payload,
        })
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        self.topic.as_str()
    }

    /// The runtime's count of the topic's events.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// What the payload is.
    pub fn kind(&self) -> &str {
        self.kind
    }

    /// The stream that carries the topic.
    pub fn stream_id(&self) -> &StreamId {
        &self.stream_id
    }

    /// The payload, in canonical JSON.
    pub fn payload(&self) -> &str {
        &self.payload
    }

    /// The hash of the payload.
    pub fn payload_hash(&self) -> &PayloadHash {
        &self.payload_hash
    }

    /// The key of the event in its stream.
    pub fn idempotency_key(&self) -> String {
        self.topic.event_key(self.seq, self.kind)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_of_a_topic_has_one_stream_one_key_and_one_text() {
        let event = TopicEvent::of("run:4 2:events", 7, "run.step", &json!({ "b": 1, "a": "\u{e4}" })).unwrap();
        assert_eq!(event.stream_id().as_str(), "runtime.run.4%202.events");
        assert_eq!(event.idempotency_key(), "topic:run:4 2:events:seq:7:kind:run.step");
        assert_eq!(event.payload(), "{\"a\":\"\u{e4}\",\"b\":1}");
        assert_eq!(*event.payload_hash(), PayloadHash::of(event.payload().as_bytes()));
    }

    #[test]
    fn what_has_no_stream_or_no_canonical_json_is_no_event() {
        let code = |topic: &str, content| TopicEvent::of(topic, 1, "k", &content).unwrap_err().code().to_owned();
        assert_eq!(code("", json!({})), "no_stream");
        let past = TopicEvent::of("run:1:events", 1 << 63, "k", &json!({})).unwrap_err();
        assert_eq!(past.code(), "seq_out_of_range");
        assert_eq!(code(&"x".repeat(300), json!({})), "no_stream");
        assert_eq!(code("run:1:events", json!({ "share": 0.5 })), "not_canonical");
    }
}
