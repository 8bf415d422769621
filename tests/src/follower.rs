//! A client as a process of its own: the example `follow`, which writes every applied event into SQLite.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use spacetime_sync_authority::Authority;
use spacetime_sync_proto::{ChainHash, DatabasePin, Event, IdempotencyKey, Kind, PayloadHash, Seq, StreamId};

use crate::process::{Environment, Process};
use crate::release::Release;

/// A client, running or not.
#[derive(Debug)]
pub struct Follower {
    uri: String,
    database: String,
    pin: Option<DatabasePin>,
    credential: Credential,
    identity: String,
    store: PathBuf,
    log: PathBuf,
    streams: Vec<StreamId>,
    options: Vec<String>,
    environment: Environment,
    release: Release,
    process: Option<Process>,
    /// Length of the log that earlier runs of this client have left, in bytes.
    before: usize,
}

/// How a client authenticates.
#[derive(Debug, Clone)]
pub(crate) enum Credential {
    /// With the token in this file, and the seals of the keys in that one.
    Token { token_file: PathBuf, seal_keys: PathBuf },
    /// With tokens that the bridge at this url issues for the session credential in this file.
    Session(String, PathBuf),
}

/// The comparison of what a client applied with what the authority holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Events applied, over all streams.
    pub applied: u64,
    /// Events of the authority that the client lacks.
    pub missing: u64,
    /// Missing positions before the last applied one.
    pub gaps: u64,
    /// Events that were applied more than once.
    pub duplicates: u64,
    /// Events that differ in any field from the authority's.
    pub different: u64,
}

/// What a client has saved of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// Seq of the checkpoint.
    pub checkpoint: u64,
    /// Seq of the last applied event.
    pub last: u64,
    /// Number of applied events.
    pub events: u64,
}

impl Verdict {
    /// Whether the client's log equals the authority's, byte for byte.
    pub fn is_equal(&self) -> bool {
        self.missing == 0 && self.gaps == 0 && self.duplicates == 0 && self.different == 0
    }
}

impl Follower {
    pub(crate) fn new(
        uri: &str,
        database: &str,
        credential: Credential,
        identity: &str,
        store: &Path,
        streams: &[StreamId],
    ) -> Self {
        Self {
            uri: uri.to_owned(),
            database: database.to_owned(),
            pin: None,
            credential,
            identity: identity.to_owned(),
            store: store.to_owned(),
            log: store.with_extension("log"),
            streams: streams.to_vec(),
            options: Vec::new(),
            environment: Environment::new(),
            release: Release::Current,
            process: None,
            before: 0,
        }
    }

    /// Connects to no other database.
    #[must_use]
    pub(crate) fn pinned(mut self, pin: Option<DatabasePin>) -> Self {
        self.pin = pin;
        self
    }

    /// Connects to SpacetimeDB through another address, e.g. a proxy's.
    #[must_use]
    pub fn at(mut self, addr: SocketAddr) -> Self {
        self.uri = format!("http://{addr}");
        self
    }

    /// Connects to SpacetimeDB and to the bridge at these urls.
    #[must_use]
    pub fn through(mut self, uri: &str, bridge: &str) -> Self {
        self.uri = uri.to_owned();
        if let Credential::Session(at, _) = &mut self.credential {
            *at = bridge.to_owned();
        }
        self
    }

    /// Follows these streams instead of those it was made for.
    #[must_use]
    pub fn following(mut self, streams: &[StreamId]) -> Self {
        self.streams = streams.to_vec();
        self
    }

    /// Keeps its store in another folder.
    #[must_use]
    pub fn stored_in(mut self, folder: &Path) -> Self {
        if let Some(name) = self.store.file_name() {
            self.store = folder.join(name);
        }
        self
    }

    /// Adds variables to the environment.
    #[must_use]
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment.extend(environment);
        self
    }

    /// The name of the client's session, if it has one.
    pub fn session(&self) -> Option<String> {
        let name = self.store.file_stem()?.to_str()?.strip_prefix("client-")?;
        matches!(self.credential, Credential::Session(..)).then(|| format!("session-{name}"))
    }

    /// Adds a command-line option with a value.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl ToString) -> Self {
        self.options.extend([name.to_owned(), value.to_string()]);
        self
    }

    /// Adds a command-line option without a value.
    #[must_use]
    pub fn flag(mut self, name: &str) -> Self {
        self.options.push(name.to_owned());
        self
    }

    /// Is of this release from its next start on.
    pub fn become_of(&mut self, release: Release) {
        self.release = release;
    }

    /// Removes the added command-line options.
    pub fn clear_options(&mut self) {
        self.options.clear();
    }

    /// The client's identity, in hex.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The file with the client's token or session credential.
    pub fn token_file(&self) -> &Path {
        match &self.credential {
            Credential::Token { token_file: file, .. } | Credential::Session(_, file) => file,
        }
    }

    /// The client's SQLite file.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// What any program is started with that connects as this client, and keeps its store.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![("--uri", self.uri.clone()), ("--database", self.database.clone())];
        if let Some(pin) = &self.pin {
            arguments.push(("--database-identity", pin.database_identity.to_string()));
            arguments.push(("--owner-identity", pin.owner_identity.to_string()));
        }
        match &self.credential {
            Credential::Token { token_file, seal_keys } => arguments.extend([
                ("--token-file", token_file.display().to_string()),
                ("--seal-keys", seal_keys.display().to_string()),
            ]),
            Credential::Session(bridge, file) => arguments.extend([
                ("--bridge", bridge.clone()),
                ("--session-file", file.display().to_string()),
            ]),
        }
        arguments.push(("--db", self.store.display().to_string()));
        arguments.extend(self.streams.iter().map(|stream| ("--stream", stream.to_string())));
        arguments
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect()
    }

    /// Starts the client. It resumes from what it applied before.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(self.release.program("examples/follow")?);
        command.args(self.arguments());
        let environment = self.environment.iter().map(|(key, value)| (key, value));
        command.args(&self.options).env("NO_COLOR", "1").envs(environment);
        self.before = self.log().len();
        self.process = None;
        self.process = Some(Process::start("client", &mut command, &self.log)?);
        Ok(())
    }

    /// The process, if it was started.
    pub fn process(&self) -> anyhow::Result<&Process> {
        self.process
            .as_ref()
            .ok_or_else(|| anyhow::anyhow!("the client was not started"))
    }

    /// SIGKILL.
    pub fn kill(&self) {
        if let Some(process) = &self.process {
            process.kill();
        }
    }

    /// Number of applied events; 0 before the store exists.
    pub fn applied(&self) -> u64 {
        self.heads().iter().sum()
    }

    /// Seq of the last applied event of each stream; 0 before the store exists.
    pub fn heads(&self) -> Vec<u64> {
        let read = || -> Result<Vec<u64>, rusqlite::Error> {
            let store = self.open()?;
            // Reads positions instead of counting rows, because callers poll a table of a million rows every few
            // milliseconds.
            let mut heads = store.prepare("SELECT max(seq) FROM applied WHERE stream_id = ?1")?;
            let head = |stream_id: &StreamId| {
                let head = heads.query_row([stream_id.as_str()], |row| row.get::<_, Option<u64>>(0))?;
                Ok(head.unwrap_or(0))
            };
            self.streams.iter().map(head).collect()
        };
        read().unwrap_or_else(|_| vec![0; self.streams.len()])
    }

    /// Waits until the client has applied so many events.
    pub async fn until_applied(&self, events: u64, limit: Duration) -> anyhow::Result<()> {
        let done = crate::until(limit, || {
            self.applied() >= events || self.process.as_ref().is_some_and(|process| !process.is_running())
        })
        .await;
        let applied = self.applied();
        anyhow::ensure!(
            done && applied >= events,
            "the client applied {applied} of {events} events: {}",
            self.log()
        );
        Ok(())
    }

    /// What the client has saved of each stream, all read at one moment. Empty before the store exists.
    pub fn saved(&self) -> anyhow::Result<Vec<Saved>> {
        // A client that has just started has not created its file yet.
        if !self.store.exists() {
            return Ok(Vec::new());
        }
        let mut store = self.open()?;
        let snapshot = store.transaction()?;
        let tables = "SELECT count(*) FROM sqlite_schema WHERE name IN ('applied', 'spacetime_sync_checkpoint')";
        if snapshot.query_row(tables, [], |row| row.get::<_, u64>(0))? < 2 {
            return Ok(Vec::new());
        }
        let mut saved = Vec::new();
        for stream_id in &self.streams {
            let found = snapshot.query_row(
                "SELECT coalesce((SELECT seq FROM spacetime_sync_checkpoint WHERE stream_id = ?1), 0),
                        coalesce(max(seq), 0), count(*) FROM applied WHERE stream_id = ?1",
                [stream_id.as_str()],
                |row| {
                    Ok(Saved {
                        checkpoint: row.get(0)?,
                        last: row.get(1)?,
                        events: row.get(2)?,
                    })
                },
            )?;
            saved.push(found);
        }
        Ok(saved)
    }

    /// The last status that the client has reported since its start; null before the first.
    pub fn status(&self) -> Value {
        let log = self.log();
        log.get(self.before..)
            .unwrap_or_default()
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str(line).ok())
            .unwrap_or_default()
    }

    /// Waits until the client is live on all its streams.
    pub async fn until_live(&self, limit: Duration) -> anyhow::Result<()> {
        let live = crate::until(limit, || self.status()["phase"] == "live").await;
        anyhow::ensure!(live, "the client is not live: {}", self.log());
        Ok(())
    }

    /// The client's log since its last start.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Microseconds from commit to application, for the events from `first_seq` to `last_seq`.
    pub fn latencies_us(&self, stream_id: &StreamId, first_seq: u64, last_seq: u64) -> anyhow::Result<Vec<i64>> {
        self.times_us("applied_at_us - committed_at_us", stream_id, first_seq, last_seq)
    }

    /// When the events from `first_seq` to `last_seq` were applied, in microseconds since 1970.
    pub fn applied_at_us(&self, stream_id: &StreamId, first_seq: u64, last_seq: u64) -> anyhow::Result<Vec<i64>> {
        self.times_us("applied_at_us", stream_id, first_seq, last_seq)
    }

    fn times_us(&self, time: &str, stream_id: &StreamId, first_seq: u64, last_seq: u64) -> anyhow::Result<Vec<i64>> {
        let store = self.open()?;
        let mut rows = store.prepare(&format!(
            "SELECT {time} FROM applied WHERE stream_id = ?1 AND seq BETWEEN ?2 AND ?3 ORDER BY seq"
        ))?;
        let rows = rows.query_map(rusqlite::params![stream_id.as_str(), first_seq, last_seq], |row| {
            row.get::<_, i64>(0)
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Compares the applied events with the authority's, field by field.
    pub async fn compare(&self, authority: &Authority) -> anyhow::Result<Verdict> {
        let mut verdict = Verdict::default();
        for stream_id in &self.streams {
            let applied = self.applied_log(stream_id)?;
            verdict.applied += applied.len() as u64;
            let mut seqs: Vec<u64> = applied.iter().map(|event| event.seq.get()).collect();
            seqs.sort_unstable();
            verdict.duplicates += seqs.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64;
            seqs.dedup();
            verdict.gaps += seqs.last().copied().unwrap_or(0) - seqs.len() as u64;
            let (mut after, mut at) = (Seq::ZERO, 0);
            loop {
                let page = authority.read_events(stream_id, after, 5_000, 64 << 20).await?;
                let Some(last) = page.last() else { break };
                after = last.seq;
                for event in &page {
                    match applied.get(at) {
                        Some(found) if found == event => {}
                        Some(_) => verdict.different += 1,
                        None => verdict.missing += 1,
                    }
                    at += 1;
                }
            }
            // Surplus events, which the authority does not have.
            verdict.different += applied.len().saturating_sub(at) as u64;
        }
        Ok(verdict)
    }

    /// The applied events of a stream, in the order of their application.
    pub fn applied_log(&self, stream_id: &StreamId) -> anyhow::Result<Vec<Event>> {
        let store = self.open()?;
        let mut rows = store.prepare(
            "SELECT seq, idempotency_key, kind, payload, payload_hash, chain_hash, committed_at_us
             FROM applied WHERE stream_id = ?1 ORDER BY rowid",
        )?;
        let events = rows.query_map([stream_id.as_str()], |row| {
            let text = |at| row.get::<_, String>(at);
            let hash = |at| row.get::<_, [u8; 32]>(at);
            let foreign = |error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error);
            Ok(Event {
                seq: Seq::new(row.get(0)?).unwrap_or(Seq::MAX),
                idempotency_key: IdempotencyKey::new(&text(1)?).map_err(|error| foreign(Box::new(error)))?,
                kind: Kind::new(&text(2)?).map_err(|error| foreign(Box::new(error)))?,
                payload: Bytes::from(row.get::<_, Vec<u8>>(3)?),
                payload_hash: PayloadHash::from_bytes(hash(4)?),
                chain_hash: ChainHash::from_bytes(hash(5)?),
                committed_at_us: row.get(6)?,
            })
        })?;
        Ok(events.collect::<Result<_, _>>()?)
    }

    fn open(&self) -> Result<Connection, rusqlite::Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let store = Connection::open_with_flags(&self.store, flags)?;
        store.busy_timeout(Duration::from_secs(5))?;
        Ok(store)
    }
}

/// Changes a client's file so that its checkpoint names another log. The form is that of a real checkpoint.
pub fn forge_checkpoint(
    store: &Path,
    stream_id: &StreamId,
    change: impl FnOnce(u64, [u8; 32]) -> (u64, [u8; 32]),
) -> anyhow::Result<()> {
    let store = Connection::open(store)?;
    let (seq, chain_hash) = store.query_row(
        "SELECT seq, chain_hash FROM spacetime_sync_checkpoint WHERE stream_id = ?1",
        [stream_id.as_str()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let (seq, chain_hash) = change(seq, chain_hash);
    let checksum = PayloadHash::of(&[&seq.to_be_bytes()[..], &chain_hash, stream_id.as_str().as_bytes()].concat());
    store.execute(
        "UPDATE spacetime_sync_checkpoint SET seq = ?2, chain_hash = ?3, checksum = ?4 WHERE stream_id = ?1",
        (stream_id.as_str(), seq, chain_hash, checksum.as_bytes()),
    )?;
    Ok(())
}
