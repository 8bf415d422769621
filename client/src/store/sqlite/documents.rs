//! Documents in the SQLite file. A view is one set of a stream's documents: the one that is shown; one that is kept aside while its parts
//! come; one that has all parts and lacks what has changed meanwhile, until the events that tell of it are applied; or one that is
//! nobody's any more, and leaves bit by bit. So to begin anew moves one word, however many documents there are.
//!
//! An application may read `spacetime_sync_documents` with SQL of its own: `stream_id`, `doc_key`, `doc_version`, `seq`, `content`.

use std::collections::HashSet;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use spacetime_sync_proto::document::{Document, DocumentState, Pointer};
use spacetime_sync_proto::{PayloadHash, Position, Seq, StreamId};

use super::{BUSY_TIMEOUT, SqliteStore, expect_at, failed, read, save};
use crate::store::{Committed, DocumentReader, DocumentStore, StoreError, StoredDocument};

/// How many documents a sweep deletes in one transaction, and how many bytes of contents, but for the last of them.
const SWEPT: usize = 1_000;
const SWEPT_BYTES: i64 = 16 * 1024 * 1024;
/// How many bytes of contents that are here already one transaction copies, but for the first of them.
pub(super) const COPIED_BYTES: i64 = 16 * 1024 * 1024;

const VIEW: &str = "spacetime_sync_view";
const DOCUMENT: &str = "spacetime_sync_document";
/// `seq` is up to where events are in it, and `whole_at` the seq from which on nothing is missing.
const CREATE_VIEW: &str = "CREATE TABLE spacetime_sync_view (id INTEGER PRIMARY KEY AUTOINCREMENT, \
     stream_id TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN ('shown', 'next', 'aside', 'old')), \
     seq INTEGER NOT NULL, whole_at INTEGER NOT NULL) STRICT";
const CREATE_DOCUMENT: &str = "CREATE TABLE spacetime_sync_document (view INTEGER NOT NULL, doc_key TEXT NOT NULL, \
     doc_version INTEGER NOT NULL, seq INTEGER NOT NULL, content TEXT, payload_hash BLOB NOT NULL, \
     payload_bytes INTEGER NOT NULL, PRIMARY KEY (view, doc_key)) STRICT, WITHOUT ROWID";
/// What goes with the two tables.
const CREATE_REST: &str = "
    CREATE INDEX spacetime_sync_view_of ON spacetime_sync_view (stream_id, state);
    CREATE INDEX spacetime_sync_document_pointer ON spacetime_sync_document (view, doc_key) WHERE content IS NULL;
    CREATE VIEW spacetime_sync_documents AS SELECT v.stream_id, d.doc_key, d.doc_version, d.seq, d.content
      FROM spacetime_sync_view v JOIN spacetime_sync_document d ON d.view = v.id WHERE v.state = 'shown';";

/// What readers see.
const SHOWN: &str = "shown";
/// What is shown next: events are applied to it.
const NEXT: &str = "next";
/// Parts of what is to be shown.
const ASIDE: &str = "aside";
/// Nobody's any more.
const OLD: &str = "old";

impl SqliteStore {
    /// Makes the tables, or checks that they were made here.
    fn prepare_documents(&mut self) -> Result<(), StoreError> {
        let found =
            [(VIEW, CREATE_VIEW), (DOCUMENT, CREATE_DOCUMENT)].map(|(table, made)| (table, made, self.shape(table)));
        let mut missing = 0;
        for (table, made, found) in found {
            match found? {
                None => missing += 1,
                Some(found) if found == made => {}
                Some(found) => return Err(self.foreign(table, format!("it was created with {found:?}"))),
            }
        }
        match missing {
            0 => Ok(()),
            1 => Err(self.foreign(DOCUMENT, format!("one of the tables {VIEW} and {DOCUMENT} is missing"))),
            _ => self.within(None, |transaction| {
                transaction.execute_batch(CREATE_VIEW)?;
                transaction.execute_batch(CREATE_DOCUMENT)?;
                transaction.execute_batch(CREATE_REST)
            }),
        }
    }

    /// Does some work in one transaction, and moves a stream's checkpoint with it: all of it or nothing.
    fn within<T>(
        &mut self,
        moves: Option<(&StreamId, &Position, &Position)>,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let path = &self.path;
        let failed = |error| failed(path, error);
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        if let Some((stream_id, from, _)) = moves {
            expect_at(path, &transaction, stream_id, from)?;
        }
        let result = work(&transaction).map_err(failed)?;
        if let Some((stream_id, _, to)) = moves {
            save(&transaction, stream_id, to).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        Ok(result)
    }
}

impl DocumentStore for SqliteStore {
    fn open_documents(&mut self, stream_id: &StreamId) -> Result<Option<Position>, StoreError> {
        self.prepare_documents()?;
        let checkpoint = read(&self.path, &self.connection, stream_id)?;
        self.within(None, |transaction| {
            retire(transaction, stream_id, ASIDE)?;
            // Somebody who knows nothing of views may have moved the checkpoint meanwhile.
            let holds = |view: &View| checkpoint.is_some_and(|at| at.seq.to_sql() == view.seq);
            let current = current(transaction, stream_id)?.filter(holds);
            if current.is_none() {
                retire(transaction, stream_id, NEXT)?;
            }
            Ok(checkpoint.filter(|_| current.is_some()))
        })
    }

    fn commit_documents(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        to: &Position,
        documents: &[Document],
    ) -> Result<Committed, StoreError> {
        if to.seq <= from.seq {
            return Err(StoreError::Backwards {
                path: self.path.clone(),
                stream_id: stream_id.clone(),
                from: from.seq,
                to: to.seq,
            });
        }
        self.within(Some((stream_id, from, to)), |transaction| {
            let view = current(transaction, stream_id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            // Of several versions of a document only the newest is written.
            let mut written = HashSet::new();
            let newest = documents
                .iter()
                .rev()
                .filter(|document| written.insert(document.key.as_str()));
            put(transaction, view.id, None, newest)?;
            advance(transaction, view.id, to.seq)?;
            let is_next = view.state == NEXT;
            if is_next && to.seq.to_sql() >= view.whole_at {
                show(transaction, stream_id, view.id)?;
                return Ok(Committed::BecameShown);
            }
            Ok(if is_next { Committed::NotShown } else { Committed::Shown })
        })
    }

    fn stage_documents(
        &mut self,
        stream_id: &StreamId,
        is_first: bool,
        documents: &[Document],
    ) -> Result<usize, StoreError> {
        let most = self.copied_bytes;
        self.within(None, |transaction| {
            if is_first {
                retire(transaction, stream_id, ASIDE)?;
                let mut add = transaction.prepare_cached(
                    "INSERT INTO spacetime_sync_view (stream_id, state, seq, whole_at) VALUES (?1, ?2, 0, 0)",
                )?;
                add.execute(params![stream_id.as_str(), ASIDE])?;
            }
            let aside = view_of(transaction, stream_id, ASIDE)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            let shown = view_of(transaction, stream_id, SHOWN)?;
            put(
                transaction,
                aside.id,
                shown.map(|shown| (shown.id, most)),
                documents.iter(),
            )
        })
    }

    fn adopt_documents(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        at: &Position,
        whole_at: Seq,
    ) -> Result<bool, StoreError> {
        self.within(Some((stream_id, from, at)), |transaction| {
            let aside = view_of(transaction, stream_id, ASIDE)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            retire(transaction, stream_id, NEXT)?;
            transaction
                .prepare_cached("UPDATE spacetime_sync_view SET state = ?2, seq = ?3, whole_at = ?4 WHERE id = ?1")?
                .execute(params![aside.id, NEXT, at.seq.to_sql(), whole_at.to_sql()])?;
            let is_whole = at.seq >= whole_at;
            if is_whole {
                show(transaction, stream_id, aside.id)?;
            }
            Ok(is_whole)
        })
    }

    fn forget_documents(&mut self, stream_id: &StreamId) -> Result<bool, StoreError> {
        if self.shape(VIEW)?.is_none() {
            return Ok(false);
        }
        self.within(None, |transaction| {
            retire(transaction, stream_id, ASIDE)?;
            let Some(view) = current(transaction, stream_id)? else {
                return Ok(false);
            };
            retire(transaction, stream_id, NEXT)?;
            retire(transaction, stream_id, SHOWN)?;
            let saved: Option<i64> = transaction
                .query_row(
                    "SELECT seq FROM spacetime_sync_checkpoint WHERE stream_id = ?1",
                    [stream_id.as_str()],
                    |row| row.get(0),
                )
                .optional()?;
            // Somebody who knows nothing of views has followed its events meanwhile, and goes on with them.
            if saved != Some(view.seq) {
                return Ok(false);
            }
            transaction.execute(
                "DELETE FROM spacetime_sync_checkpoint WHERE stream_id = ?1",
                [stream_id.as_str()],
            )?;
            Ok(true)
        })
    }

    fn sweep_documents(&mut self) -> Result<bool, StoreError> {
        if self.shape(VIEW)?.is_none() {
            return Ok(false);
        }
        let old = self
            .connection
            .prepare_cached("SELECT min(id) FROM spacetime_sync_view WHERE state = 'old'")
            .and_then(|mut select| select.query_row([], |row| row.get::<_, Option<i64>>(0)));
        let Some(old) = old.map_err(|error| failed(&self.path, error))? else {
            return Ok(false);
        };
        self.within(None, |transaction| {
            let mut select = transaction.prepare_cached(
                "SELECT doc_key, coalesce(octet_length(content), 0) FROM spacetime_sync_document \
                 WHERE view = ?1 ORDER BY doc_key LIMIT ?2",
            )?;
            let mut rows = select.query(params![old, SWEPT])?;
            let (mut last, mut bytes) = (None, 0);
            while bytes < SWEPT_BYTES
                && let Some(row) = rows.next()?
            {
                last = Some(row.get::<_, String>(0)?);
                bytes += row.get::<_, i64>(1)?;
            }
            let sweep = match last {
                Some(last) => transaction
                    .prepare_cached("DELETE FROM spacetime_sync_document WHERE view = ?1 AND doc_key <= ?2")?
                    .execute(params![old, last]),
                None => transaction.execute("DELETE FROM spacetime_sync_view WHERE id = ?1", [old]),
            };
            sweep.map(|_| true)
        })
    }

    fn next_pointer(
        &mut self,
        stream_id: &StreamId,
        after: Option<&str>,
    ) -> Result<Option<(String, Pointer)>, StoreError> {
        let find = || {
            let Some(view) = current(&self.connection, stream_id)? else {
                return Ok(None);
            };
            self.connection
                .prepare_cached(
                    "SELECT doc_key, payload_hash, payload_bytes FROM spacetime_sync_document \
                     INDEXED BY spacetime_sync_document_pointer \
                     WHERE view = ?1 AND content IS NULL AND doc_key > ?2 ORDER BY doc_key LIMIT 1",
                )?
                .query_row(params![view.id, after.unwrap_or_default()], |row| {
                    let pointer = Pointer {
                        hash: hash(row, 1)?,
                        bytes: row.get::<_, i64>(2)?.cast_unsigned(),
                    };
                    Ok((row.get(0)?, pointer))
                })
                .optional()
        };
        find().map_err(|error| failed(&self.path, error))
    }

    fn fill_document(
        &mut self,
        stream_id: &StreamId,
        key: &str,
        hash: PayloadHash,
        content: &str,
    ) -> Result<bool, StoreError> {
        self.within(None, |transaction| {
            let Some(view) = current(transaction, stream_id)? else {
                return Ok(false);
            };
            let mut fill = transaction.prepare_cached(
                "UPDATE spacetime_sync_document SET content = ?4 \
                 WHERE view = ?1 AND doc_key = ?2 AND payload_hash = ?3 AND content IS NULL",
            )?;
            let filled = fill.execute(params![view.id, key, hash.as_bytes(), content])?;
            Ok(filled > 0 && view.state == SHOWN)
        })
    }

    fn document_reader(&self) -> Result<Box<dyn DocumentReader>, StoreError> {
        let failed = |error| failed(&self.path, error);
        // A database in memory is its connection's alone.
        let path = self.connection.path().filter(|path| !path.is_empty());
        let path = path.ok_or(StoreError::NoDocuments)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        Ok(Box::new(SqliteReader {
            path: self.path.clone(),
            connection,
        }))
    }
}

struct View {
    id: i64,
    state: String,
    seq: i64,
    whole_at: i64,
}

/// A stream's view in this state.
fn view_of(connection: &Connection, stream_id: &StreamId, state: &str) -> rusqlite::Result<Option<View>> {
    connection
        .prepare_cached("SELECT id, state, seq, whole_at FROM spacetime_sync_view WHERE stream_id = ?1 AND state = ?2")?
        .query_row(params![stream_id.as_str(), state], |row| {
            Ok(View {
                id: row.get(0)?,
                state: row.get(1)?,
                seq: row.get(2)?,
                whole_at: row.get(3)?,
            })
        })
        .optional()
}

/// The view that the checkpoint is of, and that events are applied to.
fn current(connection: &Connection, stream_id: &StreamId) -> rusqlite::Result<Option<View>> {
    match view_of(connection, stream_id, NEXT)? {
        Some(next) => Ok(Some(next)),
        None => view_of(connection, stream_id, SHOWN),
    }
}

/// What a stream has in this state is nobody's any more.
fn retire(transaction: &Transaction<'_>, stream_id: &StreamId, state: &str) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE spacetime_sync_view SET state = ?3 WHERE stream_id = ?1 AND state = ?2")?
        .execute(params![stream_id.as_str(), state, OLD])
        .map(drop)
}

/// Shows a view in the place of the one that is shown.
fn show(transaction: &Transaction<'_>, stream_id: &StreamId, view: i64) -> rusqlite::Result<()> {
    retire(transaction, stream_id, SHOWN)?;
    transaction
        .prepare_cached("UPDATE spacetime_sync_view SET state = ?2 WHERE id = ?1")?
        .execute(params![view, SHOWN])
        .map(drop)
}

fn advance(transaction: &Transaction<'_>, view: i64, to: Seq) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE spacetime_sync_view SET seq = ?2 WHERE id = ?1")?
        .execute(params![view, to.to_sql()])
        .map(drop)
}

/// Writes documents into a view, and returns how many. A deleted one leaves the view. A pointer has its content at once if that is there
/// already, or in another view, of which only so many bytes are copied: what comes after them is not written.
fn put<'a>(
    transaction: &Transaction<'_>,
    view: i64,
    known: Option<(i64, i64)>,
    documents: impl Iterator<Item = &'a Document>,
) -> rusqlite::Result<usize> {
    let mut put = transaction.prepare_cached(
        "INSERT INTO spacetime_sync_document AS d (view, doc_key, doc_version, seq, content, payload_hash, payload_bytes) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
         ON CONFLICT (view, doc_key) DO UPDATE SET doc_version = excluded.doc_version, seq = excluded.seq, \
         content = coalesce(excluded.content, CASE d.payload_hash WHEN excluded.payload_hash THEN d.content END), \
         payload_hash = excluded.payload_hash, payload_bytes = excluded.payload_bytes",
    )?;
    let mut size = transaction.prepare_cached(
        "SELECT octet_length(content) FROM spacetime_sync_document \
         WHERE view = ?1 AND doc_key = ?2 AND payload_hash = ?3 AND content IS NOT NULL",
    )?;
    let mut copy = transaction.prepare_cached(
        "UPDATE spacetime_sync_document SET content = \
         (SELECT content FROM spacetime_sync_document WHERE view = ?3 AND doc_key = ?2) WHERE view = ?1 AND doc_key = ?2",
    )?;
    let mut delete =
        transaction.prepare_cached("DELETE FROM spacetime_sync_document WHERE view = ?1 AND doc_key = ?2")?;
    let (known, most) = known.unzip();
    let (mut written, mut copied) = (0, 0);
    for document in documents {
        let (key, seq) = (document.key.as_str(), document.seq.to_sql());
        let version = i64::try_from(document.version).unwrap_or(i64::MAX);
        match &document.state {
            DocumentState::Content { json, hash } => {
                put.execute(params![view, key, version, seq, json, hash.as_bytes(), json.len()])?;
            }
            DocumentState::Pointer(Pointer { hash, bytes }) => {
                let held: Option<i64> = size
                    .query_row(params![known, key, hash.as_bytes()], |row| row.get(0))
                    .optional()?;
                if let Some(held) = held {
                    if copied > 0 && Some(copied + held) > most {
                        break;
                    }
                    copied += held;
                }
                let bytes = i64::try_from(*bytes).unwrap_or(i64::MAX);
                put.execute(params![view, key, version, seq, None::<&str>, hash.as_bytes(), bytes])?;
                if held.is_some() {
                    copy.execute(params![view, key, known])?;
                }
            }
            DocumentState::Deleted => {
                delete.execute(params![view, key])?;
            }
        }
        written += 1;
    }
    Ok(written)
}

fn hash(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<PayloadHash> {
    let bytes: Vec<u8> = row.get(column)?;
    let length = bytes.len();
    PayloadHash::from_slice(&bytes).ok_or_else(|| {
        let why = format!("a hash has {length} bytes, expected 32").into();
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, why)
    })
}

struct SqliteReader {
    path: String,
    connection: Connection,
}

impl SqliteReader {
    /// The documents of the shown view for which `rest` holds. One statement sees one moment.
    fn select(&self, rest: &str, params: impl rusqlite::Params) -> Result<Vec<StoredDocument>, StoreError> {
        let text = format!(
            "SELECT doc_key, doc_version, seq, content, payload_hash FROM spacetime_sync_document \
             WHERE view = (SELECT id FROM spacetime_sync_view WHERE stream_id = ?1 AND state = 'shown') AND {rest}"
        );
        let select = || {
            let mut select = self.connection.prepare_cached(&text)?;
            let rows = select.query_map(params, |row| {
                Ok(StoredDocument {
                    key: row.get(0)?,
                    version: row.get::<_, i64>(1)?.cast_unsigned(),
                    seq: Seq::from_sql(row.get(2)?).unwrap_or(Seq::ZERO),
                    content: row.get(3)?,
                    hash: hash(row, 4)?,
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        select().or_else(|error| self.without_documents(error))
    }

    /// Before the first stream of documents there are no tables.
    fn without_documents<T: Default>(&self, error: rusqlite::Error) -> Result<T, StoreError> {
        let tables = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
        match self.connection.query_row(tables, [VIEW], |row| row.get(0)) {
            Ok(0) => Ok(T::default()),
            Ok(_) | Err(_) => Err(failed(&self.path, error)),
        }
    }
}

impl DocumentReader for SqliteReader {
    fn document(&self, stream_id: &StreamId, key: &str) -> Result<Option<StoredDocument>, StoreError> {
        Ok(self.select("doc_key = ?2", params![stream_id.as_str(), key])?.pop())
    }

    fn documents(
        &self,
        stream_id: &StreamId,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<StoredDocument>, StoreError> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let after = after.unwrap_or_default();
        self.select(
            "doc_key > ?2 ORDER BY doc_key LIMIT ?3",
            params![stream_id.as_str(), after, most],
        )
    }

    fn count(&self, stream_id: &StreamId) -> Result<u64, StoreError> {
        let count = self
            .connection
            .prepare_cached(
                "SELECT count(*) FROM spacetime_sync_document \
                 WHERE view = (SELECT id FROM spacetime_sync_view WHERE stream_id = ?1 AND state = 'shown')",
            )
            .and_then(|mut select| select.query_row([stream_id.as_str()], |row| row.get::<_, i64>(0)));
        count
            .map(i64::cast_unsigned)
            .or_else(|error| self.without_documents(error))
    }
}

#[cfg(test)]
mod tests;
