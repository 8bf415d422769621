//! A client's SQLite file, read from outside: its checkpoints, and the table in which its application keeps events, if
//! that has the expected columns.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use spacetime_sync_proto::checkpoint_table::{SELECT, SELECT_REACHED};
use spacetime_sync_proto::{ChainHash, PayloadHash, Position, Seq, StreamId};

/// How long a statement waits for the client's lock.
const BUSY: Duration = Duration::from_secs(5);

/// Why a client's file cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum ClientFileError {
    /// SQLite cannot read the file.
    #[error("{}: cannot be read as a client's file", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The file holds a value that no release of the client writes.
    #[error("{}: {what}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The thread that read the file died.
    #[error("{}: reading was interrupted", path.display())]
    Interrupted {
        /// The file.
        path: PathBuf,
    },
    /// A name that could be more than the name of a table in a statement.
    #[error("{name:?} is not the name of a table: expected letters, digits and _")]
    Table {
        /// The name.
        name: String,
    },
}

/// What an application keeps of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Effect {
    pub(super) payload: Vec<u8>,
    pub(super) payload_hash: PayloadHash,
    pub(super) chain_hash: ChainHash,
}

/// The file of one client.
#[derive(Debug, Clone)]
pub struct ClientFile {
    path: Arc<PathBuf>,
    table: Option<Arc<str>>,
}

impl ClientFile {
    /// `table` has the columns `stream_id`, `seq`, `payload`, `payload_hash` and `chain_hash`, as in the example
    /// `follow`. Without a table, parity compares only checkpoints.
    pub fn new(path: &Path, table: Option<&str>) -> Result<Self, ClientFileError> {
        let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.is_empty();
        if let Some(name) = table.filter(|name| !is_name(name)) {
            return Err(ClientFileError::Table { name: name.to_owned() });
        }
        Ok(Self {
            path: Arc::new(path.to_owned()),
            table: table.map(Into::into),
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How far the client has applied a stream; `None` if it does not follow it.
    pub(super) async fn checkpoint(&self, stream_id: &StreamId) -> Result<Option<Position>, ClientFileError> {
        let stream_id = stream_id.clone();
        let found = self
            .look(move |file| {
                let row = file.query_row(SELECT, [stream_id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)));
                row.optional()
            })
            .await?;
        found
            .map(|(seq, chain): (i64, Vec<u8>)| {
                Ok(Position {
                    seq: self.seq(seq)?,
                    chain: self.chain(&chain)?,
                })
            })
            .transpose()
    }

    /// What the application keeps of an event. `None` if parity does not read the application's table, or if the client
    /// has not come that far; `Some(None)` if the event is missing.
    pub(super) async fn effect(
        &self,
        stream_id: &StreamId,
        seq: Seq,
    ) -> Result<Option<Option<Effect>>, ClientFileError> {
        let Some(table) = self.table.clone() else {
            return Ok(None);
        };
        let stream_id = stream_id.clone();
        let found = self
            .look(move |file| {
                let reached = file.query_row(SELECT_REACHED, params![stream_id.as_str(), seq.to_sql()], |row| {
                    row.get(0)
                });
                if !reached.optional()?.unwrap_or(false) {
                    return Ok(None);
                }
                let sql =
                    format!("SELECT payload, payload_hash, chain_hash FROM {table} WHERE stream_id = ?1 AND seq = ?2");
                let row = file.query_row(&sql, params![stream_id.as_str(), seq.to_sql()], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                });
                row.optional().map(Some)
            })
            .await?;
        let Some(found) = found else { return Ok(None) };
        let effect = found.map(|(payload, payload_hash, chain): (Vec<u8>, Vec<u8>, Vec<u8>)| {
            let payload_hash = PayloadHash::from_slice(&payload_hash);
            Ok(Effect {
                payload,
                payload_hash: payload_hash.ok_or_else(|| self.foreign("a payload hash does not have 32 bytes"))?,
                chain_hash: self.chain(&chain)?,
            })
        });
        Ok(Some(effect.transpose()?))
    }

    /// Reads in one transaction, so that everything read is of one moment, while the client goes on.
    async fn look<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ClientFileError> {
        let path = self.path.clone();
        let look = move || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let mut file = Connection::open_with_flags(&*path, flags)?;
            file.busy_timeout(BUSY)?;
            let snapshot = file.transaction()?;
            ask(&snapshot)
        };
        let answer = tokio::task::spawn_blocking(look).await;
        let answer = answer.map_err(|_| ClientFileError::Interrupted {
            path: self.path().to_owned(),
        })?;
        answer.map_err(|source| ClientFileError::Unreadable {
            path: self.path().to_owned(),
            source,
        })
    }

    fn seq(&self, seq: i64) -> Result<Seq, ClientFileError> {
        Seq::from_sql(seq).ok_or_else(|| self.foreign("a seq is negative"))
    }

    fn chain(&self, chain: &[u8]) -> Result<ChainHash, ClientFileError> {
        ChainHash::from_slice(chain).ok_or_else(|| self.foreign("a chain hash does not have 32 bytes"))
    }

    fn foreign(&self, what: &str) -> ClientFileError {
        ClientFileError::Foreign {
            path: self.path().to_owned(),
            what: what.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_table_cannot_be_a_statement() {
        let path = Path::new("x");
        assert!(ClientFile::new(path, Some("applied")).is_ok());
        for name in ["", "a b", "a;drop", "a\"", "ä"] {
            assert!(ClientFile::new(path, Some(name)).is_err(), "{name:?}");
        }
    }
}
