//! Pages of a stream's log, and the document that replaces its beginning, as the bridge serves them over HTTP.
//!
//! Decoding checks only the form. Whoever continues from a page checks hashes and chain.

use std::ops::RangeInclusive;

use bytes::Bytes;
use prost::Message;

use crate::hash::{ChainHash, PayloadHash};
use crate::id::{Seq, StreamId};
use crate::position::FrameRow;
use crate::wire;

/// The path below which the bridge serves streams from the authority.
pub const STREAMS_PATH: &str = "/api/sync/streams";
/// The content type of a page or document, unless the client asks for JSON.
pub const PROTOBUF: &str = "application/x-protobuf";
/// Most events in one page.
pub const PAGE_EVENTS: usize = 4_000;
/// Largest document, in bytes.
pub const DOCUMENT_BYTES: usize = 16 * 1024 * 1024;
/// Allowed lengths of a document's name, in bytes.
pub const DOC_KEY_BYTES: RangeInclusive<usize> = 1..=512;

/// A stream's name as one segment of a path: `/` and `%` become `%2F` and `%25`, all other characters stay. `None` for
/// `.` and `..`, because proxies would take them for a step in the path.
pub fn path_segment(stream_id: &StreamId) -> Option<String> {
    let name = stream_id.as_str();
    (!matches!(name, "." | "..")).then(|| name.replace('%', "%25").replace('/', "%2F"))
}

/// A page of a stream's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPage {
    /// The stream's head when the page was made.
    pub head_seq: Seq,
    /// The chain hash there.
    pub head_chain: ChainHash,
    /// Seq of the first event that the authority still keeps.
    pub oldest_seq: Seq,
    /// Consecutive frames. The first one holds the event after the seq that was asked for.
    pub frames: Vec<FrameRow>,
}

/// A document that replaces a stream's events up to a seq.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The runtime's name for the document.
    pub doc_key: String,
    /// Seq of the last event that the document covers.
    pub seq: Seq,
    /// The chain hash there.
    pub chain_hash: ChainHash,
    /// The document itself.
    pub payload: Bytes,
    /// sha256 of the document.
    pub payload_hash: PayloadHash,
}

/// Why bytes are not a page or a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The bytes are not the expected protobuf message.
    #[error("cannot be decoded: {0}")]
    Malformed(String),
    /// A number is too large for a seq.
    #[error("{0} is not a seq: expected at most {max}", max = Seq::MAX)]
    Seq(u64),
    /// A hash is not 32 bytes long.
    #[error("a hash has {0} bytes, expected 32")]
    Hash(usize),
    /// The document's name is missing or too long.
    #[error("the document's name has {0} bytes, expected 1 to 512")]
    DocKey(usize),
    /// The document is empty or too large.
    #[error("the document has {0} bytes, expected 1 to {DOCUMENT_BYTES}")]
    Document(usize),
}

fn seq(value: u64) -> Result<Seq, PageError> {
    Seq::new(value).ok_or(PageError::Seq(value))
}

fn chain(bytes: &[u8]) -> Result<ChainHash, PageError> {
    ChainHash::from_slice(bytes).ok_or(PageError::Hash(bytes.len()))
}

impl PageError {
    pub(crate) fn malformed(error: prost::DecodeError) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl EventPage {
    /// Encodes the page for the wire.
    pub fn encode(&self) -> Bytes {
        let frame = |frame: &FrameRow| wire::PageFrame {
            first_seq: frame.first_seq.get(),
            last_seq: frame.last_seq.get(),
            base_chain: Bytes::copy_from_slice(frame.base_chain.as_bytes()),
            frame: frame.bytes.clone(),
        };
        let page = wire::EventPage {
            head_seq: self.head_seq.get(),
            head_chain: Bytes::copy_from_slice(self.head_chain.as_bytes()),
            oldest_seq: self.oldest_seq.get(),
            frames: self.frames.iter().map(frame).collect(),
        };
        page.encode_to_vec().into()
    }

    /// Decodes a page.
    pub fn decode(bytes: Bytes) -> Result<Self, PageError> {
        let page = wire::EventPage::decode(bytes).map_err(PageError::malformed)?;
        let frame = |frame: wire::PageFrame| {
            Ok(FrameRow {
                first_seq: seq(frame.first_seq)?,
                last_seq: seq(frame.last_seq)?,
                base_chain: chain(&frame.base_chain)?,
                bytes: frame.frame,
            })
        };
        Ok(Self {
            head_seq: seq(page.head_seq)?,
            head_chain: chain(&page.head_chain)?,
            oldest_seq: seq(page.oldest_seq)?,
            frames: page.frames.into_iter().map(frame).collect::<Result<_, _>>()?,
        })
    }
}

impl Snapshot {
    /// Encodes the document for the wire.
    pub fn encode(&self) -> Bytes {
        let snapshot = wire::Snapshot {
            doc_key: self.doc_key.clone(),
            seq: self.seq.get(),
            chain_hash: Bytes::copy_from_slice(self.chain_hash.as_bytes()),
            payload: self.payload.clone(),
            payload_hash: Bytes::copy_from_slice(self.payload_hash.as_bytes()),
        };
        snapshot.encode_to_vec().into()
    }

    /// Decodes a document.
    pub fn decode(bytes: Bytes) -> Result<Self, PageError> {
        let snapshot = wire::Snapshot::decode(bytes).map_err(PageError::malformed)?;
        if !DOC_KEY_BYTES.contains(&snapshot.doc_key.len()) {
            return Err(PageError::DocKey(snapshot.doc_key.len()));
        }
        if snapshot.payload.is_empty() || snapshot.payload.len() > DOCUMENT_BYTES {
            return Err(PageError::Document(snapshot.payload.len()));
        }
        let hash = &snapshot.payload_hash;
        Ok(Self {
            doc_key: snapshot.doc_key,
            seq: seq(snapshot.seq)?,
            chain_hash: chain(&snapshot.chain_hash)?,
            payload_hash: PayloadHash::from_slice(hash).ok_or(PageError::Hash(hash.len()))?,
            payload: snapshot.payload,
        })
    }

    /// Whether the document has the hash that it states.
    pub fn payload_matches(&self) -> bool {
        PayloadHash::of(&self.payload) == self.payload_hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(value: u64) -> Seq {
        Seq::new(value).unwrap()
    }

    fn page() -> EventPage {
        EventPage {
            head_seq: at(9),
            head_chain: ChainHash::from_bytes([1; 32]),
            oldest_seq: at(2),
            frames: vec![FrameRow {
                first_seq: at(3),
                last_seq: at(4),
                base_chain: ChainHash::from_bytes([2; 32]),
                bytes: Bytes::from_static(b"ab"),
            }],
        }
    }

    fn snapshot() -> Snapshot {
        let payload = Bytes::from_static(b"{}");
        Snapshot {
            doc_key: "runtime/run_summary:1".to_owned(),
            seq: at(7),
            chain_hash: ChainHash::from_bytes([3; 32]),
            payload_hash: PayloadHash::of(&payload),
            payload,
        }
    }

    #[test]
    fn pages_and_documents_cross_the_wire() {
        assert_eq!(EventPage::decode(page().encode()), Ok(page()));
        assert_eq!(Snapshot::decode(snapshot().encode()), Ok(snapshot()));
        assert!(snapshot().payload_matches());
        let mut golden = vec![8, 9, 18, 32];
        golden.extend([1; 32]);
        golden.extend([24, 2, 34, 42, 8, 3, 16, 4, 26, 32]);
        golden.extend([2; 32]);
        golden.extend([34, 2, b'a', b'b']);
        assert_eq!(page().encode(), golden);
    }

    #[test]
    fn malformed_pages_and_documents_are_refused() {
        let wrong = wire::EventPage {
            head_seq: u64::MAX,
            ..wire::EventPage::default()
        };
        assert_eq!(
            EventPage::decode(wrong.encode_to_vec().into()),
            Err(PageError::Seq(u64::MAX))
        );
        assert_eq!(EventPage::decode(Bytes::new()), Err(PageError::Hash(0)));
        assert!(matches!(
            EventPage::decode(Bytes::from_static(b"<html>")),
            Err(PageError::Malformed(_))
        ));
        assert_eq!(Snapshot::decode(Bytes::new()), Err(PageError::DocKey(0)));
        let empty = Snapshot {
            payload: Bytes::new(),
            ..snapshot()
        };
        assert_eq!(Snapshot::decode(empty.encode()), Err(PageError::Document(0)));
    }

    #[test]
    fn a_document_that_does_not_match_its_hash_is_noticed() {
        let altered = Snapshot {
            payload: Bytes::from_static(b"{ }"),
            ..snapshot()
        };
        assert!(!altered.payload_matches());
    }

    #[test]
    fn a_document_may_be_as_large_as_the_limit_and_no_larger() {
        let sized = |bytes| {
            let document = Snapshot {
                payload: vec![b' '; bytes].into(),
                ..snapshot()
            };
            Snapshot::decode(document.encode()).map(|read| read.payload.len())
        };
        assert_eq!(sized(DOCUMENT_BYTES), Ok(DOCUMENT_BYTES));
        assert_eq!(sized(DOCUMENT_BYTES + 1), Err(PageError::Document(DOCUMENT_BYTES + 1)));
    }

    #[test]
    fn a_name_is_one_segment_of_a_path() {
        for (name, segment) in [
            ("runtime.run.1.events", Some("runtime.run.1.events")),
            ("user:7:a/b", Some("user:7:a%2Fb")),
            ("a%2Fb", Some("a%252Fb")),
            ("a+b@c=d~e", Some("a+b@c=d~e")),
            ("..", None),
            (".", None),
            ("...", Some("...")),
            ("../x", Some("..%2Fx")),
        ] {
            let stream_id = StreamId::new(name).unwrap();
            assert_eq!(path_segment(&stream_id).as_deref(), segment, "{name}");
        }
    }
}
