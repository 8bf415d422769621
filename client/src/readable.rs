//! Which streams the session may read, as the application hears it.

use std::collections::BTreeSet;

use spacetime_sync_proto::StreamId;
use spacetime_sync_proto::access::Topic;

/// The streams that a session may read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadableStreams {
    /// Their names. A stream that has no event yet is not among them.
    pub streams: BTreeSet<StreamId>,
    /// Whether these are all. A module of schema version 11 does not say which there are: then they are those that the client
    /// follows and the session may read.
    pub is_complete: bool,
}

impl ReadableStreams {
    /// The topics that these streams carry. A stream without one is left out.
    pub fn topics(&self) -> Vec<Topic> {
        self.streams.iter().filter_map(Topic::of_stream).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_told_by_their_topics_too() {
        let names = ["notes", "runtime.run.42.events", "runtime.run_summaries"];
        let readable = ReadableStreams {
            streams: names.iter().filter_map(|name| StreamId::new(name).ok()).collect(),
            is_complete: true,
        };
        let topics = readable.topics();
        let topics: Vec<_> = topics.iter().map(Topic::as_str).collect();
        assert_eq!(topics, ["run:42:events", "runtime.run_summaries"]);
    }
}
