//! Checkpoints in a SQLite file, which may be the application's own: our tables live beside its tables.

mod documents;

use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use spacetime_sync_proto::{ChainHash, PayloadHash, Position, Seq, StreamId};

use super::{CheckpointStore, CommitError, DocumentStore, Effects, StoreError};

/// The format of the tables. Raised when their shape or meaning changes.
const FORMAT: u32 = 2;
/// The format before checksums. The first client that starts with such a file upgrades it.
const FORMAT_WITHOUT_CHECKSUMS: u32 = 1;
const META: &str = "spacetime_sync_meta";
const CHECKPOINT: &str = spacetime_sync_proto::checkpoint_table::TABLE;
/// How long a statement waits for another connection's lock.
const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

// SQLite keeps these texts verbatim: a table with another text was not made here.
const CREATE_META: &str = "CREATE TABLE spacetime_sync_meta (id INTEGER PRIMARY KEY CHECK (id = 0), \
     application TEXT NOT NULL, format INTEGER NOT NULL, database TEXT NOT NULL) STRICT";
const CREATE_CHECKPOINT: &str = "CREATE TABLE spacetime_sync_checkpoint (stream_id TEXT PRIMARY KEY, \
     seq INTEGER NOT NULL, chain_hash BLOB NOT NULL, checksum BLOB NOT NULL) STRICT, WITHOUT ROWID";
const CREATE_CHECKPOINT_WITHOUT_CHECKSUMS: &str = "CREATE TABLE spacetime_sync_checkpoint (stream_id TEXT PRIMARY KEY, \
     seq INTEGER NOT NULL, chain_hash BLOB NOT NULL) STRICT, WITHOUT ROWID";
const APPLICATION: &str = "spacetime-sync";

/// The default store. When a client starts with it, the store puts the file into WAL mode with `synchronous = NORMAL`.
/// A crash of the process then loses nothing. A power failure may lose the last transactions, but checkpoint and
/// effects are lost together, and the events come again. An application that must not see its effects undone sets
/// `PRAGMA synchronous = FULL` through [`SqliteStore::connection`].
#[derive(Debug)]
pub struct SqliteStore {
    path: String,
    connection: Connection,
    /// How many bytes of contents one transaction copies.
    pub(crate) copied_bytes: i64,
}

impl SqliteStore {
    /// Opens or creates a file. The first client that starts with it creates our tables; until then nothing in an
    /// existing file changes.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let shown = path.display().to_string();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(|error| StoreError::Open {
            path: shown.clone(),
            detail: error.to_string(),
        })?;
        let mut store = Self {
            path: shown,
            connection,
            copied_bytes: documents::COPIED_BYTES,
        };
        store
            .connection
            .busy_timeout(BUSY_TIMEOUT)
            .map_err(|error| store.failed(error))?;
        store.inspect()?;
        Ok(store)
    }

    /// The connection, for the application to create its own tables before it starts the client.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    fn prepare(&mut self) -> rusqlite::Result<()> {
        let mode: String = self
            .connection
            .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            tracing::warn!(
                path = self.path,
                mode,
                "cannot put the file into WAL mode, saving will be slower"
            );
        }
        self.connection.pragma_update(None, "synchronous", "NORMAL")
    }

    fn create(&mut self, database: &str) -> rusqlite::Result<()> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(CREATE_META)?;
        transaction.execute_batch(CREATE_CHECKPOINT)?;
        transaction.execute(
            "INSERT INTO spacetime_sync_meta (id, application, format, database) VALUES (0, ?1, ?2, ?3)",
            params![APPLICATION, FORMAT, database],
        )?;
        transaction.commit()
    }

    /// Gives every checkpoint its checksum: all or none.
    fn take_over(&mut self) -> Result<(), StoreError> {
        let path = self.path.clone();
        let failed = |error| failed(&path, error);
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let kept = rows(&path, &transaction, FORMAT_WITHOUT_CHECKSUMS)?;
        let make = || {
            transaction.execute_batch("DROP TABLE spacetime_sync_checkpoint")?;
            transaction.execute_batch(CREATE_CHECKPOINT)?;
            kept.iter()
                .try_for_each(|(stream_id, at)| save(&transaction, stream_id, at))?;
            transaction
                .execute("UPDATE spacetime_sync_meta SET format = ?1", [FORMAT])
                .map(drop)
        };
        make().and_then(|()| transaction.commit()).map_err(failed)
    }

    /// Reads and checks the client's own tables. Returns the database and the format that they name. Never writes.
    fn inspect(&mut self) -> Result<Option<(String, u32)>, StoreError> {
        let (meta, checkpoint) = (self.shape(META)?, self.shape(CHECKPOINT)?);
        let Some(meta) = meta else {
            return match checkpoint {
                None => Ok(None),
                Some(_) => Err(self.foreign(CHECKPOINT, format!("the table {META} is missing"))),
            };
        };
        // A newer format may have other columns, so only its number is read.
        let format: u32 = self
            .connection
            .query_row("SELECT format FROM spacetime_sync_meta WHERE id = 0", [], |row| {
                row.get(0)
            })
            .map_err(|error| self.unreadable(META, error))?;
        if format > FORMAT {
            return Err(StoreError::NewerFormat {
                path: self.path.clone(),
                expected: FORMAT,
                found: format,
            });
        }
        if meta != CREATE_META {
            return Err(self.foreign(META, format!("it was created with {meta:?}")));
        }
        let expected = match format {
            FORMAT_WITHOUT_CHECKSUMS => CREATE_CHECKPOINT_WITHOUT_CHECKSUMS,
            _ => CREATE_CHECKPOINT,
        };
        match checkpoint {
            None => return Err(self.foreign(META, format!("the table {CHECKPOINT} is missing"))),
            Some(found) if found != expected => {
                return Err(self.foreign(CHECKPOINT, format!("it was created with {found:?}")));
            }
            Some(_) => {}
        }
        let (application, database): (String, String) = self
            .connection
            .query_row(
                "SELECT application, database FROM spacetime_sync_meta WHERE id = 0",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .map_err(|error| self.unreadable(META, error))?;
        if application != APPLICATION || !(FORMAT_WITHOUT_CHECKSUMS..=FORMAT).contains(&format) {
            return Err(self.foreign(META, format!("it belongs to {application:?}, format {format}")));
        }
        let check: String = self
            .connection
            .query_row(&format!("PRAGMA quick_check({CHECKPOINT})"), [], |row| row.get(0))
            .map_err(|error| self.failed(error))?;
        if check != "ok" {
            return Err(StoreError::Corrupt {
                path: self.path.clone(),
                detail: check,
            });
        }
        // Checks every checkpoint before anything is written, not only those of the streams that are followed.
        rows(&self.path, &self.connection, format)?;
        Ok(Some((database, format)))
    }

    /// The statement that created a table, if the table exists.
    fn shape(&self, table: &str) -> Result<Option<String>, StoreError> {
        self.connection
            .query_row("SELECT sql FROM sqlite_schema WHERE name = ?1", [table], |row| {
                row.get(0)
            })
            .optional()
            .map_err(|error| self.failed(error))
    }

    fn foreign(&self, table: &'static str, detail: String) -> StoreError {
        StoreError::Foreign {
            path: self.path.clone(),
            table,
            detail,
        }
    }

    /// A table that cannot be read the way the client writes it is damaged, or another program made it.
    fn unreadable(&self, table: &'static str, error: rusqlite::Error) -> StoreError {
        match error {
            rusqlite::Error::QueryReturnedNoRows => self.foreign(table, "its row is missing".to_owned()),
            rusqlite::Error::SqliteFailure(failure, _) if failure.code != ErrorCode::Unknown => self.failed(error),
            error => self.foreign(table, error.to_string()),
        }
    }

    fn failed(&self, error: rusqlite::Error) -> StoreError {
        failed(&self.path, error)
    }
}

fn failed(path: &str, error: rusqlite::Error) -> StoreError {
    let (path, detail) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt { path, detail },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy { path, detail },
        Some(ErrorCode::DiskFull) => StoreError::Full { path, detail },
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            StoreError::Open { path, detail }
        }
        _ => StoreError::Failed { path, detail },
    }
}

/// All checkpoints. A damaged one is an error, even if only its name is damaged: the store would not find it, and its
/// stream would be applied again from the beginning.
fn rows(path: &str, connection: &Connection, format: u32) -> Result<Vec<(StreamId, Position)>, StoreError> {
    let failed = |error| failed(path, error);
    let columns = match format {
        FORMAT_WITHOUT_CHECKSUMS => "stream_id, seq, chain_hash, NULL",
        _ => "stream_id, seq, chain_hash, checksum",
    };
    let mut select = connection
        .prepare(&format!("SELECT {columns} FROM spacetime_sync_checkpoint"))
        .map_err(failed)?;
    let found = select
        .query_map([], |row| {
            Ok((row.get::<_, String>(0)?, (row.get(1)?, row.get(2)?, row.get(3)?)))
        })
        .map_err(failed)?;
    let mut rows = Vec::new();
    for row in found {
        let (name, (seq, chain_hash, checksum)) = row.map_err(failed)?;
        let stream_id = StreamId::new(&name).map_err(|invalid| StoreError::Corrupt {
            path: path.to_owned(),
            detail: format!("a checkpoint has an invalid stream id: {invalid}"),
        })?;
        let at = to_checkpoint(path, &stream_id, seq, chain_hash, checksum)?;
        rows.push((stream_id, at));
    }
    Ok(rows)
}

fn read(path: &str, connection: &Connection, stream_id: &StreamId) -> Result<Option<Position>, StoreError> {
    let found: Option<(i64, Vec<u8>, Vec<u8>)> = connection
        .prepare_cached("SELECT seq, chain_hash, checksum FROM spacetime_sync_checkpoint WHERE stream_id = ?1")
        .and_then(|mut select| {
            select
                .query_row([stream_id.as_str()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()
        })
        .map_err(|error| failed(path, error))?;
    let Some((seq, chain_hash, checksum)) = found else {
        return Ok(None);
    };
    to_checkpoint(path, stream_id, seq, chain_hash, Some(checksum)).map(Some)
}

/// `checksum` is `None` in a file of the format without checksums.
fn to_checkpoint(
    path: &str,
    stream_id: &StreamId,
    seq: i64,
    chain_hash: Vec<u8>,
    checksum: Option<Vec<u8>>,
) -> Result<Position, StoreError> {
    let bad = |detail: String| StoreError::BadCheckpoint {
        path: path.to_owned(),
        stream_id: stream_id.clone(),
        detail,
    };
    let length = chain_hash.len();
    let at = Position {
        seq: Seq::from_sql(seq).ok_or_else(|| bad(format!("seq {seq} is negative")))?,
        chain: ChainHash::from_slice(&chain_hash)
            .ok_or_else(|| bad(format!("its chain hash has {length} bytes, expected 32")))?,
    };
    match checksum {
        Some(found) if found != sum(stream_id, &at) => Err(bad(format!("its checksum does not match seq {seq}"))),
        Some(_) | None => Ok(at),
    }
}

/// SQLite does not notice a flipped bit within a row. The checksum does.
fn sum(stream_id: &StreamId, at: &Position) -> [u8; 32] {
    let bytes = [
        &at.seq.get().to_be_bytes()[..],
        at.chain.as_bytes(),
        stream_id.as_str().as_bytes(),
    ]
    .concat();
    *PayloadHash::of(&bytes).as_bytes()
}

/// Refuses a checkpoint that is not the saved one.
fn expect_at(path: &str, connection: &Connection, stream_id: &StreamId, at: &Position) -> Result<(), StoreError> {
    let kept = read(path, connection, stream_id)?.unwrap_or_else(|| Position::start(stream_id));
    if kept == *at {
        return Ok(());
    }
    Err(StoreError::Moved {
        path: path.to_owned(),
        stream_id: stream_id.clone(),
        expected: at.seq,
        found: kept.seq,
    })
}

fn save(transaction: &Transaction<'_>, stream_id: &StreamId, at: &Position) -> rusqlite::Result<()> {
    let mut save = transaction.prepare_cached(
        "INSERT INTO spacetime_sync_checkpoint (stream_id, seq, chain_hash, checksum) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (stream_id) DO UPDATE \
         SET seq = excluded.seq, chain_hash = excluded.chain_hash, checksum = excluded.checksum",
    )?;
    let (seq, sum) = (at.seq.to_sql(), sum(stream_id, at));
    save.execute(params![stream_id.as_str(), seq, at.chain.as_bytes(), sum])
        .map(drop)
}

impl CheckpointStore for SqliteStore {
    type Transaction<'t> = Transaction<'t>;

    fn bind(&mut self, database: &str) -> Result<(), StoreError> {
        let found = self.inspect()?;
        if let Some((found, _)) = found.as_ref().filter(|(found, _)| found != database) {
            return Err(StoreError::OtherDatabase {
                path: self.path.clone(),
                expected: database.to_owned(),
                found: found.clone(),
            });
        }
        // The file's mode changes last: a refused file stays as it was.
        match found {
            None => self.create(database).map_err(|error| self.failed(error))?,
            Some((_, FORMAT_WITHOUT_CHECKSUMS)) => self.take_over()?,
            Some(_) => {}
        }
        self.prepare().map_err(|error| self.failed(error))
    }

    fn load(&mut self, stream_id: &StreamId) -> Result<Option<Position>, StoreError> {
        read(&self.path, &self.connection, stream_id)
    }

    fn commit(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        to: &Position,
        effects: &mut Effects<'_, Self>,
    ) -> Result<(), CommitError> {
        if to.seq <= from.seq {
            return Err(CommitError::Store(StoreError::Backwards {
                path: self.path.clone(),
                stream_id: stream_id.clone(),
                from: from.seq,
                to: to.seq,
            }));
        }
        self.save(stream_id, from, to, effects)
    }

    fn start_over(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        at: &Position,
        effects: &mut Effects<'_, Self>,
    ) -> Result<(), CommitError> {
        self.save(stream_id, from, at, effects)
    }

    fn documents(&mut self) -> Option<&mut dyn DocumentStore> {
        Some(self)
    }
}

impl SqliteStore {
    /// Saves effects and checkpoint in one transaction.
    fn save(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        to: &Position,
        effects: &mut Effects<'_, Self>,
    ) -> Result<(), CommitError> {
        let path = &self.path;
        let broken = |error| CommitError::Store(failed(path, error));
        let mut transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(broken)?;
        expect_at(path, &transaction, stream_id, from)?;
        effects(&mut transaction).map_err(CommitError::Handler)?;
        save(&transaction, stream_id, to).map_err(broken)?;
        transaction.commit().map_err(broken)
    }
}

#[cfg(test)]
mod tests;
