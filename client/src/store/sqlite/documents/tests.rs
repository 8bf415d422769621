//! How much of the documents one transaction touches.

use spacetime_sync_proto::ChainHash;

use super::*;
use crate::store::CheckpointStore as _;

const KIB: usize = 1024;

fn stream() -> StreamId {
    StreamId::new("s").unwrap()
}

fn at(seq: u64) -> Position {
    Position {
        seq: Seq::new(seq).unwrap(),
        chain: ChainHash::from_bytes([seq as u8; 32]),
    }
}

/// So many documents that are too large for events, each with this content.
fn pointers(count: u64, content: &str) -> Vec<Document> {
    let pointer = |number| Document {
        key: format!("k:{number:04}"),
        version: 1,
        seq: Seq::new(1).unwrap(),
        state: DocumentState::Pointer(Pointer {
            hash: PayloadHash::of(content.as_bytes()),
            // What a pointer says of its size counts for nothing.
            bytes: u64::MAX,
        }),
    };
    (0..count).map(pointer).collect()
}

/// A store that shows these documents, of which so many have their content.
fn shows(folder: &tempfile::TempDir, documents: &[Document], content: &str, filled: usize) -> SqliteStore {
    let mut store = SqliteStore::open(folder.path().join("app.db")).unwrap();
    store.bind("lane").unwrap();
    store.open_documents(&stream()).unwrap();
    let begins = Position::start(&stream());
    assert_eq!(store.stage_documents(&stream(), true, documents), Ok(documents.len()));
    assert!(store.adopt_documents(&stream(), &begins, &at(1), Seq::ZERO).unwrap());
    for document in &documents[..filled] {
        let hash = PayloadHash::of(content.as_bytes());
        assert!(store.fill_document(&stream(), &document.key, hash, content).unwrap());
    }
    store
}

fn count(store: &SqliteStore, which: &str) -> usize {
    let count = format!("SELECT count(*) FROM spacetime_sync_document WHERE {which}");
    store.connection.query_row(&count, [], |row| row.get(0)).unwrap()
}

#[test]
fn one_transaction_copies_a_bounded_size_of_contents_and_none_is_lost() {
    let content = "x".repeat(100);
    for (most, steps) in [
        (1_000, vec![10, 10, 10, 10]),
        (250, vec![2; 20]),
        (1, vec![1; 40]),
        (4_000, vec![40]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let documents = pointers(40, &content);
        let mut store = shows(&folder, &documents, &content, 40);
        store.copied_bytes = most;
        let (mut rest, mut taken) = (&documents[..], Vec::new());
        while !rest.is_empty() {
            let kept = store.stage_documents(&stream(), taken.is_empty(), rest).unwrap();
            taken.push(kept);
            rest = &rest[kept..];
        }
        assert_eq!(taken, steps, "{most} bytes");
        assert!(store.adopt_documents(&stream(), &at(1), &at(2), Seq::ZERO).unwrap());
        assert_eq!(store.next_pointer(&stream(), None), Ok(None));
        assert_eq!(store.document_reader().unwrap().count(&stream()), Ok(40));
    }
}

#[test]
fn what_is_not_here_is_kept_aside_without_a_bound_on_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let documents = pointers(40, "large");
    let mut store = shows(&folder, &documents, "large", 0);
    store.copied_bytes = 1;
    assert_eq!(store.stage_documents(&stream(), true, &documents), Ok(40));
}

#[test]
fn a_pointer_that_is_told_of_again_keeps_its_content_and_another_one_loses_it() {
    let folder = tempfile::tempdir().unwrap();
    let documents = pointers(40, "large");
    let mut store = shows(&folder, &documents, "large", 40);
    store.commit_documents(&stream(), &at(1), &at(2), &documents).unwrap();
    assert_eq!(count(&store, "content IS NULL"), 0);
    let other = Document {
        key: documents[7].key.clone(),
        ..pointers(1, "other").remove(0)
    };
    store.commit_documents(&stream(), &at(2), &at(3), &[other]).unwrap();
    assert_eq!(count(&store, "content IS NULL AND doc_key = 'k:0007'"), 1);
    assert_eq!(count(&store, "content IS NULL"), 1);
}

#[test]
fn one_sweep_deletes_a_bounded_number_and_a_bounded_size_of_documents() {
    let mib = "x".repeat(KIB * KIB);
    for (documents, content, filled, left) in [
        (pointers(2_500, "x"), "x", 0, [1_500, 500, 0]),
        (pointers(40, &mib), mib.as_str(), 40, [24, 8, 0]),
        (pointers(20, &mib), mib.as_str(), 0, [0; 3]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut store = shows(&folder, &documents, content, filled);
        store.stage_documents(&stream(), true, &[]).unwrap();
        assert!(store.adopt_documents(&stream(), &at(1), &at(2), Seq::ZERO).unwrap());
        for left in left {
            store.sweep_documents().unwrap();
            assert_eq!(count(&store, "true"), left);
        }
        // The view goes after its last document.
        while store.sweep_documents().unwrap() {}
        let views = "SELECT count(*) FROM spacetime_sync_view";
        let views: i64 = store.connection.query_row(views, [], |row| row.get(0)).unwrap();
        assert_eq!(views, 1);
    }
}
