//! How much of the documents one transaction touches.

use spacetime_sync_proto::ChainHash;

use super::*;
use crate::store::CheckpointStore as _;

const CONTENT: &str = "{}";
const MIB: u64 = 1024 * 1024;

fn stream() -> StreamId {
    StreamId::new("s").unwrap()
}

fn at(seq: u64) -> Position {
    Position {
        seq: Seq::new(seq).unwrap(),
        chain: ChainHash::from_bytes([seq as u8; 32]),
    }
}

/// So many documents that are too large for events: each says that it has this size.
fn pointers(count: u64, bytes: u64) -> Vec<Document> {
    let pointer = |number| Document {
        key: format!("k:{number:04}"),
        version: 1,
        seq: Seq::new(1).unwrap(),
        state: DocumentState::Pointer(Pointer {
            hash: PayloadHash::of(CONTENT.as_bytes()),
            bytes,
        }),
    };
    (0..count).map(pointer).collect()
}

/// A store that shows these documents, and has the contents of all of them.
fn shows(folder: &tempfile::TempDir, documents: &[Document]) -> SqliteStore {
    let mut store = SqliteStore::open(folder.path().join("app.db")).unwrap();
    store.bind("lane").unwrap();
    store.open_documents(&stream()).unwrap();
    store.stage_documents(&stream(), true, documents).unwrap();
    let begins = Position::start(&stream());
    assert!(store.adopt_documents(&stream(), &begins, &at(1), Seq::ZERO).unwrap());
    for document in documents {
        let hash = PayloadHash::of(CONTENT.as_bytes());
        assert!(store.fill_document(&stream(), &document.key, hash, CONTENT).unwrap());
    }
    store
}

fn count(store: &SqliteStore, which: &str) -> u64 {
    let count = format!("SELECT count(*) FROM spacetime_sync_document WHERE {which}");
    store
        .connection
        .query_row(&count, [], |row| row.get::<_, i64>(0))
        .unwrap()
        .cast_unsigned()
}

#[test]
fn one_part_copies_a_bounded_size_of_contents_that_are_here_and_the_rest_is_fetched() {
    let folder = tempfile::tempdir().unwrap();
    for (bytes, copied) in [(MIB, 16), (5 * MIB, 3), (17 * MIB, 1), (10, 40), (u64::MAX, 1)] {
        let documents = pointers(40, bytes);
        let mut store = shows(&folder, &documents);
        store.stage_documents(&stream(), true, &documents).unwrap();
        let aside = "view = (SELECT id FROM spacetime_sync_view WHERE state = 'aside') AND content IS NOT NULL";
        assert_eq!(count(&store, aside), copied, "of {bytes} bytes each");
        assert!(store.adopt_documents(&stream(), &at(1), &at(2), Seq::ZERO).unwrap());
        let next = store.next_pointer(&stream(), None).unwrap();
        let expected = (copied < 40).then(|| format!("k:{copied:04}"));
        assert_eq!(next.map(|(key, _)| key), expected);
        drop(store);
        std::fs::remove_file(folder.path().join("app.db")).unwrap();
    }
}

#[test]
fn a_pointer_that_is_told_of_again_keeps_its_content_and_another_one_loses_it() {
    let folder = tempfile::tempdir().unwrap();
    let documents = pointers(40, MIB);
    let mut store = shows(&folder, &documents);
    store.commit_documents(&stream(), &at(1), &at(2), &documents).unwrap();
    assert_eq!(count(&store, "content IS NULL"), 0);
    let other = Document {
        state: DocumentState::Pointer(Pointer {
            hash: PayloadHash::of(b"other"),
            bytes: 5,
        }),
        ..documents[7].clone()
    };
    store.commit_documents(&stream(), &at(2), &at(3), &[other]).unwrap();
    assert_eq!(count(&store, "content IS NULL AND doc_key = 'k:0007'"), 1);
    assert_eq!(count(&store, "content IS NULL"), 1);
}

#[test]
fn one_sweep_deletes_a_bounded_number_and_a_bounded_size_of_documents() {
    let folder = tempfile::tempdir().unwrap();
    for (documents, left) in [(pointers(2_500, 10), [1_500, 500, 0]), (pointers(40, MIB), [24, 8, 0])] {
        let mut store = shows(&folder, &documents);
        store.stage_documents(&stream(), true, &[]).unwrap();
        assert!(store.adopt_documents(&stream(), &at(1), &at(2), Seq::ZERO).unwrap());
        for left in left {
            assert!(store.sweep_documents().unwrap());
            assert_eq!(count(&store, "true"), left);
        }
        // The view goes after its last document.
        assert!(store.sweep_documents().unwrap());
        assert!(!store.sweep_documents().unwrap());
        drop(store);
        std::fs::remove_file(folder.path().join("app.db")).unwrap();
    }
}
