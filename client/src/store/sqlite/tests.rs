//! What the store keeps, and what it refuses without touching it.

use spacetime_sync_proto::Position;
use std::path::PathBuf;

use super::*;
use crate::error::HandlerError;

struct File {
    folder: tempfile::TempDir,
}

impl File {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("store.db")
    }

    fn store(&self) -> SqliteStore {
        let mut store = SqliteStore::open(self.path()).unwrap();
        store.bind("lane").unwrap();
        store
    }

    fn sql(&self, text: &str) {
        Connection::open(self.path()).unwrap().execute_batch(text).unwrap();
    }

    /// The error of opening the file for a database. Checks that this left every byte as it was.
    fn refusal(&self, database: &str) -> StoreError {
        let before = std::fs::read(self.path()).unwrap();
        let refused = SqliteStore::open(self.path())
            .and_then(|mut store| store.bind(database))
            .unwrap_err();
        assert_eq!(std::fs::read(self.path()).unwrap(), before, "{refused}");
        refused
    }
}

fn stream() -> StreamId {
    StreamId::new("s").unwrap()
}

fn checkpoint(seq: u64) -> Position {
    Position {
        seq: Seq::new(seq).unwrap(),
        chain: ChainHash::from_bytes([seq as u8; 32]),
    }
}

fn start() -> Position {
    Position::start(&stream())
}

fn save(store: &mut SqliteStore, from: Position, to: Position) -> Result<(), CommitError> {
    store.commit(&stream(), &from, &to, &mut |_: &mut Transaction<'_>| Ok(()))
}

#[test]
fn a_checkpoint_outlives_its_store() {
    let file = File::new();
    let mut store = file.store();
    assert_eq!(store.load(&stream()), Ok(None));
    save(&mut store, start(), checkpoint(5)).unwrap();
    save(&mut store, checkpoint(5), checkpoint(9)).unwrap();
    drop(store);
    assert_eq!(file.store().load(&stream()), Ok(Some(checkpoint(9))));
    assert_eq!(file.store().load(&StreamId::new("t").unwrap()), Ok(None));
}

#[test]
fn effects_and_checkpoint_are_saved_together_or_not_at_all() {
    let file = File::new();
    file.sql("CREATE TABLE effect (n INTEGER)");
    let mut store = file.store();
    let write = |transaction: &mut Transaction<'_>| {
        transaction.execute("INSERT INTO effect VALUES (1)", [])?;
        Ok(())
    };
    let effects = |store: &SqliteStore| -> i64 {
        store
            .connection
            .query_row("SELECT count(*) FROM effect", [], |row| row.get(0))
            .unwrap()
    };
    store
        .commit(&stream(), &start(), &checkpoint(1), &mut { write })
        .unwrap();
    assert_eq!((effects(&store), store.load(&stream())), (1, Ok(Some(checkpoint(1)))));

    let mut fails = |transaction: &mut Transaction<'_>| {
        write(transaction)?;
        Err(HandlerError::retry("not now"))
    };
    let failed = store.commit(&stream(), &checkpoint(1), &checkpoint(2), &mut fails);
    assert!(matches!(failed, Err(CommitError::Handler(HandlerError::Retry(_)))));
    assert_eq!((effects(&store), store.load(&stream())), (1, Ok(Some(checkpoint(1)))));
}

#[test]
fn effects_are_undone_if_the_checkpoint_cannot_be_written() {
    let file = File::new();
    file.sql("CREATE TABLE effect (n INTEGER)");
    let mut store = file.store();
    save(&mut store, start(), checkpoint(1)).unwrap();
    file.sql(
        "CREATE TRIGGER full BEFORE INSERT ON spacetime_sync_checkpoint \
         BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    );
    let mut write = |transaction: &mut Transaction<'_>| {
        transaction.execute("INSERT INTO effect VALUES (1)", [])?;
        Ok(())
    };
    let failed = store.commit(&stream(), &checkpoint(1), &checkpoint(2), &mut write);
    assert!(matches!(failed, Err(CommitError::Store(_))), "{failed:?}");
    let effects: i64 = store
        .connection
        .query_row("SELECT count(*) FROM effect", [], |row| row.get(0))
        .unwrap();
    assert_eq!((effects, store.load(&stream())), (0, Ok(Some(checkpoint(1)))));
}

#[test]
fn a_process_killed_within_a_transaction_leaves_nothing_of_it() {
    let file = File::new();
    file.sql("CREATE TABLE effect (n INTEGER)");
    let mut store = file.store();
    let folder = file.folder.path().to_owned();
    let copy = folder.join("as-found-after-the-crash");
    std::fs::create_dir(&copy).unwrap();
    let mut dies = |transaction: &mut Transaction<'_>| {
        transaction.execute("INSERT INTO effect VALUES (1)", [])?;
        // What is on disk at this moment is what a killed process leaves.
        for name in ["store.db", "store.db-wal"] {
            std::fs::copy(folder.join(name), copy.join(name)).map_err(HandlerError::stop)?;
        }
        Ok(())
    };
    store.commit(&stream(), &start(), &checkpoint(1), &mut dies).unwrap();
    let mut found = SqliteStore::open(copy.join("store.db")).unwrap();
    found.bind("lane").unwrap();
    assert_eq!(found.load(&stream()), Ok(None));
    let effects: i64 = found
        .connection
        .query_row("SELECT count(*) FROM effect", [], |row| row.get(0))
        .unwrap();
    assert_eq!(effects, 0);
}

#[test]
fn a_checkpoint_that_somebody_else_moved_is_not_overwritten() {
    let file = File::new();
    let (mut ours, mut theirs) = (file.store(), file.store());
    save(&mut ours, start(), checkpoint(5)).unwrap();
    save(&mut theirs, checkpoint(5), checkpoint(8)).unwrap();
    let refused = save(&mut ours, checkpoint(5), checkpoint(6));
    assert!(
        matches!(refused, Err(CommitError::Store(StoreError::Moved { expected, found, .. }))
        if expected.get() == 5 && found.get() == 8)
    );
    assert_eq!(ours.load(&stream()), Ok(Some(checkpoint(8))));
}

#[test]
fn a_checkpoint_moves_other_than_forward_only_when_starting_over() {
    let file = File::new();
    let mut store = file.store();
    save(&mut store, start(), checkpoint(9)).unwrap();
    for back in [checkpoint(4), checkpoint(9), start()] {
        let refused = save(&mut store, checkpoint(9), back).unwrap_err();
        assert!(
            matches!(refused, CommitError::Store(StoreError::Backwards { .. })),
            "{refused}"
        );
    }
    let begin = |store: &mut SqliteStore, from, at, effects: &mut Effects<'_, SqliteStore>| {
        store.start_over(&stream(), &from, &at, effects)
    };
    let mut refuse = |_: &mut Transaction<'_>| Err(HandlerError::stop("no"));
    assert!(begin(&mut store, checkpoint(9), checkpoint(4), &mut refuse).is_err());
    assert_eq!(store.load(&stream()).unwrap(), Some(checkpoint(9)));
    let mut clear = |transaction: &mut Transaction<'_>| {
        transaction.execute_batch("CREATE TABLE cleared (x INTEGER)")?;
        Ok(())
    };
    assert!(
        begin(&mut store, checkpoint(8), checkpoint(4), &mut clear).is_err(),
        "not the saved checkpoint"
    );
    begin(&mut store, checkpoint(9), checkpoint(4), &mut clear).unwrap();
    assert_eq!(store.load(&stream()).unwrap(), Some(checkpoint(4)));
    file.sql("SELECT x FROM cleared");
    save(&mut store, checkpoint(4), checkpoint(5)).unwrap();
}

#[test]
fn the_tables_of_an_application_stand_beside_ours() {
    let file = File::new();
    file.sql("CREATE TABLE document (id INTEGER PRIMARY KEY, text TEXT); INSERT INTO document VALUES (1, 'kept')");
    let mut store = file.store();
    save(&mut store, start(), checkpoint(1)).unwrap();
    let text: String = store
        .connection()
        .query_row("SELECT text FROM document", [], |row| row.get(0))
        .unwrap();
    assert_eq!(text, "kept");
}

#[test]
fn a_damaged_file_is_refused() {
    let file = File::new();
    std::fs::write(
        file.path(),
        b"this is not a database, and it is long enough to be looked at as one",
    )
    .unwrap();
    assert!(matches!(file.refusal("lane"), StoreError::Corrupt { .. }));

    let file = File::new();
    let mut store = file.store();
    save(&mut store, start(), checkpoint(1)).unwrap();
    drop(store);
    let mut bytes = std::fs::read(file.path()).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].fill(0xa5);
    std::fs::write(file.path(), bytes).unwrap();
    assert!(matches!(file.refusal("lane"), StoreError::Corrupt { .. }));
}

#[test]
fn a_table_with_our_name_and_another_shape_is_refused() {
    for shape in [
        "CREATE TABLE spacetime_sync_checkpoint (stream_id TEXT PRIMARY KEY, seq INTEGER, chain_hash BLOB)",
        "CREATE TABLE spacetime_sync_meta (id INTEGER PRIMARY KEY, format INTEGER); \
         INSERT INTO spacetime_sync_meta VALUES (0, 1)",
        "CREATE TABLE spacetime_sync_meta (something TEXT)",
    ] {
        let file = File::new();
        file.sql(shape);
        assert!(matches!(file.refusal("lane"), StoreError::Foreign { .. }), "{shape}");
    }
    let file = File::new();
    drop(file.store());
    file.sql("DELETE FROM spacetime_sync_meta");
    assert!(matches!(file.refusal("lane"), StoreError::Foreign { .. }));
    let file = File::new();
    drop(file.store());
    file.sql("UPDATE spacetime_sync_meta SET application = 'something else'");
    assert!(matches!(file.refusal("lane"), StoreError::Foreign { .. }));
    let file = File::new();
    drop(file.store());
    file.sql("DROP TABLE spacetime_sync_checkpoint");
    assert!(matches!(file.refusal("lane"), StoreError::Foreign { .. }));
}

#[test]
fn a_newer_format_is_refused_whatever_its_shape() {
    let file = File::new();
    file.sql(
        "CREATE TABLE spacetime_sync_meta (id INTEGER, format INTEGER, other TEXT); \
         INSERT INTO spacetime_sync_meta VALUES (0, 3, 'x')",
    );
    assert!(matches!(
        file.refusal("lane"),
        StoreError::NewerFormat {
            expected: 2,
            found: 3,
            ..
        }
    ));
}

#[test]
fn the_checkpoints_of_another_database_are_refused() {
    let file = File::new();
    let mut store = file.store();
    save(&mut store, start(), checkpoint(1)).unwrap();
    drop(store);
    let refused = file.refusal("other");
    assert!(matches!(&refused, StoreError::OtherDatabase { expected, found, .. }
        if expected == "other" && found == "lane"));
    assert_eq!(file.store().load(&stream()), Ok(Some(checkpoint(1))));
}

#[test]
fn an_invalid_checkpoint_is_refused() {
    for wrong in ["seq = -1", "chain_hash = x'00'"] {
        let file = File::new();
        let mut store = file.store();
        save(&mut store, start(), checkpoint(1)).unwrap();
        file.sql(&format!("UPDATE spacetime_sync_checkpoint SET {wrong}"));
        assert!(
            matches!(store.load(&stream()), Err(StoreError::BadCheckpoint { .. })),
            "{wrong}"
        );
        assert!(matches!(
            save(&mut store, checkpoint(1), checkpoint(2)),
            Err(CommitError::Store(StoreError::BadCheckpoint { .. }))
        ));
        // Opening a store on it does not even change the mode of the file.
        drop(store);
        file.sql("PRAGMA journal_mode = DELETE");
        assert!(
            matches!(file.refusal("lane"), StoreError::BadCheckpoint { .. }),
            "{wrong}"
        );
    }
}

#[test]
fn a_path_that_cannot_be_opened_is_reported() {
    let file = File::new();
    let refused = SqliteStore::open(file.folder.path().join("missing/store.db")).unwrap_err();
    assert!(matches!(refused, StoreError::Open { .. }), "{refused}");
}

#[test]
fn a_checkpoint_with_a_flipped_bit_is_refused_whatever_the_bit() {
    for wrong in [
        "seq = 2",
        "chain_hash = x'0000000000000000000000000000000000000000000000000000000000000001'",
        "stream_id = 'r'",
        "stream_id = 's s'",
        "checksum = x''",
    ] {
        let file = File::new();
        let mut store = file.store();
        save(&mut store, start(), checkpoint(1)).unwrap();
        drop(store);
        file.sql(&format!(
            "UPDATE spacetime_sync_checkpoint SET {wrong}; PRAGMA journal_mode = DELETE"
        ));
        let refused = file.refusal("lane");
        assert!(
            matches!(refused, StoreError::BadCheckpoint { .. } | StoreError::Corrupt { .. }),
            "{wrong}: {refused}"
        );
    }
}

#[test]
fn a_file_without_checksums_is_upgraded_with_all_its_checkpoints() {
    let file = File::new();
    let made = |checkpoints: &str| {
        format!(
            "{CREATE_META}; {CREATE_CHECKPOINT_WITHOUT_CHECKSUMS}; \
             INSERT INTO spacetime_sync_meta VALUES (0, 'spacetime-sync', 1, 'lane'); \
             INSERT INTO spacetime_sync_checkpoint VALUES {checkpoints}"
        )
    };
    let nine = "09".repeat(32);
    file.sql(&made(&format!("('s', 9, x'{nine}'), ('t', 9, x'{nine}')")));
    assert!(matches!(file.refusal("other"), StoreError::OtherDatabase { .. }));
    let mut store = file.store();
    for stream in ["s", "t"] {
        assert_eq!(
            store.load(&StreamId::new(stream).unwrap()),
            Ok(Some(checkpoint(9))),
            "{stream}"
        );
    }
    save(&mut store, checkpoint(9), checkpoint(10)).unwrap();
    drop(store);
    assert_eq!(file.store().load(&stream()), Ok(Some(checkpoint(10))));

    let file = File::new();
    file.sql(&made("('s', -1, x'00')"));
    assert!(matches!(file.refusal("lane"), StoreError::BadCheckpoint { .. }));
}

#[test]
fn an_operators_tool_reads_checkpoints_from_outside() {
    use spacetime_sync_proto::checkpoint_table::{SELECT, SELECT_REACHED};
    let file = File::new();
    save(&mut file.store(), start(), checkpoint(7)).unwrap();
    let outside = Connection::open(file.path()).unwrap();
    let found = outside.query_row(SELECT, ["s"], |row| Ok((row.get(0)?, row.get(1)?)));
    assert_eq!(found.unwrap(), (7, vec![7; 32]));
    for (seq, expected) in [(7, true), (8, false)] {
        let reached = outside.query_row(SELECT_REACHED, params!["s", seq], |row| row.get(0));
        assert_eq!(reached, Ok(expected), "seq {seq}");
    }
}
