//! Topics and streams.

use serde::Deserialize;
use spacetime_sync_proto::StreamId;
use spacetime_sync_proto::access::Topic;

use crate::vectors;

#[derive(Deserialize)]
struct Vector {
    /// Absent where the stream carries no topic.
    topic: Option<String>,
    /// Absent where the topic has no stream.
    stream_id: Option<StreamId>,
}

#[cfg_attr(test, test)]
pub(crate) fn topics_and_streams_lead_to_one_another() {
    for Vector { topic, stream_id } in vectors(include_str!("../topics.json"), 30) {
        let topic = topic.map(|text| Topic::new(&text));
        if let Some(topic) = &topic {
            assert_eq!(topic.stream_id().ok(), stream_id, "{topic:?}");
        }
        if let Some(stream_id) = &stream_id {
            assert_eq!(Topic::of_stream(stream_id), topic, "{stream_id}");
        }
        assert!(topic.is_some() || stream_id.is_some());
    }
}
