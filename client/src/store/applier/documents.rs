//! The apply thread's work for streams of documents. The store does it; the handler only hears when documents begin
//! anew.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use spacetime_sync_proto::document::{Document, DocumentState};
use spacetime_sync_proto::{Event, PayloadHash, Position, StreamId};

use super::{ApplyFailure, Worker, not_saved, panic_message};
use crate::session::stream::{Adoption, Staging};
use crate::session::{Applied, Content, Filled, Work};
use crate::store::{CheckpointStore, CommitError, Committed, DocumentStore, Handler, StoreError};

/// How many sweeps go before each step that keeps documents aside. A step brings less than they take.
const SWEEPS: usize = 3;

impl<S: CheckpointStore, H: Handler<S>> Worker<S, H> {
    /// Takes what events tell of documents. One that tells of none is passed over, and changes nothing.
    pub(super) fn take_documents(&mut self, stream: usize, to: Position, events: &[Event]) -> Applied {
        let (queue, mut refused) = (&self.streams[stream], 0);
        let told = |event: &Event| {
            let told = Document::told(event.seq, &event.kind, &event.payload);
            told.inspect_err(|why| {
                refused += 1;
                tracing::warn!(stream = %queue.id, seq = %event.seq, %why, "an event of a stream of documents tells of none");
            })
            .ok()
        };
        let documents: Vec<_> = events.iter().filter_map(told).collect();
        let (id, from) = (queue.id.clone(), queue.applied);
        match self.keep(|store| store.commit_documents(&id, &from, &to, &documents)) {
            Ok(Committed::BecameShown) => {
                self.unswept = true;
                self.begun(&id, &to);
            }
            // What is not shown yet has not changed for anybody.
            Ok(Committed::NotShown) => {}
            Ok(Committed::Shown) if documents.is_empty() => {}
            Ok(Committed::Shown) => self
                .changes
                .documents(&id, documents.iter().map(|document| document.key.as_str())),
            Err(applied) => return applied,
        }
        self.streams[stream].applied = to;
        self.changes.events(&id, events);
        Applied::DocumentsTo {
            to,
            have_pointers: documents
                .iter()
                .any(|document| matches!(document.state, DocumentState::Pointer(_))),
            refused,
        }
    }

    /// Keeps a part of a stream's documents aside, or as much of it as one step may. The rest comes first when it is the stream's turn
    /// again. `None` if there is a rest.
    pub(super) fn stage(&mut self, stream: usize, mut staging: Staging) -> Option<Applied> {
        let result = match self.stage_some(stream, &staging) {
            Ok(kept) if kept < staging.documents.len() => {
                staging.documents.drain(..kept);
                staging.is_first = false;
                self.streams[stream].queue.push_front(Work::Stage(staging));
                return None;
            }
            Ok(_) => Applied::Staged(staging.fetch),
            Err(applied) => applied,
        };
        Some(result)
    }

    fn stage_some(&mut self, stream: usize, staging: &Staging) -> Result<usize, Applied> {
        let queue = &mut self.streams[stream];
        let before = queue.staging.take();
        // A part was not saved: those that follow it are of no use.
        if !staging.is_first && before != Some(staging.fetch) {
            return Err(Applied::Dropped);
        }
        if let Some(altered) = staging.documents.iter().find_map(altered) {
            return Err(Applied::Failed(altered));
        }
        let id = queue.id.clone();
        // What failed attempts have left must not fill the disk: more of it goes than comes.
        self.unswept |= staging.is_first;
        for _ in 0..SWEEPS {
            if self.unswept {
                self.sweep();
            }
        }
        let kept = self.keep(|store| store.stage_documents(&id, staging.is_first, &staging.documents));
        // A first part leaves to the sweep what was aside before.
        self.unswept |= staging.is_first;
        let kept = kept?;
        self.streams[stream].staging = Some(staging.fetch);
        Ok(kept)
    }

    /// Shows the documents that were kept aside.
    pub(super) fn adopt(&mut self, stream: usize, adoption: &Adoption) -> Applied {
        let queue = &mut self.streams[stream];
        if queue.staging.take() != Some(adoption.fetch) || queue.applied != adoption.from {
            return Applied::Failed(ApplyFailure::Retry {
                message: "the documents that were kept aside are not those that were expected to be".to_owned(),
            });
        }
        let id = queue.id.clone();
        let Adoption { from, at, whole_at, .. } = adoption;
        match self.keep(|store| store.adopt_documents(&id, from, at, *whole_at)) {
            Ok(true) => self.begun(&id, at),
            Ok(false) => {}
            Err(applied) => return applied,
        }
        self.unswept = true;
        // What lies between was never applied as events.
        self.changes.missed_events(&id);
        self.streams[stream].applied = adoption.at;
        Applied::StartedOver(adoption.at)
    }

    /// The store shows other documents of a stream, all of them new.
    fn begun(&mut self, id: &StreamId, at: &Position) {
        self.changes.all_documents(id);
        let tell = || self.handler.documents_begun(id, at);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(tell)) {
            let message = panic_message(&*panic);
            tracing::error!(stream = %id, message, "the handler panicked when it was told that documents have begun anew; they are shown all the same");
        }
    }

    /// Deletes some of what is shown no more.
    pub(super) fn sweep(&mut self) {
        let swept = self.store.documents().map(DocumentStore::sweep_documents);
        self.unswept = match swept {
            Some(Ok(more)) => more,
            None => false,
            // What is left takes up room, and nothing else. It is swept with the next.
            Some(Err(error)) => {
                tracing::warn!(%error, "documents that are shown no more cannot be deleted");
                false
            }
        };
    }

    /// Looks for a document whose content is not here.
    pub(super) fn next_pointer(&mut self, stream: usize, after: Option<&str>) -> Applied {
        let id = self.streams[stream].id.clone();
        match self.keep(|store| store.next_pointer(&id, after)) {
            Ok(found) => Applied::Pointer(Ok(found)),
            Err(Applied::Failed(failure)) => Applied::Pointer(Err(failure)),
            Err(fatal) => fatal,
        }
    }

    /// Puts a content in the place of a pointer, if it has its hash.
    pub(super) fn fill(&mut self, stream: usize, content: &Content, bytes: &Bytes) -> Applied {
        let id = self.streams[stream].id.clone();
        let Content { key, hash } = content;
        let text = std::str::from_utf8(bytes)
            .ok()
            .filter(|_| PayloadHash::of(bytes) == *hash);
        let Some(text) = text else {
            tracing::warn!(stream = %id, key, "the content of a document does not have its hash");
            return Applied::Filled(Filled::Altered);
        };
        match self.keep(|store| store.fill_document(&id, key, *hash, text)) {
            Ok(true) => self.changes.documents(&id, std::iter::once(key.as_str())),
            Ok(false) => {}
            Err(Applied::Failed(failure)) => {
                tracing::warn!(stream = %id, key, ?failure, "the content of a document cannot be saved");
                return Applied::Filled(Filled::NotSaved);
            }
            Err(fatal) => return fatal,
        }
        Applied::Filled(Filled::Saved)
    }

    /// Has the store do something, and says what the session is to hear if it cannot.
    fn keep<T>(&mut self, work: impl FnOnce(&mut dyn DocumentStore) -> Result<T, StoreError>) -> Result<T, Applied> {
        let Some(store) = self.store.documents() else {
            // The client does not start with such a store.
            return Err(Applied::Failed(ApplyFailure::Stop {
                message: "the store keeps no documents".to_owned(),
            }));
        };
        work(store).map_err(|error| match not_saved(Err(CommitError::Store(error)), None) {
            Err(applied) => applied,
            Ok(()) => Applied::Dropped,
        })
    }
}

/// Whether a document of a page does not have the hash that it states. The next fetch may bring a sound one.
fn altered(document: &Document) -> Option<ApplyFailure> {
    let DocumentState::Content { json, hash } = &document.state else {
        return None;
    };
    let found = PayloadHash::of(json.as_bytes());
    (found != *hash).then(|| ApplyFailure::Retry {
        message: format!("the document {:?} has hash {found}, its page says {hash}", document.key),
    })
}

#[cfg(test)]
mod property;
