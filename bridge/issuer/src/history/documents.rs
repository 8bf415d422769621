//! Documents by key: pages of those that stand for a stream's events up to a position, and the content of one.
//!
//! The read model in the authority has no hash over all of it. So each document is compared with the hash that its event told, and
//! the position with the log.

use bytes::Bytes;
use spacetime_sync_authority::{DocumentRow, DocumentsRead};
use spacetime_sync_proto::canonical::NotADocument;
use spacetime_sync_proto::document::{Document, DocumentPage, DocumentState, PAGE_DOCUMENTS, Pointer};
use spacetime_sync_proto::page::DOCUMENT_BYTES;
use spacetime_sync_proto::{PayloadHash, Position, RefusalCode, StreamId, canonical_json};
use tokio::task::spawn_blocking;

use super::{Cursor, Histories, Instant, Judged, NoPage, Turn, judge};
use crate::denial::Denial;

/// Which part of a stream's documents is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentsAsked {
    /// The first part, as of a position that the bridge chooses.
    First,
    /// The part after a key, as of the position of the first part.
    After {
        /// That position.
        at: Position,
        /// The key. `None`: the first part once more.
        key: Option<String>,
    },
}

/// Why a document of the read model is not sent.
#[derive(Debug, thiserror::Error)]
enum Contradiction {
    #[error("it has no canonical JSON")]
    NoDocument(#[from] NotADocument),
    #[error("its canonical JSON has {0} bytes")]
    Length(usize),
    #[error("it has hash {found}, its row says {expected}")]
    Hash { expected: PayloadHash, found: PayloadHash },
}

impl Histories {
    /// A part of a stream's documents. How far behind the head its position is does not matter here: the events after it are
    /// bounded by what the log holds, and the client asks for them in pages.
    pub async fn documents(
        &self,
        _turn: &Turn,
        stream_id: &StreamId,
        asked: DocumentsAsked,
        most: usize,
    ) -> Result<DocumentPage, NoPage> {
        let (at, after) = match &asked {
            DocumentsAsked::First => (None, None),
            DocumentsAsked::After { at, key } => (Some(*at), key.as_deref()),
        };
        let most = most.clamp(1, PAGE_DOCUMENTS);
        let read = self.authority()?.documents(stream_id, at.map(|at| at.seq), after, most);
        let DocumentsRead {
            at: seq,
            mut log,
            rows,
            next_after,
        } = read.await.map_err(|error| self.failed(stream_id, &error))?;
        if let Some(extent) = &mut log.extent {
            extent.replay_budget_events = None;
        }
        let cursor = Cursor {
            after: seq,
            chain: at.map(|at| at.chain),
        };
        let chain = match judge(stream_id, cursor, &log) {
            Judged::Good(chain) => chain,
            Judged::Broken => return Err(self.broken(stream_id, &format!("seq {seq} is missing")).into()),
            Judged::Stale(stale) => {
                self.with(Instant::now(), |totals| totals.counted.stale_cursor_events_total += 1);
                tracing::info!(%stream_id, reasons = ?stale.reason_codes, at = %seq, "a client must begin its documents anew: the log does not continue their position");
                return Err(NoPage::Stale(stale));
            }
        };
        let made = checked(move || rows.into_iter().map(document).collect::<Result<Vec<_>, _>>()).await?;
        let documents = made.map_err(|(key, why)| self.contradicted(stream_id, &key, &why))?;
        let head_seq = log.extent.as_ref().map_or(seq, |extent| extent.head_seq);
        let served = documents.len() as u64;
        self.with(Instant::now(), |totals| totals.counted.served_documents += served);
        Ok(DocumentPage {
            at: Position { seq, chain },
            documents,
            next_after,
            head_seq,
        })
    }

    /// The canonical JSON of a document, if its newest version has this hash. The answer does not tell a document that has changed
    /// from one that never was.
    pub async fn content(
        &self,
        _turn: &Turn,
        stream_id: &StreamId,
        key: &str,
        hash: PayloadHash,
    ) -> Result<Bytes, Denial> {
        let json = self.authority()?.document(stream_id, key, hash).await;
        let json = json.map_err(|error| self.failed(stream_id, &error))?;
        let none = || Denial::new(RefusalCode::NotFound, "the stream has no document of this key and hash");
        let json = json.ok_or_else(none)?;
        let made = checked(move || content(&json, hash)).await?;
        let content = made.map_err(|why| self.contradicted(stream_id, key, &why))?;
        self.with(Instant::now(), |totals| totals.counted.served_documents += 1);
        Ok(content.into())
    }

    fn contradicted(&self, stream_id: &StreamId, key: &str, why: &Contradiction) -> Denial {
        self.with(Instant::now(), |totals| totals.counted.broken_log_total += 1);
        let error = spacetime_sync_proto::error_text(why);
        tracing::error!(%stream_id, key, error, "the read model contradicts the log about a document, which is not sent; project it anew, a table's by `spacetime-sync reproject`");
        Denial::new(
            RefusalCode::ChainMismatch,
            "a document of this stream does not have its hash in the authority; an operator must look at it",
        )
    }
}

/// Does what takes a thread for a while on one that nobody waits for.
async fn checked<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Denial> {
    let done = spawn_blocking(work).await;
    done.map_err(|_| Denial::unavailable("the bridge ends, or failed to read the documents"))
}

fn document(row: DocumentRow) -> Result<Document, (String, Contradiction)> {
    let state = match row.json {
        None => DocumentState::Pointer(row.pointer),
        Some(json) => {
            let Pointer { hash, bytes: _ } = row.pointer;
            match content(&json, hash) {
                Ok(json) => DocumentState::Content { json, hash },
                Err(why) => return Err((row.key, why)),
            }
        }
    };
    Ok(Document {
        key: row.key,
        version: row.version,
        seq: row.seq,
        state,
    })
}

/// The canonical JSON of a document that has this hash.
fn content(json: &str, expected: PayloadHash) -> Result<String, Contradiction> {
    let canonical = canonical_json(json.as_bytes())?;
    if canonical.len() > DOCUMENT_BYTES {
        return Err(Contradiction::Length(canonical.len()));
    }
    let found = PayloadHash::of(canonical.as_bytes());
    if found != expected {
        return Err(Contradiction::Hash { expected, found });
    }
    Ok(canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_sent_in_its_canonical_form_and_with_its_hash_alone() {
        let canonical = r#"{"a":1,"b":["x",null]}"#;
        let hash = PayloadHash::of(canonical.as_bytes());
        assert_eq!(content(r#"{"b": ["x", null], "a": 1}"#, hash).unwrap(), canonical);
        assert!(matches!(
            content(r#"{"b": ["x", null], "a": 2}"#, hash),
            Err(Contradiction::Hash { expected, .. }) if expected == hash
        ));
        assert!(matches!(
            content(r#"{"a": 1.5}"#, hash),
            Err(Contradiction::NoDocument(_))
        ));
    }
}
