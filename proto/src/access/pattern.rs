//! A pattern names one stream, or all streams with a common prefix.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{InvalidId, StreamId};

/// The characters that end a part of a name. A prefix ends with one of them, so that `user:1:*` never covers
/// `user:10:…`.
const SEPARATORS: [char; 3] = ['.', ':', '/'];

/// Streams by name: `runtime.run.42.events` is one stream; `runtime.run.*` and `user:7:*` are all streams with that
/// prefix, including those that are created later.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StreamPattern {
    /// This stream only.
    Exact(StreamId),
    /// Every stream whose name begins with this text and is longer. The text ends with a separator.
    Prefix(String),
}

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// It is not a valid stream name.
    #[error(transparent)]
    Name(#[from] InvalidId),
    /// The prefix ends in the middle of a part of a name.
    #[error("{0:?} ends in the middle of a name part: expected . : or / before the *")]
    Boundary(String),
}

impl StreamPattern {
    /// Reads a pattern: a stream name, or a prefix that ends with a separator, followed by `*`.
    pub fn new(text: &str) -> Result<Self, InvalidPattern> {
        match text.strip_suffix('*') {
            None => Ok(Self::Exact(StreamId::new(text)?)),
            Some(prefix) if prefix.ends_with(SEPARATORS) => {
                StreamId::check(prefix)?;
                Ok(Self::Prefix(prefix.to_owned()))
            }
            Some(_) => Err(InvalidPattern::Boundary(text.to_owned())),
        }
    }

    /// Whether the pattern covers a stream.
    pub fn matches(&self, stream_id: &StreamId) -> bool {
        match self {
            Self::Exact(only) => only == stream_id,
            Self::Prefix(prefix) => {
                stream_id.as_str().len() > prefix.len() && stream_id.as_str().starts_with(prefix.as_str())
            }
        }
    }

    /// The streams that both patterns cover, if there can be any.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Exact(stream_id), pattern) | (pattern, Self::Exact(stream_id)) => {
                pattern.matches(stream_id).then(|| Self::Exact(stream_id.clone()))
            }
            (Self::Prefix(a), Self::Prefix(b)) => {
                let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
                long.starts_with(short.as_str()).then(|| Self::Prefix(long.clone()))
            }
        }
    }

    /// The part of `wanted` that `allowed` covers, without duplicates, in order.
    pub fn intersection(wanted: &[Self], allowed: &[Self]) -> Vec<Self> {
        let mut both: Vec<Self> = wanted
            .iter()
            .flat_map(|want| allowed.iter().filter_map(|allow| want.intersect(allow)))
            .collect();
        both.sort();
        both.dedup();
        both
    }

    /// Every prefix that covers this stream. The module uses them to find the sessions that may see a new stream.
    pub fn prefixes_of(stream_id: &StreamId) -> impl Iterator<Item = &str> {
        let text = stream_id.as_str();
        let ends = text.char_indices().filter(|(_, c)| SEPARATORS.contains(c));
        ends.map(move |(at, _)| &text[..=at])
            .filter(move |prefix| prefix.len() < text.len())
    }
}

impl fmt::Display for StreamPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(stream_id) => stream_id.fmt(f),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

impl From<StreamId> for StreamPattern {
    fn from(stream_id: StreamId) -> Self {
        Self::Exact(stream_id)
    }
}

impl From<StreamPattern> for String {
    fn from(pattern: StreamPattern) -> Self {
        pattern.to_string()
    }
}

impl TryFrom<String> for StreamPattern {
    type Error = InvalidPattern;
    fn try_from(text: String) -> Result<Self, InvalidPattern> {
        Self::new(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> StreamPattern {
        StreamPattern::new(text).unwrap()
    }

    fn matches(text: &str, stream: &str) -> bool {
        pattern(text).matches(&StreamId::new(stream).unwrap())
    }

    #[test]
    fn a_pattern_covers_its_streams_and_no_neighbours() {
        for (text, stream, covered) in [
            ("user:1", "user:1", true),
            ("user:1", "user:10", false),
            ("user:1", "user:1:notes", false),
            ("user:1:*", "user:1:notes", true),
            ("user:1:*", "user:10:notes", false),
            ("user:1:*", "user:1:", false),
            ("user:1:*", "user:1", false),
            ("runtime.run.*", "runtime.run.42.events", true),
            ("runtime.run.*", "runtime.runs.42.events", false),
        ] {
            assert_eq!(matches(text, stream), covered, "{text} {stream}");
        }
    }

    #[test]
    fn an_invalid_pattern_is_refused() {
        for text in [
            "",
            "*",
            "user:1*",
            "a**",
            "*a",
            "a.*.b",
            "a'.*",
            "str\u{435}am.*",
            "a b.*",
            "a.\0*",
        ] {
            assert!(StreamPattern::new(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_intersection_is_never_more_than_either() {
        for (a, b, both) in [
            ("a.b", "a.b", Some("a.b")),
            ("a.b", "a.*", Some("a.b")),
            ("a.*", "a.b.*", Some("a.b.*")),
            ("a.*", "a.*", Some("a.*")),
            ("a.*", "b.*", None),
            ("a.b", "a.c", None),
            ("a.b.*", "a.b", None),
        ] {
            let (a, b, both) = (pattern(a), pattern(b), both.map(pattern));
            assert_eq!(a.intersect(&b), both);
            assert_eq!(b.intersect(&a), both);
        }
    }

    #[test]
    fn what_is_wanted_and_allowed_is_granted_once_and_in_order() {
        let patterns = |texts: &[&str]| texts.iter().map(|text| pattern(text)).collect::<Vec<_>>();
        let (wanted, allowed) = (
            patterns(&["b.*", "a.1", "c.1"]),
            patterns(&["a.*", "b.2", "a.1", "b.2.*"]),
        );
        let both = StreamPattern::intersection(&wanted, &allowed);
        assert_eq!(both, patterns(&["a.1", "b.2", "b.2.*"]));
    }

    #[test]
    fn a_stream_is_found_by_each_prefix_that_covers_it() {
        let stream = StreamId::new("user:1:a.b/c").unwrap();
        let prefixes: Vec<_> = StreamPattern::prefixes_of(&stream).collect();
        assert_eq!(prefixes, ["user:", "user:1:", "user:1:a.", "user:1:a.b/"]);
        let ends = StreamId::new("a.").unwrap();
        assert_eq!(StreamPattern::prefixes_of(&ends).count(), 0);
    }
}
