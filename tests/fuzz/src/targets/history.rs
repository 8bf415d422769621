//! What is asked of the bridge's history over HTTP, and its answers: pages, documents, and stale cursors.

use anyhow::ensure;
use axum::http::Uri;
use bytes::Bytes;
use rand::rngs::StdRng;
use spacetime_sync_issuer::history::DocumentsAsked;
use spacetime_sync_issuer::http::documents;
use spacetime_sync_proto::document::{DELETE, Document, DocumentPage, DocumentState, PUT, Pointer};
use spacetime_sync_proto::page::{DOC_KEY_BYTES, DOCUMENT_BYTES, EventPage, Snapshot};
use spacetime_sync_proto::stale::StaleCode;
use spacetime_sync_proto::{FrameRow, Kind, PayloadHash, Position, Seq, StaleCursor, StaleReason};

use super::page::log;
use crate::mutate;
use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const HISTORY: Entry = Entry {
    name: "history",
    about: "pages, documents and stale cursors: they survive reading, writing and reading again, and are within their bounds; queries for \
            documents: what is read of one is within its bounds",
    dictionary: &[
        b"stale_cursor",
        b"reason_codes",
        b"retention_floor_breach",
        b"chain_mismatch",
        b"sha256:",
        b"at=",
        b"&chain=sha256:",
        b"&after=",
        b"&limit=",
        b"key=",
        b"&hash=sha256:",
        b"%00",
        b"doc_key",
        b"hydration_required",
        b"null",
    ],
    most: 16 * 1024,
    open: || Ok(Box::new(Answers)),
    seeds,
};

struct Answers;

impl Target for Answers {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let mut taken = false;
        if let Ok(page) = EventPage::decode(Bytes::copy_from_slice(input)) {
            ensure!(EventPage::decode(page.encode()).as_ref() == Ok(&page));
            taken = true;
        }
        if let Ok(document) = Snapshot::decode(Bytes::copy_from_slice(input)) {
            ensure!(Snapshot::decode(document.encode()).as_ref() == Ok(&document));
            ensure!(DOC_KEY_BYTES.contains(&document.doc_key.len()));
            ensure!((1..=DOCUMENT_BYTES).contains(&document.payload.len()));
            let hash = PayloadHash::of(&document.payload);
            ensure!(document.payload_matches() == (hash == document.payload_hash));
            taken = true;
        }
        if let Ok(page) = DocumentPage::decode(Bytes::copy_from_slice(input)) {
            ensure!(DocumentPage::decode(page.encode()).as_ref() == Ok(&page));
            let keys = page.documents.iter().map(|document| &document.key);
            ensure!(
                keys.chain(&page.next_after)
                    .all(|key| DOC_KEY_BYTES.contains(&key.len()))
            );
            let states = page.documents.iter().map(|document| &document.state);
            ensure!(states.clone().all(|state| !matches!(state, DocumentState::Deleted)));
            taken = true;
        }
        for kind in [PUT, DELETE] {
            let Ok(document) = Document::told(Seq::ZERO, &Kind::new(kind)?, input) else {
                continue;
            };
            ensure!(DOC_KEY_BYTES.contains(&document.key.len()));
            if let DocumentState::Content { json, hash } = &document.state {
                ensure!(PayloadHash::of(json.as_bytes()) == *hash);
            }
            taken = true;
        }
        if let Some(query) = std::str::from_utf8(input).ok()
            && let Ok(uri) = format!("/x?{query}").parse::<Uri>()
        {
            let is_key = |key: &str| DOC_KEY_BYTES.contains(&key.len()) && !key.contains(char::is_control);
            if let Ok((asked, most)) = documents::read(&uri) {
                ensure!(most > 0);
                if let DocumentsAsked::After { at, key } = asked {
                    ensure!(at.seq <= Seq::MAX && key.is_none_or(|key| is_key(&key)));
                    taken = true;
                }
            }
            if let Ok((key, _)) = documents::read_content(&uri) {
                ensure!(is_key(&key));
                taken = true;
            }
        }
        if let Ok(stale) = serde_json::from_slice::<StaleCursor>(input) {
            let again: StaleCursor = serde_json::from_slice(&serde_json::to_vec(&stale)?)?;
            ensure!(again == stale);
            ensure!(stale.head_cursor <= Seq::MAX && stale.code == StaleCode::StaleCursor);
            taken = true;
        }
        Ok(Verdict::taken(taken))
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        mutate::json(rng, input, HISTORY.dictionary)
    }
}

fn seeds() -> anyhow::Result<Vec<Seed>> {
    let log = log()?;
    let head = log.head();
    let frame = |first: u64, last: u64| FrameRow {
        first_seq: Seq::ZERO.plus(first),
        last_seq: Seq::ZERO.plus(last),
        base_chain: log.at(first - 1).unwrap_or(head).chain,
        bytes: log.frame(first, last),
    };
    let page = |frames| EventPage {
        head_seq: head.seq,
        head_chain: head.chain,
        oldest_seq: Seq::ZERO.next(),
        frames,
    };
    let payload = Bytes::from_static(b"what the events up to here come to");
    let document = Snapshot {
        doc_key: "runtime/run_summary:1".to_owned(),
        seq: head.seq,
        chain_hash: head.chain,
        payload_hash: PayloadHash::of(&payload),
        payload,
    };
    let stale = StaleCursor {
        code: StaleCode::StaleCursor,
        stream_id: log.stream_id.clone(),
        requested_after_seq: Seq::ZERO,
        oldest_available_cursor: Seq::ZERO.plus(3),
        oldest_available_chain: head.chain,
        head_cursor: head.seq,
        reason_codes: vec![StaleReason::RetentionFloorBreach, StaleReason::ReplayBudgetExceeded],
        replay_lag: 9,
        replay_budget_events: Some(5),
        snapshot_cursor: Some(head.seq),
    };
    let content = r#"{"state":"done"}"#;
    let hash = PayloadHash::of(content.as_bytes());
    let position = Position {
        seq: head.seq,
        chain: head.chain,
    };
    let kept = |key: &str, state| Document {
        key: key.to_owned(),
        version: 4,
        seq: head.seq,
        state,
    };
    let documents = DocumentPage {
        at: position,
        documents: vec![
            kept(
                "runtime/run_summary:1",
                DocumentState::Content {
                    json: content.to_owned(),
                    hash,
                },
            ),
            kept(
                "runtime/run_summary:2",
                DocumentState::Pointer(Pointer { hash, bytes: 99_999 }),
            ),
        ],
        next_after: Some("runtime/run_summary:3".to_owned()),
        head_seq: head.seq,
    };
    let told = format!(r#"{{"doc_key":"a:1","doc_version":9,"payload":{{"state":"done"}},"payload_hash":"{hash}"}}"#);
    let part = format!(
        "at={}&chain={}&after=runtime%2Frun_summary:3&limit=7",
        head.seq, head.chain
    );
    let key = format!("key=runtime/run_summary:%C3%A9&hash={hash}");
    Ok(vec![
        Seed::new("documents", documents.encode().to_vec()),
        Seed::new("told", told),
        Seed::new("query-documents", part),
        Seed::new("query-document", key),
        Seed::new("page", page(vec![frame(1, 4), frame(5, 9)]).encode().to_vec()),
        Seed::new("empty", page(Vec::new()).encode().to_vec()),
        Seed::new("document", document.encode().to_vec()),
        Seed::new("stale", serde_json::to_vec(&stale)?),
    ])
}
