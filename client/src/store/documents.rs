//! Where the documents of streams are kept: beside the checkpoints, and moved with them.
//!
//! A stream that begins has its documents kept aside, part by part, until all are there; then it shows them at once. Whoever reads sees
//! those of before or those of after, and never half of both.

use spacetime_sync_proto::document::{Document, Pointer};
use spacetime_sync_proto::{PayloadHash, Position, Seq, StreamId};

use super::StoreError;

/// Keeps documents. Each method is one transaction, done whole or not at all.
pub trait DocumentStore {
    /// Where a stream's documents are, if the store holds those of its checkpoint. Parts that an interrupted client kept aside are
    /// cleared away.
    fn open_documents(&mut self, stream_id: &StreamId) -> Result<Option<Position>, StoreError>;

    /// Takes what events tell, the newest last, and moves the checkpoint from `from` to `to`. Refuses if `from` is not the saved
    /// checkpoint.
    fn commit_documents(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        to: &Position,
        documents: &[Document],
    ) -> Result<Committed, StoreError>;

    /// Keeps documents aside, and returns how many: all, or as many of the first as one transaction should, and at least one. The first
    /// part clears away what was kept aside before.
    fn stage_documents(
        &mut self,
        stream_id: &StreamId,
        is_first: bool,
        documents: &[Document],
    ) -> Result<usize, StoreError>;

    /// Goes on from what was kept aside, and sets the checkpoint to `at`. It is shown, in the place of what is shown now, once the events
    /// up to `whole_at` are applied. Refuses if `from` is not the saved checkpoint, or if nothing was kept aside. Returns whether it is
    /// shown at once.
    fn adopt_documents(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        at: &Position,
        whole_at: Seq,
    ) -> Result<bool, StoreError>;

    /// Forgets the documents of a stream, if there are any, and its checkpoint with them: somebody wants its events, and has seen none of
    /// them. The checkpoint stays if it is not that of the documents. Returns whether it went.
    fn forget_documents(&mut self, stream_id: &StreamId) -> Result<bool, StoreError>;

    /// Deletes a bounded part of what is shown no more, of any stream. Returns whether there is more.
    fn sweep_documents(&mut self) -> Result<bool, StoreError>;

    /// The first document after a key of which only a pointer is here.
    fn next_pointer(
        &mut self,
        stream_id: &StreamId,
        after: Option<&str>,
    ) -> Result<Option<(String, Pointer)>, StoreError>;

    /// Puts a content in the place of a pointer. Changes nothing if there is no pointer with this hash any more. The caller has
    /// compared the content with its hash. Returns whether what is shown has changed.
    fn fill_document(
        &mut self,
        stream_id: &StreamId,
        key: &str,
        hash: PayloadHash,
        content: &str,
    ) -> Result<bool, StoreError>;

    /// A way to read that may be used while the store is written to.
    fn document_reader(&self) -> Result<Box<dyn DocumentReader>, StoreError>;
}

/// Who sees what was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// Whoever reads.
    Shown,
    /// Whoever reads, and all documents with it: those that were adopted lack nothing any more.
    BecameShown,
    /// Nobody yet: the documents that were adopted still lack some.
    NotShown,
}

/// Reads the documents that a store shows. It may block.
pub trait DocumentReader: Send {
    /// One document.
    fn document(&self, stream_id: &StreamId, key: &str) -> Result<Option<StoredDocument>, StoreError>;

    /// Documents after a key, in the order of the bytes of their keys, at most so many.
    fn documents(
        &self,
        stream_id: &StreamId,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<StoredDocument>, StoreError>;

    /// How many documents there are.
    fn count(&self, stream_id: &StreamId) -> Result<u64, StoreError>;
}

/// A document as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDocument {
    /// Names it within its stream.
    pub key: String,
    /// The seq, in its source, of what it was made of last.
    pub version: u64,
    /// The seq of the event that told of it.
    pub seq: Seq,
    /// Its canonical JSON. `None` until that is fetched.
    pub content: Option<String>,
    /// The hash of that.
    pub hash: PayloadHash,
}
