//! Documents that a stream carries by key: what an event tells of one, and pages of those that stand for all events up to a seq.
//!
//! The payload of an event is compared with its hash here, because nobody needs a document that does not have it. Where a page begins
//! and ends is checked by whoever continues from it.

use bytes::Bytes;
use prost::Message;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::hash::{ChainHash, PayloadHash};
use crate::id::{Kind, Seq};
use crate::page::{DOC_KEY_BYTES, DOCUMENT_BYTES, PageError, STREAMS_PATH, path_segment};
use crate::position::Position;
use crate::{StreamId, wire};

/// Most documents in one page.
pub const PAGE_DOCUMENTS: usize = 2_000;
/// How many bytes of documents make a page full. A page may be larger by its last document.
pub const PAGE_BYTES: usize = 1024 * 1024;

/// The kind of an event that tells what a document is.
pub const PUT: &str = "document.put";
/// The kind of an event that tells that a document is deleted.
pub const DELETE: &str = "document.delete";

/// Where the bridge serves pages of a stream's documents. `None` as with [`path_segment`].
pub fn documents_path(stream_id: &StreamId) -> Option<String> {
    Some(format!("{STREAMS_PATH}/{}/documents", path_segment(stream_id)?))
}

/// Where the bridge serves the content of one document.
pub fn content_path(stream_id: &StreamId) -> Option<String> {
    Some(format!("{STREAMS_PATH}/{}/document", path_segment(stream_id)?))
}

/// What is known of a document at a seq.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Names it within its stream.
    pub key: String,
    /// The seq, in its source, of what it was made of last.
    pub version: u64,
    /// The seq of the event that told of it.
    pub seq: Seq,
    /// What it is.
    pub state: DocumentState,
}

/// What a document is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentState {
    /// Its content, which has this hash.
    Content {
        /// Its canonical JSON.
        json: String,
        /// The hash of that.
        hash: PayloadHash,
    },
    /// It is too large for an event: its content is fetched by its key and this hash.
    Pointer(Pointer),
    /// It is deleted.
    Deleted,
}

/// What stands for a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pointer {
    /// The hash of the canonical JSON.
    pub hash: PayloadHash,
    /// How many bytes that has.
    pub bytes: u64,
}

/// Why a payload tells of no document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoDocument {
    /// Its event has another kind: it tells of something else.
    #[error("an event of kind {0} tells of no document, expected {PUT} or {DELETE}")]
    Kind(Kind),
    /// It is not a `DocumentEvent`.
    #[error("expected a DocumentEvent: {0}")]
    Malformed(String),
    /// Its key is missing or too long.
    #[error("the document's key has {0} bytes, expected 1 to 512")]
    Key(usize),
    /// A `document.put` is neither a content nor a pointer, or both; or a `document.delete` is no deletion.
    #[error(
        "expected of a {PUT} either a payload with its hash or a pointer with hash and size, and of a {DELETE} a deletion"
    )]
    Ambiguous,
    /// The content does not have the hash that is stated.
    #[error("the document has hash {found}, its event says {expected}")]
    Hash {
        /// What is stated.
        expected: PayloadHash,
        /// The hash of the content.
        found: PayloadHash,
    },
}

/// A `DocumentEvent`, as it is written. Fields that a later release adds are passed over.
#[derive(Deserialize)]
struct Told<'a> {
    doc_key: String,
    doc_version: u64,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    payload_hash: Option<PayloadHash>,
    hydration_required: Option<bool>,
    payload_bytes: Option<u64>,
    deleted: Option<bool>,
}

impl Document {
    /// What an event tells. One of another kind than these two may tell of anything, whatever its payload looks like.
    pub fn told(seq: Seq, kind: &Kind, payload: &[u8]) -> Result<Self, NoDocument> {
        let deletes = match kind.as_str() {
            PUT => false,
            DELETE => true,
            _ => return Err(NoDocument::Kind(kind.clone())),
        };
        let told: Told<'_> =
            serde_json::from_slice(payload).map_err(|error| NoDocument::Malformed(error.to_string()))?;
        if !DOC_KEY_BYTES.contains(&told.doc_key.len()) {
            return Err(NoDocument::Key(told.doc_key.len()));
        }
        let (points, deleted) = (told.hydration_required == Some(true), told.deleted == Some(true));
        let state = match (told.payload, told.payload_hash, told.payload_bytes) {
            _ if deletes != deleted => return Err(NoDocument::Ambiguous),
            (Some(content), Some(expected), _) if !points && !deleted => {
                let json = content.get().to_owned();
                let found = PayloadHash::of(json.as_bytes());
                if found != expected {
                    return Err(NoDocument::Hash { expected, found });
                }
                DocumentState::Content { json, hash: expected }
            }
            (None, Some(hash), Some(bytes)) if points && !deleted => DocumentState::Pointer(Pointer { hash, bytes }),
            (None, None, None) if deleted && !points => DocumentState::Deleted,
            _ => return Err(NoDocument::Ambiguous),
        };
        Ok(Self {
            key: told.doc_key,
            version: told.doc_version,
            seq,
            state,
        })
    }
}

/// A part of a stream's documents as they were at one position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentPage {
    /// The position. The events after it come next.
    pub at: Position,
    /// The documents, in the order of their keys. None of them is deleted.
    pub documents: Vec<Document>,
    /// The key after which the next part begins. `None` in the last one.
    pub next_after: Option<String>,
    /// The stream's last seq when the part was read. What changed between the position and there may be missing.
    pub head_seq: Seq,
}

impl DocumentPage {
    /// Encodes the page for the wire. A deleted document has no place in it, and is left out.
    pub fn encode(&self) -> Bytes {
        let document = |document: &Document| {
            let (payload, Pointer { hash, bytes }, points) = match &document.state {
                DocumentState::Content { json, hash } => {
                    let bytes = json.len() as u64;
                    (
                        Bytes::copy_from_slice(json.as_bytes()),
                        Pointer { hash: *hash, bytes },
                        false,
                    )
                }
                DocumentState::Pointer(pointer) => (Bytes::new(), *pointer, true),
                DocumentState::Deleted => return None,
            };
            Some(wire::PageDocument {
                doc_key: document.key.clone(),
                doc_version: document.version,
                seq: document.seq.get(),
                payload,
                payload_hash: Bytes::copy_from_slice(hash.as_bytes()),
                payload_bytes: bytes,
                hydration_required: points,
            })
        };
        let page = wire::DocumentPage {
            at_seq: self.at.seq.get(),
            at_chain: Bytes::copy_from_slice(self.at.chain.as_bytes()),
            documents: self.documents.iter().filter_map(document).collect(),
            next_after: self.next_after.clone(),
            head_seq: self.head_seq.get(),
        };
        page.encode_to_vec().into()
    }

    /// Decodes a page. A content is not yet compared with its hash: that is work for another thread than the one that reads answers.
    pub fn decode(bytes: Bytes) -> Result<Self, PageError> {
        let page = wire::DocumentPage::decode(bytes).map_err(PageError::malformed)?;
        let key = |key: String| match DOC_KEY_BYTES.contains(&key.len()) {
            true => Ok(key),
            false => Err(PageError::DocKey(key.len())),
        };
        let document = |document: wire::PageDocument| {
            let hash = &document.payload_hash;
            let hash = PayloadHash::from_slice(hash).ok_or(PageError::Hash(hash.len()))?;
            let length = document.payload.len();
            let state = match document.hydration_required {
                true if length == 0 => DocumentState::Pointer(Pointer {
                    hash,
                    bytes: document.payload_bytes,
                }),
                false if (1..=DOCUMENT_BYTES).contains(&length) => DocumentState::Content {
                    json: String::from_utf8(document.payload.into())
                        .map_err(|error| PageError::Malformed(format!("a document is not UTF-8: {error}")))?,
                    hash,
                },
                true | false => return Err(PageError::Document(length)),
            };
            Ok(Document {
                key: key(document.doc_key)?,
                version: document.doc_version,
                seq: Seq::new(document.seq).ok_or(PageError::Seq(document.seq))?,
                state,
            })
        };
        let chain = &page.at_chain;
        Ok(Self {
            at: Position {
                seq: Seq::new(page.at_seq).ok_or(PageError::Seq(page.at_seq))?,
                chain: ChainHash::from_slice(chain).ok_or(PageError::Hash(chain.len()))?,
            },
            documents: page.documents.into_iter().map(document).collect::<Result<_, _>>()?,
            next_after: page.next_after.map(key).transpose()?,
            head_seq: Seq::new(page.head_seq).ok_or(PageError::Seq(page.head_seq))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &str = r#"{"state":"done"}"#;

    fn seq(value: u64) -> Seq {
        Seq::new(value).unwrap()
    }

    /// What an event of either kind tells.
    fn told(payload: &str) -> Result<Document, NoDocument> {
        told_as(PUT, payload).or_else(|why| told_as(DELETE, payload).map_err(|_| why))
    }

    fn told_as(kind: &str, payload: &str) -> Result<Document, NoDocument> {
        Document::told(seq(7), &Kind::new(kind).unwrap(), payload.as_bytes())
    }

    fn content() -> DocumentState {
        DocumentState::Content {
            json: CONTENT.to_owned(),
            hash: PayloadHash::of(CONTENT.as_bytes()),
        }
    }

    fn document(key: &str, state: DocumentState) -> Document {
        Document {
            key: key.to_owned(),
            version: 9,
            seq: seq(7),
            state,
        }
    }

    #[test]
    fn an_event_tells_of_a_content_a_pointer_or_a_deletion() {
        let hash = PayloadHash::of(CONTENT.as_bytes());
        for (payload, state) in [
            (
                format!(r#"{{"doc_key":"a:1","doc_version":9,"payload":{CONTENT},"payload_hash":"{hash}"}}"#),
                content(),
            ),
            (
                format!(
                    r#"{{"doc_key":"a:1","doc_version":9,"hydration_required":true,"payload_bytes":99,"payload_hash":"{hash}","x":1}}"#
                ),
                DocumentState::Pointer(Pointer { hash, bytes: 99 }),
            ),
            (
                r#"{"deleted":true,"doc_key":"a:1","doc_version":9}"#.to_owned(),
                DocumentState::Deleted,
            ),
        ] {
            assert_eq!(told(&payload), Ok(document("a:1", state)), "{payload}");
        }
    }

    #[test]
    fn the_kind_of_an_event_says_whether_it_tells_of_a_document_and_whether_that_is_deleted() {
        let hash = PayloadHash::of(CONTENT.as_bytes());
        let put = format!(r#"{{"doc_key":"a:1","doc_version":9,"payload":{CONTENT},"payload_hash":"{hash}"}}"#);
        let delete = r#"{"deleted":true,"doc_key":"a:1","doc_version":9}"#;
        assert!(told_as(PUT, &put).is_ok() && told_as(DELETE, delete).is_ok());
        assert_eq!(told_as(DELETE, &put), Err(NoDocument::Ambiguous));
        assert_eq!(told_as(PUT, delete), Err(NoDocument::Ambiguous));
        for other in ["document.putter", "document", "run.finished"] {
            let expected = Err(NoDocument::Kind(Kind::new(other).unwrap()));
            assert_eq!(told_as(other, &put), expected);
            assert_eq!(told_as(other, delete), expected);
        }
    }

    #[test]
    fn what_is_no_document_is_refused_with_a_reason() {
        let (hash, other) = (PayloadHash::of(CONTENT.as_bytes()), PayloadHash::of(b"{}"));
        for payload in [
            r#"{"doc_key":"a","doc_version":1}"#.to_owned(),
            r#"{"doc_key":"a","doc_version":1,"payload":{}}"#.to_owned(),
            format!(r#"{{"doc_key":"a","doc_version":1,"payload_hash":"{hash}"}}"#),
            format!(r#"{{"deleted":true,"doc_key":"a","doc_version":1,"payload":{CONTENT},"payload_hash":"{hash}"}}"#),
            format!(r#"{{"doc_key":"a","doc_version":1,"hydration_required":true,"payload_hash":"{hash}"}}"#),
        ] {
            assert_eq!(told(&payload), Err(NoDocument::Ambiguous), "{payload}");
        }
        let altered = format!(r#"{{"doc_key":"a","doc_version":1,"payload":{CONTENT},"payload_hash":"{other}"}}"#);
        let expected = NoDocument::Hash {
            expected: other,
            found: hash,
        };
        assert_eq!(told(&altered), Err(expected));
        assert_eq!(told(r#"{"doc_key":"","doc_version":1}"#), Err(NoDocument::Key(0)));
        for payload in ["", "7", "{}", r#"{"doc_key":"a","doc_version":-1}"#, "\u{fffd}"] {
            assert!(matches!(told(payload), Err(NoDocument::Malformed(_))), "{payload}");
        }
    }

    #[test]
    fn pages_cross_the_wire_without_what_is_deleted() {
        let hash = PayloadHash::of(b"large");
        let kept = vec![
            document("a:1", content()),
            document("a:2", DocumentState::Pointer(Pointer { hash, bytes: 99_999 })),
        ];
        let page = |documents| DocumentPage {
            at: Position {
                seq: seq(9),
                chain: ChainHash::from_bytes([1; 32]),
            },
            documents,
            next_after: Some("a:3".to_owned()),
            head_seq: seq(12),
        };
        let mut sent = kept.clone();
        sent.push(document("a:3", DocumentState::Deleted));
        assert_eq!(DocumentPage::decode(page(sent).encode()), Ok(page(kept)));
    }

    #[test]
    fn malformed_pages_are_refused() {
        let page = |change: fn(&mut wire::PageDocument)| {
            let mut document = wire::PageDocument {
                doc_key: "a".to_owned(),
                doc_version: 1,
                seq: 1,
                payload: Bytes::from_static(b"{}"),
                payload_hash: Bytes::from_static(&[0; 32]),
                payload_bytes: 2,
                hydration_required: false,
            };
            change(&mut document);
            let page = wire::DocumentPage {
                at_seq: 1,
                at_chain: Bytes::from_static(&[0; 32]),
                documents: vec![document],
                next_after: None,
                head_seq: 1,
            };
            DocumentPage::decode(page.encode_to_vec().into()).map(drop)
        };
        assert_eq!(page(|_| {}), Ok(()));
        assert_eq!(page(|document| document.doc_key.clear()), Err(PageError::DocKey(0)));
        assert_eq!(
            page(|document| document.payload = Bytes::new()),
            Err(PageError::Document(0))
        );
        assert_eq!(
            page(|document| document.hydration_required = true),
            Err(PageError::Document(2)),
            "a pointer has no content"
        );
        assert_eq!(page(|document| document.seq = u64::MAX), Err(PageError::Seq(u64::MAX)));
        assert_eq!(
            page(|document| document.payload_hash = Bytes::new()),
            Err(PageError::Hash(0))
        );
        assert_eq!(DocumentPage::decode(Bytes::new()), Err(PageError::Hash(0)));
    }
}
