//! What a client of the lane does with events, and an application that keeps a tally: hashes of payload and chain, and one
//! transaction a batch that moves checkpoint and tally.

use std::path::Path;

use anyhow::Context as _;
use bytes::Bytes;
use rusqlite::Connection;
use spacetime_sync_proto::{ChainHash, IdempotencyKey, Kind, PayloadHash, Seq, StreamId};

use crate::event::Order;

/// The work on one stream.
pub(crate) struct Work {
    connection: Connection,
    stream: String,
    /// A peer's event has no key. This one is as long as those of the benchmark.
    key: IdempotencyKey,
    kind: Kind,
    chain: ChainHash,
}

impl Work {
    /// Begins in a new file, which is as durable as a client's.
    pub(crate) fn open(path: &Path, stream: &str) -> anyhow::Result<Self> {
        let connection = Connection::open(path)?;
        let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        anyhow::ensure!(mode == "wal", "SQLite keeps the journal mode {mode}");
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.execute_batch(
            "CREATE TABLE checkpoint (stream TEXT PRIMARY KEY, seq INTEGER NOT NULL, chain BLOB NOT NULL) STRICT;
             CREATE TABLE tally (stream TEXT PRIMARY KEY, events INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT",
        )?;
        let id = StreamId::new("runtime.run.1.events").context("the stream has no name")?;
        Ok(Self {
            connection,
            stream: stream.to_owned(),
            key: IdempotencyKey::new("run:42:events:100000").context("the event has no key")?,
            kind: Kind::new("run.event").context("the event has no kind")?,
            chain: ChainHash::genesis(&id),
        })
    }

    /// Takes the next events, in one transaction.
    pub(crate) fn take(&mut self, order: &mut Order, events: &[Bytes]) -> anyhow::Result<()> {
        let mut bytes = 0;
        for event in events {
            let seq = Seq::new(order.take(event)?).context("a number beyond the last seq")?;
            let payload = PayloadHash::of(event);
            self.chain = self.chain.link(seq, 0, &payload, &self.key, &self.kind);
            bytes += event.len();
        }
        let transaction = self.connection.transaction()?;
        transaction
            .prepare_cached(
                "INSERT INTO tally VALUES (?1, ?2, ?3)
                 ON CONFLICT (stream) DO UPDATE SET events = events + ?2, bytes = bytes + ?3",
            )?
            .execute((&self.stream, events.len(), bytes))?;
        transaction
            .prepare_cached(
                "INSERT INTO checkpoint VALUES (?1, ?2, ?3)
                 ON CONFLICT (stream) DO UPDATE SET seq = ?2, chain = ?3",
            )?
            .execute((&self.stream, order.seen() as i64, &self.chain.as_bytes()[..]))?;
        transaction.commit()?;
        Ok(())
    }
}
