//! What all reads of the authority's log and documents share: whom they let in, how a query is read, and the forms of an answer.
//!
//! Before it asks the authority anything, a request must pass the checks of who asks and how often, and whether the session still
//! exists.

use std::net::SocketAddr;

use axum::extract::Query;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use spacetime_sync_doors::asker::asker;
use spacetime_sync_proto::page::PROTOBUF;
use spacetime_sync_proto::{RefusalCode, StreamId};

use super::Desk;
use super::refusal::{incompatible, refuse};
use crate::denial::Denial;
use crate::history::{Histories, NoPage, Turn};
use crate::reader::{NoReader, Reader};

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

/// What a query says. `None` if it says anything else, or anything that is not text: that would be read as another text.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Option<T> {
    if !is_text(uri.query().unwrap_or_default()) {
        return None;
    }
    Query::try_from_uri(uri).ok().map(|Query(asked)| asked)
}

/// Whether the bytes that a query stands for are UTF-8.
fn is_text(query: &str) -> bool {
    let mut bytes = Vec::with_capacity(query.len());
    let mut rest = query.as_bytes();
    while let [byte, after @ ..] = rest {
        let mut escaped = [0];
        let is_escaped = *byte == b'%' && after.len() >= 2 && hex::decode_to_slice(&after[..2], &mut escaped).is_ok();
        bytes.push(if is_escaped { escaped[0] } else { *byte });
        rest = if is_escaped { &after[2..] } else { after };
    }
    String::from_utf8(bytes).is_ok()
}

/// A page in the form that the request wants, or why there is none.
pub(super) fn answer<P>(
    page: Result<P, NoPage>,
    turn: Turn,
    sent: &HeaderMap,
    encode: fn(&P) -> Bytes,
    readable: fn(&P) -> Result<String, Denial>,
) -> Result<Response, NoReader> {
    match page {
        Ok(page) if wants_json(sent) => Ok(json(turn, readable(&page)?)),
        Ok(page) => Ok(protobuf(turn, encode(&page))),
        Err(NoPage::Stale(stale)) => Ok((StatusCode::GONE, Json(stale)).into_response()),
        Err(NoPage::Denied(denial)) => Err(denial.into()),
    }
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use spacetime_sync_proto::Label;

    use super::*;
    use crate::settings::HistoryConfig;

    #[test]
    fn a_query_that_is_not_text_is_not_read() {
        for text in [
            "",
            "a=b",
            "a=%C3%A9",
            "a=é",
            "a=%",
            "a=%4",
            "a=%zz",
            "a=100%25",
            "a=%EF%BF%BD",
        ] {
            assert!(is_text(text), "{text}");
        }
        for other in ["a=%FF", "a=%ff", "a=%C3", "a=%C3%28", "%ED%A0%80=b", "a=b&c=%80"] {
            assert!(!is_text(other), "{other}");
        }
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
