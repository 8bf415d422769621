//! `GET /api/sync/streams/{stream_id}/events` and `…/snapshot`: the authority's log, for clients that may read it in
//! SpacetimeDB.
//!
//! What a request must pass before the authority is asked is in [`reading`](super::reading). Then come whether the session may read
//! the stream, and what the request asks for. `stream_id` is one segment of the path; see
//! [`path_segment`](spacetime_sync_proto::page::path_segment).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use spacetime_sync_proto::page::{EventPage, PAGE_EVENTS, Snapshot};
use spacetime_sync_proto::{ChainHash, Frame, RefusalCode, Seq};

use super::Desk;
use super::reading::{admitted, answer, json, protobuf, query, told, turn_of, wants_json};
use crate::denial::Denial;
use crate::history::Cursor;

pub(super) const EVENTS_PATH: &str = "/api/sync/streams/{stream_id}/events";
pub(super) const SNAPSHOT_PATH: &str = "/api/sync/streams/{stream_id}/snapshot";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// The seq after which to read.
    after: u64,
    /// The chain hash that the client has there. If the log has another one, the answer says so.
    chain: Option<String>,
    /// Most events to send. A page has a limit of its own.
    limit: Option<u64>,
}

pub(super) async fn events(
    State(desk): State<Option<Arc<Desk>>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(stream_id): Path<String>,
    sent: HeaderMap,
    uri: Uri,
) -> Response {
    let answered = async {
        let (histories, reader, stream_id) = admitted(desk.as_deref(), peer, &stream_id, &sent).await?;
        let (cursor, most) = read(&uri)?;
        let turn = turn_of(histories, &reader).await?;
        let page = histories.page(&turn, &stream_id, cursor, most).await;
        answer(page, turn, &sent, EventPage::encode, readable)
    };
    answered.await.unwrap_or_else(told)
}

pub(super) async fn snapshot(
    State(desk): State<Option<Arc<Desk>>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(stream_id): Path<String>,
    sent: HeaderMap,
) -> Response {
    let answered = async {
        let (histories, reader, stream_id) = admitted(desk.as_deref(), peer, &stream_id, &sent).await?;
        let turn = turn_of(histories, &reader).await?;
        let snapshot = histories.snapshot(&turn, &stream_id).await?;
        if wants_json(&sent) {
            return Ok(json(turn, readable_document(&snapshot).to_string()));
        }
        Ok(protobuf(turn, snapshot.encode()))
    };
    answered.await.unwrap_or_else(told)
}

fn read(uri: &Uri) -> Result<(Cursor, usize), Denial> {
    let invalid = |message: String| Denial::new(RefusalCode::InvalidArgument, message);
    let asked: Asked = query(uri).ok_or_else(|| {
        let expected = "expected after=<seq>, and at most chain=sha256:<64 hexadecimal digits> and limit=<events>";
        invalid(expected.to_owned())
    })?;
    let after = Seq::new(asked.after).ok_or_else(|| invalid(format!("after: {} is not a seq", asked.after)))?;
    let chain = asked.chain.map(|text| text.parse::<ChainHash>()).transpose();
    let chain =
        chain.map_err(|_| invalid("chain: expected sha256: and 64 lower-case hexadecimal digits".to_owned()))?;
    let most = asked.limit.unwrap_or(PAGE_EVENTS as u64);
    if most == 0 {
        return Err(invalid("limit: expected at least 1, found 0".to_owned()));
    }
    Ok((Cursor { after, chain }, usize::try_from(most).unwrap_or(usize::MAX)))
}

/// A page as JSON, event by event.
fn readable(page: &EventPage) -> Result<String, Denial> {
    let mut events = Vec::new();
    for frame in &page.frames {
        // The page was encoded just before, so it decodes.
        let read = Frame::decode(frame.first_seq.get(), frame.base_chain, frame.bytes.clone());
        let read = read.map_err(|_| Denial::unavailable("the page cannot be shown as JSON"))?;
        events.extend(read.into_events_after(Seq::ZERO).map(|event| {
            serde_json::json!({
                "seq": event.seq,
                "idempotency_key": event.idempotency_key,
                "kind": event.kind,
                "payload": STANDARD.encode(&event.payload),
                "payload_hash": event.payload_hash,
                "chain_hash": event.chain_hash,
                "committed_at_us": event.committed_at_us,
            })
        }));
    }
    let page = serde_json::json!({
        "head_seq": page.head_seq,
        "head_chain": page.head_chain,
        "oldest_seq": page.oldest_seq,
        "events": events,
    });
    Ok(page.to_string())
}

fn readable_document(snapshot: &Snapshot) -> Value {
    serde_json::json!({
        "doc_key": snapshot.doc_key,
        "seq": snapshot.seq,
        "chain_hash": snapshot.chain_hash,
        "payload": STANDARD.encode(&snapshot.payload),
        "payload_hash": snapshot.payload_hash,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_strictly() {
        let read = |query: &str| read(&format!("/x?{query}").parse().unwrap());
        let chain = format!("sha256:{}", "0a".repeat(32));
        let (cursor, most) = read(&format!("after=7&chain={chain}&limit=3")).unwrap();
        assert_eq!((cursor.after.get(), most), (7, 3));
        assert_eq!(cursor.chain.unwrap().to_string(), chain);
        assert_eq!(read("after=0").unwrap().1, PAGE_EVENTS);
        assert!(read("after=9223372036854775807").is_ok());
        assert!(
            read("after=1&limit=18446744073709551615").is_ok(),
            "a limit above the page's own"
        );
        for query in [
            "",
            "after=",
            "after=-1",
            "after=1.5",
            "after=9223372036854775808",
            "after=99999999999999999999",
            "after=1&after=2",
            "after=1&chain=",
            "after=1&chain=sha256:00",
            "after=1&limit=0",
            "after=1&limit=-1",
            "after=1&limit=x",
            "after=1&before=2",
            "chain=x",
            "after=1&chain=%FF",
        ] {
            assert!(read(query).is_err(), "{query}");
        }
        let long = format!("after=1&chain=sha256:{}", "A".repeat(64));
        assert!(read(&long).is_err());
    }
}
