//! How a stream of documents begins: with the newest version of each, as of one position, and then with the events after it.
//!
//! The documents come from the authority, a part at a time. The store keeps them aside until all are there, so nobody ever sees
//! half of them, and a stream that is interrupted shows what it showed before. Each part says the same position; a position that the
//! log no longer continues ends the fetch, and another one begins after a pause.
//!
//! What has changed since the position is in no part, because an event tells of it. So the store shows the new documents only once
//! the events up to where the last part was read are applied.

use spacetime_sync_proto::document::{Document, DocumentPage, DocumentState};
use spacetime_sync_proto::{Position, Seq, StaleCursor};

use super::recovery::{Asking, Rung};
use super::{Mode, Stream};
use crate::session::stream::{Adoption, Counters, Effect, FetchId, Staging};

/// Most parts that are handed to the store and not saved yet.
const UNSAVED: usize = 2;
/// What a document takes in memory beside its key and content.
const DOCUMENT_BYTES: usize = 128;

/// The documents with which a stream has yet to begin, as far as they have come.
#[derive(Debug)]
pub(super) struct Fetch {
    id: FetchId,
    /// The position as of which they are, once a part has said it.
    at: Option<Position>,
    next: Next,
    /// How many parts are handed to the store and not saved yet.
    unsaved: usize,
    /// How many documents have come.
    fetched: u64,
    /// Where the stream ended when the last part was read.
    head: Seq,
}

#[derive(Debug)]
enum Next {
    /// The part after this key.
    Part(Option<String>),
    /// All parts have come.
    End,
}

impl Fetch {
    /// What a stream does until it has them.
    pub(super) fn mode(&self) -> Mode {
        Mode::Recovering(Rung::Documents { fetched: self.fetched })
    }

    /// Whether a part is what the fetch has asked for, and leads further.
    fn continues(&self, page: &DocumentPage) -> bool {
        let Next::Part(after) = &self.next else { return false };
        let mut before = after.as_deref();
        let mut ascends = |key| before.replace(key) < Some(key);
        let documents = page.documents.iter();
        self.at.is_none_or(|at| at == page.at)
            && documents.map(|document| document.key.as_str()).all(&mut ascends)
            && page.documents.iter().all(|document| document.seq <= page.at.seq)
            && page.at.seq <= page.head_seq
            // A part may be empty: of what it looked at, nothing need be told.
            && page.next_after.as_deref().is_none_or(|next| Some(next) >= before && Some(next) > after.as_deref())
    }
}

impl Stream {
    /// Whether it carries documents, and not events.
    pub fn carries_documents(&self) -> bool {
        self.bounds.carries.are_documents()
    }

    pub(super) fn new_fetch(&mut self) {
        self.fetches = self.fetches.wrapping_add(1);
        // An answer to what was asked before is about another fetch.
        if self.asking == Some(Asking::ForDocuments) {
            self.asking = None;
        }
        self.fetch = Some(Fetch {
            id: FetchId(self.fetches),
            at: None,
            next: Next::Part(None),
            unsaved: 0,
            fetched: 0,
            head: Seq::ZERO,
        });
    }

    /// A part that was handed to the store may be lost: the stream begins again, if it has yet to begin.
    pub(super) fn fetch_anew(&mut self) {
        if self.fetch.is_some() {
            self.new_fetch();
        }
    }

    /// What was applied is not continued: the stream begins with its documents. If that did not help before, it does so after a
    /// pause.
    pub(super) fn begin_with_documents(&mut self, effects: &mut Vec<Effect>) {
        self.claim = None;
        if self.recovery.answers > 0 {
            return self.fetch_later(effects);
        }
        self.recovery.answers = 1;
        self.new_fetch();
        self.climb(Rung::Documents { fetched: 0 }, effects);
    }

    /// The stream begins again with its documents, after a pause that grows with each such beginning.
    pub(super) fn fetch_later(&mut self, effects: &mut Vec<Effect>) {
        self.recovery.answers = self.recovery.answers.saturating_add(1);
        self.recovery.waits = self.recovery.waits.max(self.recovery.answers);
        self.new_fetch();
        self.pause(Rung::AwaitAuthority, effects);
    }

    /// Asks for the next part, or has the store show what has come, once that is all. Says what is asked.
    pub(super) fn fetch_some(&mut self, effects: &mut Vec<Effect>) -> Option<Asking> {
        let fetch = self.fetch.as_ref()?;
        match (&fetch.next, fetch.at) {
            (Next::Part(after), at) if fetch.unsaved < UNSAVED => {
                let after = after.clone();
                effects.push(Effect::ReadDocuments { at, after });
                Some(Asking::ForDocuments)
            }
            // Everything handed out must be saved first: until then nobody knows where the store stands.
            (Next::End, Some(at)) if fetch.unsaved == 0 && self.applied == self.cursor => {
                effects.push(Effect::Adopt(Adoption {
                    fetch: fetch.id,
                    from: self.applied,
                    at,
                    whole_at: fetch.head,
                }));
                Some(Asking::ToBegin { from_document: true })
            }
            (Next::Part(_) | Next::End, _) => None,
        }
    }

    /// A part has come.
    pub(super) fn documents(&mut self, page: DocumentPage, counters: &mut Counters, effects: &mut Vec<Effect>) {
        if self.asking == Some(Asking::ForDocuments) {
            self.asking = None;
        }
        let (Mode::Recovering(Rung::Documents { .. }), Some(fetch)) = (&self.mode, &mut self.fetch) else {
            return;
        };
        if !fetch.continues(&page) {
            counters.history_failures += 1;
            return self.fetch_later(effects);
        }
        counters.document_pages += 1;
        let is_first = fetch.at.is_none();
        fetch.at = Some(page.at);
        fetch.head = fetch.head.max(page.head_seq);
        fetch.fetched += page.documents.len() as u64;
        fetch.next = page.next_after.map_or(Next::End, |after| Next::Part(Some(after)));
        fetch.unsaved += 1;
        // Even an empty part is something that the store has yet to do.
        let bytes = DOCUMENT_BYTES + page.documents.iter().map(size).sum::<usize>();
        effects.push(Effect::Stage(Staging {
            fetch: fetch.id,
            is_first,
            documents: page.documents,
            bytes,
        }));
        self.mode = fetch.mode();
        self.unapplied_bytes += bytes;
        self.recovery.waits = 0;
    }

    /// The store has kept a part aside.
    pub(super) fn staged(&mut self, id: FetchId, released: usize) {
        self.release(released);
        if let Some(fetch) = self.fetch.as_mut().filter(|fetch| fetch.id == id) {
            fetch.unsaved = fetch.unsaved.saturating_sub(1);
        }
    }

    /// The log no longer continues the position as of which the documents are.
    pub(super) fn documents_are_stale(
        &mut self,
        stale: &StaleCursor,
        counters: &mut Counters,
        effects: &mut Vec<Effect>,
    ) {
        let (Mode::Recovering(Rung::Documents { .. }), Some(fetch)) = (&self.mode, &self.fetch) else {
            return;
        };
        if fetch.at.is_none_or(|at| at.seq != stale.requested_after_seq) {
            return;
        }
        counters.stale_cursors += 1;
        self.fetch_later(effects);
    }
}

/// Roughly how much memory a document takes.
fn size(document: &Document) -> usize {
    let content = match &document.state {
        DocumentState::Content { json, .. } => json.len(),
        DocumentState::Pointer(_) | DocumentState::Deleted => 0,
    };
    DOCUMENT_BYTES + document.key.len() + content
}
