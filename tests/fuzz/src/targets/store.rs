//! The checkpoint file as a client may find it: the database and SQLite's files beside it, with altered bytes.
//!
//! Properties: it opens with checkpoints that were written, or fails with a typed error and leaves the file untouched.
//! It never yields a checkpoint that was not written, and never loses one silently.

use spacetime_sync_proto::Position;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use rand::Rng as _;
use rand::rngs::StdRng;
use rusqlite::Transaction;
use spacetime_sync_client::{CheckpointStore, CommitError, SqliteStore, StoreError};

use crate::lane::Log;
use crate::mutate;
use crate::target::{Entry, Seed, Target, Verdict};

pub(super) const STORE: Entry = Entry {
    name: "store",
    about: "SqliteStore on a file and a write-ahead log with altered bytes",
    dictionary: &[
        b"SQLite format 3\0",
        b"spacetime_sync_meta",
        b"spacetime_sync_checkpoint",
        b"CREATE TABLE",
        b"STRICT",
        b"lane",
        b"other",
        b"\x37\x7f\x06\x82",
        b"\x0a",
        b"\x0d",
        b"\x02",
        b"\x05",
    ],
    most: 64 * 1024,
    open: || {
        Ok(Box::new(Store {
            folder: crate::lane::folder()?,
            logs: logs()?,
        }))
    },
    seeds,
};

const DATABASE: &str = "lane";
const FILE: &str = "store.db";
const WAL: &str = "store.db-wal";

/// The streams of the file, and one stream that it does not hold.
fn logs() -> anyhow::Result<[Log; 3]> {
    Ok([
        Log::new("runtime.run.1.events", &[1; 9])?,
        Log::new("runtime.run.2.events", &[2; 9])?,
        Log::new("runtime.run.3.events", &[])?,
    ])
}

/// The checkpoints of the first two streams, in the order in which they were saved. The file may hold any of them,
/// because the end of a write-ahead log may be lost.
const SAVED: [&[u64]; 2] = [&[3, 5, 9], &[4]];

struct Store {
    folder: tempfile::TempDir,
    logs: [Log; 3],
}

/// The database file and the write-ahead log of an input, which begins with the length of the first.
fn files(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = input.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

fn whole(database: &[u8], wal: &[u8]) -> Vec<u8> {
    [&(database.len() as u32).to_le_bytes()[..], database, wal].concat()
}

impl Target for Store {
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict> {
        let Some((database, wal)) = files(input) else {
            return Ok(Verdict::Refused);
        };
        self.put(database, wal)?;
        let path = self.folder.path().join(FILE);
        let mut store = match open(&path) {
            Ok(store) => store,
            Err(refused) => {
                if wal.is_empty() {
                    ensure!(
                        std::fs::read(&path)? == database,
                        "it was refused ({refused}), but the file has changed"
                    );
                }
                return Ok(Verdict::Refused);
            }
        };
        let holds = |text: &[u8]| database.windows(text.len()).any(|found| found == text);
        let ours = holds(b"CREATE TABLE spacetime_sync_meta (id ")
            && holds(b"CREATE TABLE spacetime_sync_checkpoint (stream_id ");
        let mut loaded = Vec::new();
        for log in &self.logs {
            let Ok(found) = store.load(&log.stream_id) else {
                return Ok(Verdict::Refused);
            };
            loaded.push(found);
        }
        for (at, (log, found)) in self.logs.iter().zip(&loaded).enumerate() {
            let saved = SAVED.get(at).copied().unwrap_or_default();
            match found {
                None => ensure!(
                    !ours || saved.is_empty(),
                    "the checkpoint of {} is missing without an error",
                    log.stream_id
                ),
                Some(found) => ensure!(
                    saved.iter().any(|seq| log.at(*seq) == Some(*found)),
                    "{}: {found:?} was never saved",
                    log.stream_id
                ),
            }
        }
        self.go_on(&mut store, &loaded)?;
        Ok(Verdict::Taken)
    }

    fn vary(&self, rng: &mut StdRng, input: &[u8]) -> Option<Vec<u8>> {
        let (database, wal) = files(input)?;
        let (mut database, mut wal) = (database.to_vec(), wal.to_vec());
        let most = STORE.most;
        let part = if !wal.is_empty() && rng.random_bool(0.5) {
            &mut wal
        } else {
            &mut database
        };
        match rng.random_range(0..3) {
            // Like a failing disk: a few bytes, or a sector.
            0 | 1 => {
                for _ in 0..rng.random_range(1..4) {
                    let at = rng.random_range(0..part.len().max(1));
                    if let Some(byte) = part.get_mut(at) {
                        *byte ^= 1 << rng.random_range(0..8);
                    }
                }
                if rng.random_bool(0.1) {
                    let at = rng.random_range(0..part.len().max(1)) / 512 * 512;
                    let end = (at + 512).min(part.len());
                    part[at..end].fill(rng.random());
                }
            }
            _ => mutate::bytes(rng, part, &[], STORE.dictionary, most),
        }
        Some(whole(&database, &wal))
    }
}

fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    let mut store = SqliteStore::open(path)?;
    store.bind(DATABASE)?;
    Ok(store)
}

impl Store {
    fn put(&self, database: &[u8], wal: &[u8]) -> anyhow::Result<()> {
        for file in std::fs::read_dir(self.folder.path())? {
            std::fs::remove_file(file?.path())?;
        }
        std::fs::write(self.folder.path().join(FILE), database)?;
        if !wal.is_empty() {
            std::fs::write(self.folder.path().join(WAL), wal)?;
        }
        Ok(())
    }

    /// A client can continue from a loaded checkpoint, and the next one is kept. Alternatively the file turns out to be
    /// damaged in a place that was not read before; then the store says so, and the checkpoint stays.
    fn go_on(&self, store: &mut SqliteStore, loaded: &[Option<Position>]) -> anyhow::Result<()> {
        for (log, found) in self.logs.iter().zip(loaded) {
            let from = found.unwrap_or_else(|| Position::start(&log.stream_id));
            let to = Position {
                seq: from.seq.next(),
                chain: log.head().chain,
            };
            let expected = match store.commit(&log.stream_id, &from, &to, &mut |_: &mut Transaction<'_>| Ok(())) {
                Ok(()) => Some(to),
                Err(CommitError::Store(
                    StoreError::Corrupt { .. }
                    | StoreError::Failed { .. }
                    | StoreError::Full { .. }
                    | StoreError::Open { .. },
                )) => *found,
                Err(other) => anyhow::bail!("{}: {other}", log.stream_id),
            };
            if let Ok(kept) = store.load(&log.stream_id) {
                ensure!(kept == expected, "{}: {kept:?}, expected {expected:?}", log.stream_id);
            }
        }
        Ok(())
    }
}

/// A file as a client leaves it when it exits, and one as a killed client leaves it.
fn seeds() -> anyhow::Result<Vec<Seed>> {
    let folder = crate::lane::folder()?;
    let path = folder.path().join(FILE);
    let logs = logs()?;
    let read = |path: PathBuf| std::fs::read(&path).with_context(|| path.display().to_string());
    let mut store = SqliteStore::open(&path)?;
    // Small pages make small files. The application's own table stands beside the client's.
    let own = "PRAGMA page_size = 512; CREATE TABLE note (seq INTEGER PRIMARY KEY, text BLOB) STRICT;";
    store.connection().execute_batch(own)?;
    let bare = read(path.clone())?;
    store.bind(DATABASE)?;
    let steps = |from: usize, to: usize| {
        let saved = logs.iter().zip(SAVED);
        saved.flat_map(move |(log, seqs)| seqs.iter().take(to).skip(from).map(move |seq| (log, *seq)))
    };
    // The first checkpoint of each stream is in the database file, the others are in the write-ahead log.
    for (at, (log, seq)) in steps(0, 1).chain(steps(1, 9)).enumerate() {
        if at == SAVED.len() {
            store.connection().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
        }
        let from = store
            .load(&log.stream_id)?
            .unwrap_or_else(|| Position::start(&log.stream_id));
        let to = log.at(seq).context("the log is too short")?;
        let mut effects = |transaction: &mut Transaction<'_>| {
            transaction.execute("INSERT OR REPLACE INTO note VALUES (?1, x'00')", [to.seq.to_sql()])?;
            Ok(())
        };
        store.commit(&log.stream_id, &from, &to, &mut effects)?;
    }
    let killed = whole(&read(path.clone())?, &read(folder.path().join(WAL))?);
    drop(store);
    let closed = whole(&read(path)?, &[]);
    Ok(vec![
        Seed::new("closed", closed),
        Seed::new("killed", killed),
        Seed::new("application", whole(&bare, &[])),
        Seed::new("nothing", whole(&[], &[])),
    ])
}
