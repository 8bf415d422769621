//! `GET /api/sync/streams/{stream_id}/documents` and `…/document`: the newest version of each document that a stream carries, for
//! clients that may read the stream.
//!
//! What a request must pass before the authority is asked is in [`reading`](super::reading).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use spacetime_sync_proto::document::{DocumentPage, DocumentState, PAGE_DOCUMENTS};
use spacetime_sync_proto::page::DOC_KEY_BYTES;
use spacetime_sync_proto::{ChainHash, PayloadHash, Position, RefusalCode, Seq};

use super::Desk;
use super::reading::{admitted, answer, json, query, told, turn_of};
use crate::denial::Denial;
use crate::history::DocumentsAsked;

pub(super) const DOCUMENTS_PATH: &str = "/api/sync/streams/{stream_id}/documents";
pub(super) const CONTENT_PATH: &str = "/api/sync/streams/{stream_id}/document";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// The seq as of which to read.
    at: Option<u64>,
    /// The chain hash there.
    chain: Option<String>,
    /// The key after which to read.
    after: Option<String>,
    /// Most documents to send. A page has a limit of its own.
    limit: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedContent {
    /// The document's key.
    key: String,
    /// The hash of its content.
    hash: String,
}

pub(super) async fn documents(
    State(desk): State<Option<Arc<Desk>>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(stream_id): Path<String>,
    sent: HeaderMap,
    uri: Uri,
) -> Response {
    let answered = async {
        let (histories, reader, stream_id) = admitted(desk.as_deref(), peer, &stream_id, &sent).await?;
        let (asked, most) = read(&uri)?;
        let turn = turn_of(histories, &reader).await?;
        let page = histories.documents(&turn, &stream_id, asked, most).await;
        answer(page, turn, &sent, DocumentPage::encode, readable)
    };
    answered.await.unwrap_or_else(told)
}

pub(super) async fn content(
    State(desk): State<Option<Arc<Desk>>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(stream_id): Path<String>,
    sent: HeaderMap,
    uri: Uri,
) -> Response {
    let answered = async {
        let (histories, reader, stream_id) = admitted(desk.as_deref(), peer, &stream_id, &sent).await?;
        let (key, hash) = read_content(&uri)?;
        let turn = turn_of(histories, &reader).await?;
        let content = histories.content(&turn, &stream_id, &key, hash).await?;
        Ok(json(turn, content))
    };
    answered.await.unwrap_or_else(told)
}

fn invalid(message: impl Into<String>) -> Denial {
    Denial::new(RefusalCode::InvalidArgument, message.into())
}

/// Which part of the documents a query asks for, and at most how many of them.
pub fn read(uri: &Uri) -> Result<(DocumentsAsked, usize), Denial> {
    let asked: Asked = query(uri).ok_or_else(|| {
        invalid(
            "expected nothing, or at=<seq> with chain=sha256:<64 hexadecimal digits>, and at most after=<key> and limit=<documents>",
        )
    })?;
    let most = asked.limit.unwrap_or(PAGE_DOCUMENTS as u64);
    if most == 0 {
        return Err(invalid("limit: expected at least 1, found 0"));
    }
    let asked = match (asked.at, asked.chain, asked.after) {
        (Some(at), Some(chain), after) => DocumentsAsked::After {
            at: Position {
                seq: Seq::new(at).ok_or_else(|| invalid(format!("at: {at} is not a seq")))?,
                chain: chain.parse::<ChainHash>().map_err(|_| not_a_hash("chain"))?,
            },
            key: after.map(|key| named("after", key)).transpose()?,
        },
        (None, None, None) => DocumentsAsked::First,
        (Some(_), None, _) | (None, Some(_), _) | (None, None, Some(_)) => {
            return Err(invalid("expected at and chain together, and after only with them"));
        }
    };
    Ok((asked, usize::try_from(most).unwrap_or(usize::MAX)))
}

/// The key and the hash that a query for a content names.
pub fn read_content(uri: &Uri) -> Result<(String, PayloadHash), Denial> {
    let asked: AskedContent =
        query(uri).ok_or_else(|| invalid("expected key=<key> and hash=sha256:<64 hexadecimal digits>"))?;
    let hash = asked.hash.parse::<PayloadHash>().map_err(|_| not_a_hash("hash"))?;
    Ok((named("key", asked.key)?, hash))
}

fn not_a_hash(what: &str) -> Denial {
    invalid(format!("{what}: expected sha256: and 64 lower-case hexadecimal digits"))
}

/// A key that a document may have.
fn named(what: &str, key: String) -> Result<String, Denial> {
    if !DOC_KEY_BYTES.contains(&key.len()) {
        return Err(invalid(format!(
            "{what}: expected a key of 1 to 512 bytes, found {}",
            key.len()
        )));
    }
    if key.contains(char::is_control) {
        return Err(invalid(format!("{what}: expected a key without control characters")));
    }
    Ok(key)
}

/// A page for whoever accepts no protobuf.
#[derive(Serialize)]
struct Readable<'a> {
    at_seq: Seq,
    at_chain: ChainHash,
    documents: Vec<ReadableDocument<'a>>,
    next_after: Option<&'a str>,
    head_seq: Seq,
}

#[derive(Serialize)]
struct ReadableDocument<'a> {
    doc_key: &'a str,
    doc_version: u64,
    seq: Seq,
    /// As it is. Null in a pointer.
    payload: Option<&'a RawValue>,
    payload_hash: PayloadHash,
    payload_bytes: u64,
    hydration_required: bool,
}

fn readable(page: &DocumentPage) -> Result<String, Denial> {
    // Each document was made canonical just before, so it is JSON.
    let unreadable = |_| Denial::unavailable("the page cannot be shown as JSON");
    let mut documents = Vec::with_capacity(page.documents.len());
    for document in &page.documents {
        let (payload, payload_hash, payload_bytes) = match &document.state {
            DocumentState::Content { json, hash } => {
                let payload = serde_json::from_str(json).map_err(unreadable)?;
                (Some(payload), *hash, json.len() as u64)
            }
            DocumentState::Pointer(pointer) => (None, pointer.hash, pointer.bytes),
            DocumentState::Deleted => continue,
        };
        documents.push(ReadableDocument {
            doc_key: &document.key,
            doc_version: document.version,
            seq: document.seq,
            hydration_required: payload.is_none(),
            payload,
            payload_hash,
            payload_bytes,
        });
    }
    let readable = Readable {
        at_seq: page.at.seq,
        at_chain: page.at.chain,
        documents,
        next_after: page.next_after.as_deref(),
        head_seq: page.head_seq,
    };
    serde_json::to_string(&readable).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use spacetime_sync_proto::document::{Document, Pointer};

    use super::*;

    fn uri(query: &str) -> Uri {
        format!("/x?{query}").parse().unwrap()
    }

    #[test]
    fn a_query_for_a_page_is_read_strictly() {
        let read = |query: &str| read(&uri(query));
        let chain = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(read("").unwrap(), (DocumentsAsked::First, PAGE_DOCUMENTS));
        assert_eq!(read("limit=3").unwrap(), (DocumentsAsked::First, 3));
        assert!(read("limit=18446744073709551615").is_ok(), "above the page's own");
        let at = Position {
            seq: Seq::new(7).unwrap(),
            chain: chain.parse().unwrap(),
        };
        let key = |key: &str| Some(key.to_owned());
        for (query, expected) in [
            ("", None),
            ("&after=app%2Ftask%3A1", key("app/task:1")),
            ("&after=app:%C3%A9+%F0%9F%98%80", key("app:é 😀")),
        ] {
            let (asked, _) = read(&format!("at=7&chain={chain}{query}")).unwrap();
            assert_eq!(asked, DocumentsAsked::After { at, key: expected }, "{query}");
        }
        assert!(read(&format!("at=0&chain={chain}&after={}", "k".repeat(512))).is_ok());
        for query in [
            "at=7".to_owned(),
            format!("chain={chain}"),
            "after=a".to_owned(),
            format!("chain={chain}&after=a"),
            format!("at=-1&chain={chain}"),
            format!("at=9223372036854775808&chain={chain}"),
            format!("at=1&at=2&chain={chain}"),
            "at=1&chain=".to_owned(),
            "at=1&chain=sha256:00".to_owned(),
            format!("at=1&chain={}", chain.to_uppercase()),
            format!("at=1&chain={chain}&after="),
            format!("at=1&chain={chain}&after={}", "k".repeat(513)),
            format!("at=1&chain={chain}&after=a%00b"),
            format!("at=1&chain={chain}&after=a%C2%85b"),
            format!("at=1&chain={chain}&after=a%FFb"),
            "limit=0".to_owned(),
            "limit=x".to_owned(),
            "x=1".to_owned(),
        ] {
            assert!(read(&query).is_err(), "{query}");
        }
    }

    #[test]
    fn a_query_for_a_content_is_read_strictly() {
        let read = |query: &str| read_content(&uri(query));
        let hash = PayloadHash::of(b"{}");
        assert_eq!(
            read(&format!("key=app/task:1&hash={hash}")).unwrap(),
            ("app/task:1".to_owned(), hash)
        );
        for query in [
            String::new(),
            "key=a".to_owned(),
            format!("hash={hash}"),
            format!("key=&hash={hash}"),
            format!("key=a%0Ab&hash={hash}"),
            format!("key=a%E2%82&hash={hash}"),
            format!("key={}&hash={hash}", "k".repeat(513)),
            "key=a&hash=sha256:00".to_owned(),
            format!("key=a&hash={}", &hash.to_string()[7..]),
            format!("key=a&key=b&hash={hash}"),
            format!("key=a&hash={hash}&x=1"),
        ] {
            assert!(read(&query).is_err(), "{query}");
        }
    }

    #[test]
    fn a_page_as_json_holds_each_document_as_it_is() {
        let hash = PayloadHash::of(b"{}");
        let document = |key: &str, state| Document {
            key: key.to_owned(),
            version: 9,
            seq: Seq::new(7).unwrap(),
            state,
        };
        let page = DocumentPage {
            at: Position {
                seq: Seq::new(8).unwrap(),
                chain: ChainHash::from_bytes([1; 32]),
            },
            documents: vec![
                document(
                    "a",
                    DocumentState::Content {
                        json: r#"{"z":1,"\u0001":2}"#.to_owned(),
                        hash,
                    },
                ),
                document("b", DocumentState::Pointer(Pointer { hash, bytes: 99 })),
            ],
            next_after: Some("b".to_owned()),
            head_seq: Seq::new(9).unwrap(),
        };
        let chain = page.at.chain;
        let expected = format!(
            r#"{{"at_seq":8,"at_chain":"{chain}","documents":[{{"doc_key":"a","doc_version":9,"seq":7,"payload":{{"z":1,"\u0001":2}},"payload_hash":"{hash}","payload_bytes":18,"hydration_required":false}},{{"doc_key":"b","doc_version":9,"seq":7,"payload":null,"payload_hash":"{hash}","payload_bytes":99,"hydration_required":true}}],"next_after":"b","head_seq":9}}"#
        );
        assert_eq!(readable(&page).unwrap(), expected);
    }
}
