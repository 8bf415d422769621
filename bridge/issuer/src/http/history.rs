//! `GET /api/sync/streams/{stream_id}/events` and `…/snapshot`: the authority's log, for clients that may read it in
//! SpacetimeDB.
//!
//! Before it asks the authority anything, a request must pass the checks of who asks and how often. Then come whether
//! the session still exists and may read the stream, and what the request asks for. `stream_id` is one segment of the
//! path; see [`path_segment`](spacetime_sync_proto::page::path_segment).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use spacetime_sync_doors::asker::asker;
use spacetime_sync_proto::page::{EventPage, PAGE_EVENTS, PROTOBUF, Snapshot};
use spacetime_sync_proto::{ChainHash, Frame, RefusalCode, Seq, StreamId};

use super::Desk;
use super::refusal::{incompatible, refuse};
use crate::denial::Denial;
use crate::history::{Cursor, Histories, NoPage, Turn};
use crate::reader::{NoReader, Reader};

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
    let answer = async {
        let (histories, reader, stream_id) = admitted(desk.as_deref(), peer, &stream_id, &sent).await?;
        let (cursor, most) = read(&uri)?;
        let turn = turn_of(histories, &reader).await?;
        match histories.page(&turn, &stream_id, cursor, most).await {
            Ok(page) if wants_json(&sent) => Ok(json(turn, readable(&page)?.to_string())),
            Ok(page) => Ok(protobuf(turn, page.encode())),
            Err(NoPage::Stale(stale)) => Ok((StatusCode::GONE, Json(stale)).into_response()),
            Err(NoPage::Denied(denial)) => Err(denial.into()),
        }
    };
    answer.await.unwrap_or_else(told)
}

pub(super) async fn snapshot(
    State(desk): State<Option<Arc<Desk>>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(stream_id): Path<String>,
    sent: HeaderMap,
) -> Response {
    let answer = async {
        let (histories, reader, stream_id) = admitted(desk.as_deref(), peer, &stream_id, &sent).await?;
        let turn = turn_of(histories, &reader).await?;
        let snapshot = histories.snapshot(&turn, &stream_id).await?;
        if wants_json(&sent) {
            return Ok(json(turn, readable_document(&snapshot).to_string()));
        }
        Ok(protobuf(turn, snapshot.encode()))
    };
    answer.await.unwrap_or_else(told)
}

/// Checks that the request may read this stream now.
pub(super) async fn admitted<'a>(
    desk: Option<&'a Desk>,
    peer: SocketAddr,
    stream_id: &str,
    sent: &HeaderMap,
) -> Result<(&'a Histories, Reader, StreamId), NoReader> {
    let (reader, desk) = reader(desk, peer, sent).await?;
    let stream_id = StreamId::new(stream_id)
        .map_err(|error| Denial::new(RefusalCode::InvalidArgument, format!("the stream's name: {error}")))?;
    reader
        .may_read(&stream_id)
        .map_err(|denial| desk.issuer.counted(denial))?;
    Ok((&desk.histories, reader, stream_id))
}

/// Checks who asks, how often, and whether the session still exists.
pub(super) async fn reader<'a>(
    desk: Option<&'a Desk>,
    peer: SocketAddr,
    sent: &HeaderMap,
) -> Result<(Reader, &'a Desk), NoReader> {
    let Some(desk) = desk else {
        return Err(Denial::unavailable("this bridge issues no tokens, and reading history needs one").into());
    };
    let (issuer, histories) = (&desk.issuer, &desk.histories);
    let authorization = sent.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let asker = asker(sent, peer.ip(), desk.proxy);
    let reader = issuer.reader(authorization, &asker.origin)?;
    let session_id = &reader.session().session_id;
    histories.admit(session_id).map_err(|denial| issuer.counted(denial))?;
    issuer.lasts(&reader, histories.authority()?).await?;
    Ok((reader, desk))
}

/// Waits for a turn of a reader.
pub(super) async fn turn_of(histories: &Histories, reader: &Reader) -> Result<Turn, Denial> {
    let session = reader.session();
    histories.turn(&session.session_id, &session.user_id).await
}

pub(super) fn told(refused: NoReader) -> Response {
    match refused {
        NoReader::Denied(denial) => refuse(&denial),
        NoReader::Incompatible(why) => incompatible(&why),
    }
}

fn read(uri: &Uri) -> Result<(Cursor, usize), Denial> {
    let invalid = |message: String| Denial::new(RefusalCode::InvalidArgument, message);
    let Query(asked) = Query::<Asked>::try_from_uri(uri).map_err(|_| {
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

pub(super) fn wants_json(sent: &HeaderMap) -> bool {
    let accepts = |name: &str| {
        let mut values = sent
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok());
        values.any(|value| {
            value
                .split(',')
                .any(|one| one.split(';').next().unwrap_or_default().trim() == name)
        })
    };
    accepts("application/json") && !accepts(PROTOBUF)
}

pub(super) fn protobuf(turn: Turn, bytes: Bytes) -> Response {
    ([(header::CONTENT_TYPE, PROTOBUF)], held(turn, bytes)).into_response()
}

pub(super) fn json(turn: Turn, text: impl Into<Bytes>) -> Response {
    let text = held(turn, text.into());
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Bytes that give their turn back once they have been sent.
fn held(turn: Turn, bytes: Bytes) -> Bytes {
    struct Held {
        bytes: Bytes,
        _turn: Turn,
    }
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    Bytes::from_owner(Held { bytes, _turn: turn })
}

/// A page as JSON, event by event.
fn readable(page: &EventPage) -> Result<Value, Denial> {
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
    Ok(serde_json::json!({
        "head_seq": page.head_seq,
        "head_chain": page.head_chain,
        "oldest_seq": page.oldest_seq,
        "events": events,
    }))
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
    use futures_util::FutureExt as _;
    use spacetime_sync_proto::Label;

    use super::*;
    use crate::settings::HistoryConfig;

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
        ] {
            assert!(read(query).is_err(), "{query}");
        }
        let long = format!("after=1&chain=sha256:{}", "A".repeat(64));
        assert!(read(&long).is_err());
    }

    #[tokio::test]
    async fn a_turn_lasts_until_the_last_byte_of_its_answer_is_dropped() {
        let histories = histories(1);
        let [first, second] = ["s", "t"].map(label);
        let turn = histories.turn(&first, &first).await.unwrap();
        let answer = held(turn, Bytes::from_static(b"answer"));
        let unsent = answer.slice(5..);
        drop(answer);
        assert!(histories.turn(&second, &second).now_or_never().is_none());
        drop(unsent);
        assert!(histories.turn(&second, &second).now_or_never().is_some());
    }

    fn histories(requests: usize) -> Histories {
        let config = HistoryConfig {
            requests,
            ..HistoryConfig::default()
        };
        Histories::new(&config, 1_000)
    }

    fn label(text: &str) -> Label {
        Label::new(text).unwrap()
    }

    #[tokio::test]
    async fn one_session_holds_a_quarter_of_the_turns_and_one_user_half_and_neither_waits_for_more() {
        let (histories, user) = (histories(8), label("u"));
        let [greedy, another, third] = ["s", "t", "v"].map(label);
        let turn = |session_id| histories.turn(session_id, &user);
        let now = |session_id| turn(session_id).now_or_never().map(Result::unwrap);
        let mut held = Vec::from([&greedy, &greedy].map(now));
        assert!(held.iter().all(Option::is_some) && now(&greedy).is_none());
        held.extend([&another, &another].map(now));
        assert!(held.iter().all(Option::is_some) && now(&third).is_none());
        let wanting = (0..100).flat_map(|_| [&greedy, &third]);
        let mut waiting: Vec<_> = wanting.map(|one| Box::pin(turn(one))).collect();
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        let others = ["a", "b", "c", "d", "e"].map(label);
        let other = |number: usize| histories.turn(&others[number], &others[number]).now_or_never();
        let mut of_others: Vec<_> = (0..4).map(other).collect();
        assert!(of_others.iter().all(Option::is_some) && other(4).is_none());
        of_others.pop();
        assert!(other(4).is_some());
        drop(waiting);
        held.pop();
        assert!(now(&third).is_some());
    }

    #[test]
    fn json_is_sent_only_to_clients_that_do_not_accept_protobuf() {
        for (accept, json) in [
            ("application/json", true),
            ("text/html, application/json;q=0.9", true),
            ("*/*", false),
            (PROTOBUF, false),
            ("application/json, application/x-protobuf", false),
            ("application/jsonx", false),
        ] {
            let mut sent = HeaderMap::new();
            sent.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(wants_json(&sent), json, "{accept}");
        }
        assert!(!wants_json(&HeaderMap::new()));
    }
}
