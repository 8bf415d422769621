//! The authority: the runtime's Postgres, where every event comes into being. All SQL of the bridge is here.
//!
//! Everything works through restarts of Postgres: connections are made anew, and what could not be done is an error of
//! class retry. Every call is bounded in time, so that a dead network never holds the bridge up.
//!
//! What a statement costs never depends on what Postgres believes about the tables: it has one way only. One value is
//! asked for as a range with an order, or as a join on a range, and the session's settings forbid scans and sorts. With
//! "=", a plan made while a table was believed empty reads all of it ever after (migration 3).
//!
//! What it never does: verify hashes and chains (the core does), or write to the log except where `append` is called.

mod access;
mod connections;
mod error;
mod history;
mod leadership;
mod log;
mod retention;
mod schema;
pub mod settings;
mod standing;
mod wake;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use spacetime_sync_proto::{ChainHash, Event, IdempotencyKey, Kind, Seq, StreamId, StreamProgress};
use sqlx::Row;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::time::timeout;

pub use access::{Access, AccessQuestion, BoundSession};
pub use error::AuthorityError;
pub use history::History;
pub use leadership::{Candidate, Leadership};
pub use retention::Extent;
pub use standing::Standing;
pub use wake::WakeListener;

use connections::{CALL_LIMIT, Connections};
use error::CallError;
use leadership::LeadSession;

/// How long a statement may take on the server: a little less than a call may, so that mostly the server ends it.
const STATEMENT_LIMIT_MS: &str = "25000";
/// What the names of streams are made of. Functions append under no other; a hand in the table may have written one, and
/// no stream beside it must suffer from that.
macro_rules! is_name {
    () => {
        "stream_id ~ '^[A-Za-z0-9._:/@+=~%-]+$'"
    };
}
use is_name;

/// How long applying the migrations may take.
const MIGRATE_LIMIT: Duration = Duration::from_secs(600);

/// What became of [`Authority::advance_published`]. Streams in neither list are at or past what was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advanced {
    /// Not advanced, because a writer holds their row: ask again later.
    pub locked: Vec<StreamId>,
    /// Not advanced, because the authority's log ends before: it has lost events that SpacetimeDB holds.
    pub above_head: Vec<StreamId>,
}

/// An event that is to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Unique in its stream.
    pub idempotency_key: IdempotencyKey,
    /// What the payload is.
    pub kind: Kind,
    /// The runtime's bytes.
    pub payload: Bytes,
}

/// The runtime's Postgres. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Authority {
    connections: Arc<Connections>,
    /// The session in which this process had the lead until it stopped to answer.
    lost_lead: Arc<Mutex<Option<LeadSession>>>,
}

impl Authority {
    /// Connects, and checks that the database has exactly the migrations of this build.
    pub async fn connect(url: &str, pool_size: usize) -> Result<Self, AuthorityError> {
        let authority = Self::unconnected(url, pool_size)?;
        let connections = &authority.connections;
        let check = async |connection: &mut PgConnection| {
            schema::check(connections.server(), connection)
                .await
                .map_err(CallError::Content)
        };
        connections.run("the check of the schema", check).await?;
        Ok(authority)
    }

    /// Connects with the first call, and does not check the migrations.
    pub fn unconnected(url: &str, pool_size: usize) -> Result<Self, AuthorityError> {
        let (server, options) = parse(url)?;
        Ok(Self {
            connections: Arc::new(Connections::new(server, options, pool_size)),
            lost_lead: Arc::default(),
        })
    }

    /// The same database with connections of its own, so that one kind of work never waits for another's turn.
    #[must_use]
    pub fn beside(&self, pool_size: usize) -> Self {
        let (server, options) = (self.connections.server().to_owned(), self.connections.options().clone());
        Self {
            connections: Arc::new(Connections::new(server, options, pool_size)),
            lost_lead: self.lost_lead.clone(),
        }
    }

    /// Gives up the connections that no call has: what ended one has most likely ended all of them.
    pub fn forget_connections(&self) {
        self.connections.forget_idle();
    }

    /// Applies the migrations that the database lacks. Several at once are safe.
    pub async fn migrate(url: &str) -> Result<(), AuthorityError> {
        let (server, options) = parse(url)?;
        // The server's bound on statements is for calls of the lane; an index on a large table takes longer.
        let options = options.options([("statement_timeout", "0")]);
        match timeout(MIGRATE_LIMIT, schema::migrate(&server, &options)).await {
            Ok(result) => result,
            Err(_) => Err(AuthorityError::TimedOut {
                server,
                what: "the migrations",
                limit: MIGRATE_LIMIT,
            }),
        }
    }

    /// Streams with events that are not known to be published, in the order of their ids, from just after `after`.
    pub async fn dirty_streams(
        &self,
        after: Option<&StreamId>,
        limit: usize,
    ) -> Result<Vec<StreamProgress>, AuthorityError> {
        self.positions(
            "dirty_streams",
            concat!(
                "select stream_id, head_seq, published_seq, oldest_seq - 1 from runtime.sync_streams
                 where dirty and stream_id > $1 and ",
                is_name!(),
                " order by stream_id limit $2"
            ),
            after,
            limit,
        )
        .await
    }

    /// All streams that hold anything, in the order of their ids, from just after `after`.
    pub async fn streams_after(
        &self,
        after: Option<&StreamId>,
        limit: usize,
    ) -> Result<Vec<StreamProgress>, AuthorityError> {
        self.positions(
            "streams_after",
            concat!(
                "select stream_id, head_seq, published_seq, oldest_seq - 1 from runtime.sync_streams
                 where head_seq > 0 and stream_id > $1 and ",
                is_name!(),
                " order by stream_id limit $2"
            ),
            after,
            limit,
        )
        .await
    }

    /// What stands in place of a stream's name and is none: nobody else is told of it.
    pub async fn misnamed_streams(&self, limit: usize) -> Result<Vec<String>, AuthorityError> {
        self.connections
            .run("misnamed_streams", async |connection| {
                let sql = concat!(
                    "select stream_id from runtime.sync_streams where not ",
                    is_name!(),
                    " order by stream_id limit $1"
                );
                let names = sqlx::query_scalar(sql).bind(i64::try_from(limit).unwrap_or(i64::MAX));
                Ok(names.fetch_all(connection).await?)
            })
            .await
    }

    /// The heads of one stream; none if nothing was ever appended to it.
    pub async fn position(&self, stream_id: &StreamId) -> Result<Option<StreamProgress>, AuthorityError> {
        let found = self
            .connections
            .run("position", async |connection| {
                let row = sqlx::query(
                    "select stream_id, head_seq, published_seq, oldest_seq - 1 from runtime.sync_streams
                     where stream_id = $1 and head_seq > 0",
                )
                .bind(stream_id.as_str())
                .fetch_optional(connection)
                .await?;
                row.as_ref().map(position).transpose()
            })
            .await?;
        Ok(found)
    }

    async fn positions(
        &self,
        what: &'static str,
        sql: &'static str,
        after: Option<&StreamId>,
        limit: usize,
    ) -> Result<Vec<StreamProgress>, AuthorityError> {
        self.connections
            .run(what, async |connection| {
                let rows = sqlx::query(sql)
                    // No id is empty: the empty text stands before all of them.
                    .bind(after.map_or("", StreamId::as_str))
                    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                    .fetch_all(connection)
                    .await?;
                rows.iter().map(position).collect()
            })
            .await
    }

    /// The events after a position, in order: at most `max_events`, and at most `max_bytes` of payload, except that
    /// the first event always comes. Empty at the head.
    pub async fn read_events(
        &self,
        stream_id: &StreamId,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Vec<Event>, AuthorityError> {
        self.connections
            .run("read_events", async |connection| {
                log::read_events(connection, stream_id, after, max_events, max_bytes).await
            })
            .await
    }

    /// The chain hash at a position; none if the log ends before it, or begins after the event that follows it. At seq 0
    /// it is that of the empty log, whether the stream exists or not.
    pub async fn chain_at(&self, stream_id: &StreamId, seq: Seq) -> Result<Option<ChainHash>, AuthorityError> {
        self.connections
            .run("chain_at", async |connection| {
                chain_at(connection, stream_id, seq).await
            })
            .await
    }

    /// Records that SpacetimeDB durably holds these streams up to these seqs. One statement for all of them; never
    /// backwards, never above a head, and it never waits for a writer.
    pub async fn advance_published(&self, to: &[(StreamId, Seq)]) -> Result<Advanced, AuthorityError> {
        if to.is_empty() {
            return Ok(Advanced::default());
        }
        let ids: Vec<&str> = to.iter().map(|(stream_id, _)| stream_id.as_str()).collect();
        let seqs: Vec<i64> = to.iter().map(|(_, seq)| seq.to_sql()).collect();
        self.connections
            .run("advance_published", async |connection| {
                // `asked` leaves out what has nothing to do, so that a repeat writes nothing and meets no lock. A row that
                // is missing altogether counts as a log of length 0.
                let rows = sqlx::query(
                    "with asked as (
                   select w.stream_id, max(w.seq) as seq
                   from unnest($1::text[], $2::bigint[]) as w(stream_id, seq) group by w.stream_id
                 ), free as (
                   select s.stream_id, s.head_seq, a.seq
                   from asked a join runtime.sync_streams s
                     on s.stream_id >= a.stream_id collate \"C\" and s.stream_id <= a.stream_id collate \"C\"
                   where s.published_seq < a.seq
                   for no key update of s skip locked
                 ), moved as (
                   update runtime.sync_streams s set published_seq = f.seq, published_at = clock_timestamp()
                   from free f
                   where s.stream_id >= f.stream_id and s.stream_id <= f.stream_id
                     and s.published_seq < f.seq and f.seq <= f.head_seq
                 )
                 select a.stream_id, coalesce(f.stream_id is null and s.stream_id is not null, false) as locked
                 from asked a
                 left join runtime.sync_streams s
                   on s.stream_id >= a.stream_id collate \"C\" and s.stream_id <= a.stream_id collate \"C\"
                 left join free f on f.stream_id = a.stream_id collate \"C\"
                 where coalesce(s.published_seq, 0) < a.seq and (f.stream_id is null or f.seq > f.head_seq)",
                )
                .bind(&ids)
                .bind(&seqs)
                .fetch_all(connection)
                .await?;
                let mut advanced = Advanced::default();
                for row in &rows {
                    let id = stream_id(row.try_get(0)?)?;
                    if row.try_get(1)? {
                        advanced.locked.push(id);
                    } else {
                        advanced.above_head.push(id);
                    }
                }
                Ok(advanced)
            })
            .await
    }

    /// Sets a stream's published seq back, because SpacetimeDB holds less than was recorded. Never forwards. Waits for
    /// a writer that holds the row.
    pub async fn rewind_published(&self, stream_id: &StreamId, to: Seq) -> Result<(), AuthorityError> {
        self.connections
            .run("rewind_published", async |connection| {
                sqlx::query(
                    "update runtime.sync_streams set published_seq = $2, published_at = clock_timestamp()
                 where stream_id = $1 and published_seq > $2",
                )
                .bind(stream_id.as_str())
                .bind(to.to_sql())
                .execute(connection)
                .await?;
                Ok(())
            })
            .await
    }

    /// Says whether the bridge sleeps and wants to be woken. After falling asleep, look for dirty streams once more, and
    /// go on polling slowly: an append at this very moment does not see it.
    pub async fn set_sleeping(&self, sleeping: bool) -> Result<(), AuthorityError> {
        self.connections
            .run("set_sleeping", async |connection| {
                sqlx::query("update runtime.sync_bridge_wake set sleeping = $1 where sleeping <> $1")
                    .bind(sleeping)
                    .execute(connection)
                    .await?;
                Ok(())
            })
            .await
    }

    /// Begins to listen for wake-ups, on a connection of its own.
    pub async fn listen(&self) -> Result<WakeListener, AuthorityError> {
        self.limit(
            "listen",
            WakeListener::start(self.connections.server(), self.connections.options()),
        )
        .await
    }

    /// One who would lead, and asks for it again and again on one connection.
    pub fn candidate(&self) -> Candidate {
        let (server, options) = (self.connections.server().to_owned(), self.connections.options().clone());
        Candidate::new(server, options, self.lost_lead.clone())
    }

    /// Takes the lead if no other bridge has it, on a connection of its own.
    pub async fn try_lead(&self) -> Result<Option<Leadership>, AuthorityError> {
        self.candidate().try_lead().await
    }

    /// Appends one event, in a transaction of its own, for tools and tests: the runtime calls the SQL function inside
    /// its own transactions.
    pub async fn append(&self, stream_id: &StreamId, event: &NewEvent) -> Result<Seq, AuthorityError> {
        self.connections
            .run("append", async |connection| {
                let seq: i64 = sqlx::query_scalar("select runtime.sync_append($1, $2, $3, $4)")
                    .bind(stream_id.as_str())
                    .bind(event.idempotency_key.as_str())
                    .bind(event.kind.as_str())
                    .bind(&event.payload[..])
                    .fetch_one(connection)
                    .await?;
                appended_at(stream_id, seq)
            })
            .await
    }

    /// Appends events in one transaction of its own, at most 10,000, and returns their seqs in the order given.
    pub async fn append_batch(&self, stream_id: &StreamId, events: &[NewEvent]) -> Result<Vec<Seq>, AuthorityError> {
        let keys: Vec<&str> = events.iter().map(|event| event.idempotency_key.as_str()).collect();
        let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
        let payloads: Vec<&[u8]> = events.iter().map(|event| &event.payload[..]).collect();
        self.connections
            .run("append_batch", async |connection| {
                let seqs: Vec<i64> = sqlx::query_scalar("select runtime.sync_append_batch($1, $2, $3, $4)")
                    .bind(stream_id.as_str())
                    .bind(&keys)
                    .bind(&kinds)
                    .bind(&payloads)
                    .fetch_one(connection)
                    .await?;
                seqs.into_iter().map(|seq| appended_at(stream_id, seq)).collect()
            })
            .await
    }

    /// Closes the connections that no call has.
    pub async fn close(&self) {
        self.connections.close().await;
    }

    /// Bounds what makes a connection of its own.
    async fn limit<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, AuthorityError>>,
    ) -> Result<T, AuthorityError> {
        match timeout(CALL_LIMIT, call).await {
            Ok(result) => result,
            Err(_) => Err(self.connections.timed_out(what, CALL_LIMIT)),
        }
    }
}

fn parse(url: &str) -> Result<(String, PgConnectOptions), AuthorityError> {
    // The driver takes any scheme.
    if !["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
    {
        return Err(AuthorityError::Url {
            source: sqlx::Error::Configuration("the scheme is another one".into()),
        });
    }
    let options: PgConnectOptions = url.parse().map_err(|source| AuthorityError::Url { source })?;
    let options = options.application_name("spacetime-sync").options([
        ("statement_timeout", STATEMENT_LIMIT_MS),
        // The server's side of the connection: a bridge that vanished gives up its locks, the lead above all.
        ("tcp_keepalives_idle", "3"),
        ("tcp_keepalives_interval", "2"),
        ("tcp_keepalives_count", "2"),
        // Every statement of the bridge goes through an index, in its order. Before the first ANALYZE of a table that
        // has just grown, the planner believes it empty and would sort all of it for every page.
        ("enable_seqscan", "off"),
        ("enable_bitmapscan", "off"),
        ("enable_sort", "off"),
        // What cannot do without a sort looks so dear then that Postgres would compile it, for 10 ms a statement.
        ("jit", "off"),
    ]);
    let server = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    let server = format!("{server}/{}", options.get_database().unwrap_or(options.get_username()));
    Ok((server, options))
}

fn stream_id(text: &str) -> Result<StreamId, CallError> {
    StreamId::new(text).map_err(|_| {
        CallError::Content(AuthorityError::Corrupt {
            stream_id: text.to_owned(),
            seq: 0,
            what: "a stream_id",
        })
    })
}

fn position(row: &sqlx::postgres::PgRow) -> Result<StreamProgress, CallError> {
    let stream_id = stream_id(row.try_get(0)?)?;
    let seq = |value: i64, what| {
        Seq::from_sql(value).ok_or_else(|| {
            CallError::Content(AuthorityError::Corrupt {
                stream_id: stream_id.as_str().to_owned(),
                seq: value,
                what,
            })
        })
    };
    Ok(StreamProgress {
        head_seq: seq(row.try_get(1)?, "a head_seq")?,
        published_seq: seq(row.try_get(2)?, "a published_seq")?,
        floor_seq: seq(row.try_get(3)?, "an oldest_seq")?,
        stream_id,
    })
}

fn appended_at(stream_id: &StreamId, seq: i64) -> Result<Seq, CallError> {
    Seq::from_sql(seq).ok_or_else(|| {
        CallError::Content(AuthorityError::Corrupt {
            stream_id: stream_id.as_str().to_owned(),
            seq,
            what: "a position",
        })
    })
}

async fn chain_at(
    connection: &mut PgConnection,
    stream_id: &StreamId,
    seq: Seq,
) -> Result<Option<ChainHash>, CallError> {
    if seq == Seq::ZERO {
        return Ok(Some(ChainHash::genesis(stream_id)));
    }
    let found: Option<Vec<u8>> = sqlx::query_scalar(
        "(select chain_hash from runtime.sync_stream_events
          where stream_id = $1 and seq >= $2 and seq <= $2 order by seq limit 1)
         union all
         (select floor_chain from runtime.sync_streams where stream_id = $1 and oldest_seq > 1 and oldest_seq - 1 = $2)
         limit 1",
    )
    .bind(stream_id.as_str())
    .bind(seq.to_sql())
    .fetch_optional(connection)
    .await?;
    found
        .map(|bytes| chain_hash(stream_id, seq, &bytes))
        .transpose()
        .map_err(CallError::Content)
}

/// The chain hash that a column holds. One that is malformed is corrupt, wherever it is read.
fn chain_hash(stream_id: &StreamId, seq: Seq, bytes: &[u8]) -> Result<ChainHash, AuthorityError> {
    ChainHash::from_slice(bytes).ok_or_else(|| AuthorityError::Corrupt {
        stream_id: stream_id.as_str().to_owned(),
        seq: seq.to_sql(),
        what: "a chain hash",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bridge runs every call inside of spawned tasks.
    #[test]
    fn calls_can_be_spawned() {
        fn check<T: Send>(_: impl FnOnce(&'static Authority) -> T) {}
        check(|authority| authority.dirty_streams(None, 1));
        check(|authority| authority.advance_published(&[]));
        check(|authority| authority.set_sleeping(true));
        check(|authority| authority.listen());
        check(|authority| authority.try_lead());
    }

    #[test]
    fn a_url_is_named_without_its_password() {
        let (server, _) = parse("postgres://me:secret@db.example:5433/runtime").unwrap();
        assert_eq!(server, "db.example:5433/runtime");
        let error = parse("mysql://me:secret@db.example/runtime").map(|_| ()).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("secret"));
        assert!(matches!(error, AuthorityError::Url { .. }));
    }
}
