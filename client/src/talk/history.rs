//! Reads the authority's log from the bridge over HTTP. It decides nothing and does not check the events in a page; the
//! stream does.

use std::collections::HashMap;

use bytes::Bytes;
use reqwest::header::{ACCEPT, HeaderMap};
use reqwest::{StatusCode, Url};
use spacetime_sync_proto::access::TokenRefusal;
use spacetime_sync_proto::document::{self, DocumentPage, content_path, documents_path};
use spacetime_sync_proto::heads::{HEADS_PATH, Heads, HeadsRequest, StreamHead};
use spacetime_sync_proto::page::{
    DOC_KEY_BYTES, DOCUMENT_BYTES, EventPage, PROTOBUF, STREAMS_PATH, Snapshot, path_segment,
};
use spacetime_sync_proto::{Position, Refusal, RefusalCode, Seq, StaleCursor, StreamId, error_text, limit};

use super::tokens::{bridge_url, json, read_incompatible, read_up_to, retry_after};
use crate::config::{ALLOWED_BY, ClientConfig, History};
use crate::credential::Credential;
use crate::error::ConfigError;
use crate::session::stream::Page;
use crate::session::{Answer, Content, Question};

/// The most bytes in an answer besides its frames or document.
const ENVELOPE_BYTES: usize = 256 * 1024;
/// Longest answer with a page: a full page, and one frame beyond it.
const PAGE_ANSWER_BYTES: usize = limit::PAGE_BYTES + limit::FRAME_BYTES + ENVELOPE_BYTES;
/// Longest answer with a document.
const DOCUMENT_ANSWER_BYTES: usize = DOCUMENT_BYTES + ENVELOPE_BYTES;
/// Longest answer with a part of documents: a full page, and one document beyond it.
const DOCUMENTS_ANSWER_BYTES: usize =
    document::PAGE_BYTES + DOCUMENT_BYTES + document::PAGE_DOCUMENTS * (*DOC_KEY_BYTES.end() + 128) + ENVELOPE_BYTES;
/// Longest answer with heads.
const HEADS_ANSWER_BYTES: usize = limit::HEADS * limit::STREAM_ID_BYTES + ENVELOPE_BYTES;

fn failed(message: impl Into<String>) -> Answer {
    Answer::Failed {
        message: message.into(),
        retry_after: None,
    }
}

/// Where to read the authority's log.
pub(crate) struct Source {
    http: reqwest::Client,
    bridge: Url,
}

impl Source {
    /// Takes the address from the configuration. `None` if the client is not to ask the authority, or has no address.
    pub(crate) fn of(config: &ClientConfig) -> Result<Option<Self>, ConfigError> {
        let address = match (&config.history, &config.credential) {
            (History::Off, _) => None,
            (History::At(_), Credential::Anonymous) => return Err(ConfigError::HistoryWithoutCredential),
            (History::At(address), Credential::Fixed(_) | Credential::Provider(_)) => Some(address.as_str()),
            (History::OfCredential, Credential::Provider(provider)) => provider.bridge(),
            (History::OfCredential, Credential::Anonymous | Credential::Fixed(_)) => None,
        };
        let Some(address) = address else { return Ok(None) };
        let bridge = bridge_url(address)?;
        config.transport.check(address, ALLOWED_BY)?;
        let http = config
            .transport
            .http(address)
            .timeout(config.limits.history_timeout)
            .build()
            .map_err(|error| ConfigError::Bridge {
                detail: error.without_url().to_string(),
            })?;
        Ok(Some(Self { http, bridge }))
    }

    pub(crate) async fn ask(&self, token: Option<String>, stream_id: &StreamId, question: Question) -> Answer {
        let Some(url) = self.url(stream_id, &question) else {
            return failed("a stream with this name cannot be requested over HTTP");
        };
        let mut request = self.http.get(url).header(ACCEPT, PROTOBUF);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return failed(error_text(&error.without_url())),
        };
        let (status, headers) = (answer.status(), answer.headers().clone());
        let most = match &question {
            Question::Events(_) => PAGE_ANSWER_BYTES,
            Question::Document | Question::Content(_) => DOCUMENT_ANSWER_BYTES,
            Question::Documents { .. } => DOCUMENTS_ANSWER_BYTES,
        };
        match read_up_to(answer, most).await {
            Ok(body) => read(stream_id, &question, status, &headers, body.into()),
            Err(message) => failed(message),
        }
    }

    /// Asks where streams end. The first of them has the index `first`. Tells the bridge about which of
    /// them SpacetimeDB contradicts the authority.
    pub(crate) async fn heads(
        &self,
        token: Option<String>,
        first: usize,
        streams: &[StreamId],
        reported: Vec<StreamId>,
    ) -> Result<Vec<(usize, Seq)>, String> {
        let mut url = self.bridge.clone();
        url.set_path(&format!("{}{HEADS_PATH}", url.path().trim_end_matches('/')));
        let mut request = self.http.post(url).json(&HeadsRequest {
            streams: streams.to_vec(),
            reported,
        });
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.map_err(|error| error_text(&error.without_url()))?;
        let status = answer.status();
        let body = read_up_to(answer, HEADS_ANSWER_BYTES).await?;
        match (status, json::<Heads>(&body)) {
            (StatusCode::OK, Some(Heads { heads })) => Ok(places(first, streams, &heads)),
            (StatusCode::OK, None) => Err("the bridge's answer is not a list of heads".to_owned()),
            (_, _) => Err(format!("the bridge answered {status}")),
        }
    }

    fn url(&self, stream_id: &StreamId, question: &Question) -> Option<Url> {
        let mut url = self.bridge.clone();
        let (base, name) = (url.path().trim_end_matches('/').to_owned(), path_segment(stream_id)?);
        match question {
            Question::Events(after) => {
                url.set_path(&format!("{base}{STREAMS_PATH}/{name}/events"));
                url.query_pairs_mut()
                    .append_pair("after", &after.seq.to_string())
                    .append_pair("chain", &after.chain.to_string());
            }
            Question::Document => url.set_path(&format!("{base}{STREAMS_PATH}/{name}/snapshot")),
            Question::Documents { at, after } => {
                url.set_path(&format!("{base}{}", documents_path(stream_id)?));
                let mut query = url.query_pairs_mut();
                if let Some(at) = at {
                    query.append_pair("at", &at.seq.to_string());
                    query.append_pair("chain", &at.chain.to_string());
                }
                if let Some(after) = after {
                    query.append_pair("after", after);
                }
            }
            Question::Content(Content { key, hash }) => {
                url.set_path(&format!("{base}{}", content_path(stream_id)?));
                url.query_pairs_mut()
                    .append_pair("key", key)
                    .append_pair("hash", &hash.to_string());
            }
        }
        Some(url)
    }
}

/// The index of each stream that was asked about and has events, and up to where SpacetimeDB has acknowledged it.
fn places(first: usize, streams: &[StreamId], heads: &[StreamHead]) -> Vec<(usize, Seq)> {
    let heads: HashMap<_, _> = heads.iter().map(|head| (&head.stream_id, head.published_seq)).collect();
    let place = |(at, stream_id)| Some((first + at, *heads.get(stream_id)?));
    streams.iter().enumerate().filter_map(place).collect()
}

fn read(stream_id: &StreamId, question: &Question, status: StatusCode, headers: &HeaderMap, body: Bytes) -> Answer {
    let said = json::<TokenRefusal>(&body);
    let refusal = |code| match &said {
        Some(said) => Refusal::new(said.code, said.message.clone()),
        None => Refusal::new(code, format!("the bridge answered {status}")),
    };
    match (status, question) {
        (StatusCode::OK, Question::Events(_)) => match EventPage::decode(body) {
            Ok(page) => Answer::Page(raw(page)),
            Err(error) => failed(format!("the bridge's answer is not a valid page: {error}")),
        },
        (StatusCode::OK, Question::Document) => match Snapshot::decode(body) {
            Ok(document) => Answer::Document(Some(Box::new(document))),
            Err(error) => failed(format!("the bridge's answer is not a valid document: {error}")),
        },
        (StatusCode::OK, Question::Documents { .. }) => match DocumentPage::decode(body) {
            Ok(page) => Answer::Documents(Box::new(page)),
            Err(error) => failed(format!("the bridge's answer is not a valid page of documents: {error}")),
        },
        (StatusCode::OK, Question::Content(_)) => Answer::Content(Some(body)),
        (StatusCode::GONE, Question::Events(after) | Question::Documents { at: Some(after), .. }) => {
            match json::<StaleCursor>(&body) {
                Some(stale) if stale.stream_id == *stream_id && stale.requested_after_seq == after.seq => {
                    Answer::Stale(Box::new(stale))
                }
                Some(_) | None => failed("the bridge answered 410, but not about this cursor"),
            }
        }
        (StatusCode::NOT_FOUND, Question::Document | Question::Content(_)) => match (&said, question) {
            (Some(said), Question::Document) if said.code == RefusalCode::NotFound => Answer::Document(None),
            (Some(said), _) if said.code == RefusalCode::NotFound => Answer::Content(None),
            (Some(_) | None, _) => {
                failed("the server answered 404, but not as a bridge does: check the bridge's address")
            }
        },
        (StatusCode::UNAUTHORIZED, _) => Answer::Unauthorized(refusal(RefusalCode::Unauthorized)),
        (StatusCode::FORBIDDEN, _) => Answer::Refused(refusal(RefusalCode::ForbiddenStream)),
        // An operator projects the document anew, and then it is there.
        (StatusCode::CONFLICT, Question::Documents { .. } | Question::Content(_)) => {
            failed("a document does not have its hash in the authority: an operator must look at it")
        }
        (StatusCode::CONFLICT, _) => Answer::Refused(refusal(RefusalCode::ChainMismatch)),
        (StatusCode::UNPROCESSABLE_ENTITY, _) => Answer::Refused(refusal(RefusalCode::InvalidArgument)),
        (StatusCode::UPGRADE_REQUIRED, _) => Answer::Refused(match read_incompatible(&body) {
            Some(incompatible) => Refusal::new(incompatible.code, incompatible.message),
            None => refusal(RefusalCode::UpgradeRequired),
        }),
        _ => Answer::Failed {
            message: format!("the bridge answered {status}"),
            retry_after: retry_after(said.as_ref(), headers),
        },
    }
}

fn raw(page: EventPage) -> Page {
    Page {
        head: Position {
            seq: page.head_seq,
            chain: page.head_chain,
        },
        oldest_seq: page.oldest_seq,
        // What the authority answers is durable, whatever connection the client reads SpacetimeDB over.
        durable_reads: false,
        frames: page.frames,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use spacetime_sync_proto::{ChainHash, Seq, StaleReason};

    use super::*;
    use crate::credential::{AccessToken, TokenError, WantedToken};

    fn stream() -> StreamId {
        StreamId::new("user:7:a/b%c").unwrap()
    }

    fn after() -> Position {
        Position {
            seq: Seq::new(7).unwrap(),
            chain: ChainHash::from_bytes([0xab; 32]),
        }
    }

    fn config(history: History, credential: Credential) -> ClientConfig {
        ClientConfig {
            history,
            credential,
            ..ClientConfig::new("https://host", "lane", vec![stream()])
        }
    }

    fn read_of(status: u16, question: Question, body: &[u8]) -> Answer {
        let status = StatusCode::from_u16(status).unwrap();
        read(
            &stream(),
            &question,
            status,
            &HeaderMap::new(),
            Bytes::copy_from_slice(body),
        )
    }

    #[test]
    fn a_name_stays_one_segment_below_the_bridges_own_path() {
        let at = History::At("https://bridge.example/lane/".to_owned());
        let source = Source::of(&config(at, Credential::Fixed("x".to_owned())))
            .unwrap()
            .unwrap();
        let url = source.url(&stream(), &Question::Events(after())).unwrap();
        let chain = format!("sha256%3A{}", "ab".repeat(32));
        assert_eq!(
            url.as_str(),
            format!("https://bridge.example/lane/api/sync/streams/user:7:a%2Fb%25c/events?after=7&chain={chain}")
        );
        let url = source
            .url(&StreamId::new("../x").unwrap(), &Question::Document)
            .unwrap();
        assert_eq!(url.path(), "/lane/api/sync/streams/..%2Fx/snapshot");
        assert!(source.url(&StreamId::new("..").unwrap(), &Question::Document).is_none());
    }

    #[test]
    fn the_authority_is_asked_where_tokens_come_from_or_as_configured() {
        let closure = |_: WantedToken| async { Err::<AccessToken, _>(TokenError::unavailable("no")) };
        let tokens = || {
            let session = || async { Ok("session".to_owned()) };
            Credential::provider(crate::HttpTokens::new("https://bridge.example", session).unwrap())
        };
        let known = |history, credential| Source::of(&config(history, credential)).map(|source| source.is_some());
        let at = || History::At("https://other.example".to_owned());
        assert_eq!(known(History::OfCredential, tokens()), Ok(true));
        assert_eq!(known(History::Off, tokens()), Ok(false));
        assert_eq!(known(History::OfCredential, Credential::provider(closure)), Ok(false));
        assert_eq!(known(History::OfCredential, Credential::Anonymous), Ok(false));
        assert_eq!(known(at(), Credential::Fixed("x".to_owned())), Ok(true));
        assert!(known(at(), Credential::Anonymous).is_err());
        let plain = History::At("http://other.example".to_owned());
        assert!(matches!(
            known(plain, Credential::Fixed("x".to_owned())),
            Err(ConfigError::Plaintext(_))
        ));
        assert!(known(History::At("ftp://x".to_owned()), Credential::Fixed("x".to_owned())).is_err());
        assert!(!format!("{:?}", at()).contains("other"));
    }

    #[test]
    fn answers_are_read_by_their_body_or_else_by_their_status() {
        let events = || Question::Events(after());
        let stale = StaleCursor {
            code: Default::default(),
            stream_id: stream(),
            requested_after_seq: after().seq,
            oldest_available_cursor: Seq::new(9).unwrap(),
            oldest_available_chain: after().chain,
            head_cursor: Seq::new(20).unwrap(),
            reason_codes: vec![StaleReason::RetentionFloorBreach],
            replay_lag: 13,
            replay_budget_events: None,
            snapshot_cursor: None,
        };
        let body = serde_json::to_vec(&stale).unwrap();
        assert_eq!(read_of(410, events(), &body), Answer::Stale(Box::new(stale.clone())));
        let other = StaleCursor {
            requested_after_seq: Seq::new(8).unwrap(),
            ..stale
        };
        for body in [serde_json::to_vec(&other).unwrap(), b"gone".to_vec()] {
            assert!(matches!(read_of(410, events(), &body), Answer::Failed { .. }));
        }
        let refusal = br#"{"code":"forbidden_stream","message":"no","retryable":false}"#;
        let expected = Refusal::new(RefusalCode::ForbiddenStream, "no");
        assert_eq!(read_of(403, events(), refusal), Answer::Refused(expected));
        let gone = br#"{"code":"not_found","message":"none","retryable":false}"#;
        assert_eq!(read_of(404, Question::Document, gone), Answer::Document(None));
        for (status, question) in [
            (404, events()),
            (404, Question::Document),
            (500, events()),
            (503, events()),
            (200, events()),
            (200, Question::Document),
            (302, events()),
        ] {
            assert!(
                matches!(read_of(status, question, b"<html>"), Answer::Failed { .. }),
                "{status}"
            );
        }
        let slower = br#"{"code":"rate_limited","message":"slower","retryable":true,"retry_after_ms":1500}"#;
        let Answer::Failed { retry_after, .. } = read_of(429, events(), slower) else {
            panic!("not failed");
        };
        assert_eq!(retry_after, Some(Duration::from_millis(1_500)));
        assert!(matches!(read_of(401, events(), b""), Answer::Unauthorized(_)));
        assert!(
            matches!(read_of(409, events(), b""), Answer::Refused(refusal) if refusal.code == RefusalCode::ChainMismatch)
        );
    }
}
