//! Retention: how much of a stream the authority and SpacetimeDB keep, purges, keys of purged events, snapshots, and the authority's
//! epoch.

use bytes::Bytes;
use spacetime_sync_proto::epoch::AuthorityEpoch;
use spacetime_sync_proto::page::Snapshot;
use spacetime_sync_proto::retention::RetentionClass;
use spacetime_sync_proto::{ChainHash, PayloadHash, Seq, StreamId};
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::error::{AuthorityError, CallError};
use super::{Actor, Authority, is_name, stream_id};

/// Where the authority's log of a stream begins and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// The seq of the first event that the authority keeps; one past the head if it keeps none.
    pub oldest_seq: Seq,
    /// The chain hash before it.
    pub floor_chain: ChainHash,
    /// The seq of the last event.
    pub head_seq: Seq,
    /// The chain hash of the last event.
    pub head_chain: ChainHash,
    /// How many of the newest events SpacetimeDB keeps. `None` if the stream has no class, so that SpacetimeDB keeps all.
    pub window_events: Option<u64>,
    /// How many events a client may be behind and still receive each of them.
    pub replay_budget_events: Option<u64>,
    /// The seq up to which the stream's snapshot stands for all events.
    pub snapshot_seq: Option<Seq>,
}

impl Extent {
    /// The seq before the first event that the authority keeps.
    pub fn floor(&self) -> Seq {
        self.oldest_seq.previous()
    }

    /// The seq after which SpacetimeDB's window begins when it is refilled. The window is as large as the class allows and
    /// the log permits.
    pub fn window_floor(&self) -> Seq {
        let below = |events: u64| Seq::new(self.head_seq.get().saturating_sub(events));
        let full = self.window_events.and_then(below).unwrap_or(Seq::ZERO);
        full.max(self.floor())
    }
}

const EXTENT: &str = "
    select s.stream_id, s.oldest_seq, s.floor_chain, s.head_seq, s.head_chain,
      c.window_events, c.replay_budget_events, d.seq
    from runtime.sync_streams s
    cross join lateral runtime.sync_class(s.stream_id) c
    left join runtime.sync_snapshots d on d.stream_id >= s.stream_id and d.stream_id <= s.stream_id
    where s.stream_id >= $1 and s.stream_id <= $1 and s.head_seq > 0";

impl Authority {
    /// The retention classes, in the order of their names.
    pub async fn retention_classes(&self) -> Result<Vec<RetentionClass>, AuthorityError> {
        self.connections
            .run("retention_classes", async |connection| {
                let rows = sqlx::query(
                    "select class, stream_prefix, window_events,
                       (extract(epoch from window_age) * 1000000)::bigint, durable_reads
                     from runtime.sync_retention order by class",
                )
                .fetch_all(connection)
                .await?;
                let class = |row: &PgRow| -> Result<_, CallError> {
                    Ok(RetentionClass {
                        class: row.try_get(0)?,
                        stream_prefix: row.try_get(1)?,
                        window_events: count(row.try_get(2)?),
                        window_age_us: row.try_get(3)?,
                        durable_reads: row.try_get(4)?,
                    })
                };
                rows.iter().map(class).collect()
            })
            .await
    }

    /// Where a stream's log begins and ends; `None` if nothing was ever appended to it.
    pub async fn extent(&self, stream_id: &StreamId) -> Result<Option<Extent>, AuthorityError> {
        self.connections
            .run("extent", async |connection| extent_of(connection, stream_id).await)
            .await
    }

    /// The snapshot that stands for a stream's first events, if there is one.
    pub async fn snapshot(&self, stream_id: &StreamId) -> Result<Option<Snapshot>, AuthorityError> {
        self.connections
            .run("snapshot", async |connection| {
                let row = sqlx::query(
                    "select doc_key, seq, chain_hash, payload, payload_hash from runtime.sync_snapshots
                     where stream_id >= $1 and stream_id <= $1",
                )
                .bind(stream_id.as_str())
                .fetch_optional(connection)
                .await?;
                let Some(row) = row else { return Ok(None) };
                let (seq, chain_hash, payload_hash): (i64, &[u8], &[u8]) =
                    (row.try_get(1)?, row.try_get(2)?, row.try_get(4)?);
                let payload: &[u8] = row.try_get(3)?;
                Ok(Some(Snapshot {
                    doc_key: row.try_get(0)?,
                    seq: Seq::from_sql(seq).ok_or_else(|| corrupt(stream_id, seq, "a snapshot's seq"))?,
                    chain_hash: ChainHash::from_slice(chain_hash)
                        .ok_or_else(|| corrupt(stream_id, seq, "a snapshot's chain hash"))?,
                    payload: Bytes::copy_from_slice(payload),
                    payload_hash: PayloadHash::from_slice(payload_hash)
                        .ok_or_else(|| corrupt(stream_id, seq, "a snapshot's payload hash"))?,
                }))
            })
            .await
    }

    /// Streams with ids after `after` whose class lets the authority purge events, in order.
    pub async fn purgeable_streams(
        &self,
        after: Option<&StreamId>,
        limit: usize,
    ) -> Result<Vec<StreamId>, AuthorityError> {
        self.connections
            .run("purgeable_streams", async |connection| {
                let ids: Vec<String> = sqlx::query_scalar(concat!(
                    "select s.stream_id from runtime.sync_streams s
                     cross join lateral runtime.sync_class(s.stream_id) c
                     where s.stream_id > $1 and (c.log_events is not null or c.log_age is not null) and s.",
                    is_name!(),
                    " order by s.stream_id limit $2"
                ))
                .bind(after.map_or("", StreamId::as_str))
                .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                .fetch_all(connection)
                .await?;
                ids.iter().map(|id| stream_id(id)).collect()
            })
            .await
    }

    /// Removes at most `most` of the oldest events that a stream's class no longer keeps, and keeps their keys. Returns how many.
    pub async fn purge(&self, stream_id: &StreamId, most: i32) -> Result<u64, AuthorityError> {
        self.connections
            .run("purge", async |connection| {
                let gone: i64 = sqlx::query_scalar("select runtime.sync_purge($1, $2)")
                    .bind(stream_id.as_str())
                    .bind(most)
                    .fetch_one(connection)
                    .await?;
                Ok(count(gone))
            })
            .await
    }

    /// Forgets at most `most` keys of purged events whose time is over. Returns how many.
    pub async fn forget_keys(&self, most: i32) -> Result<u64, AuthorityError> {
        self.connections
            .run("forget_keys", async |connection| {
                let gone: i64 = sqlx::query_scalar("select runtime.sync_forget_keys($1)")
                    .bind(most)
                    .fetch_one(connection)
                    .await?;
                Ok(count(gone))
            })
            .await
    }

    /// About how many keys of purged events are kept: what Postgres has counted, because to count them means to read all of them.
    pub async fn kept_keys(&self) -> Result<u64, AuthorityError> {
        self.connections
            .run("kept_keys", async |connection| {
                let kept: i64 =
                    sqlx::query_scalar("select pg_stat_get_live_tuples('runtime.sync_kept_keys'::regclass)")
                        .fetch_one(connection)
                        .await?;
                Ok(count(kept))
            })
            .await
    }

    /// Counts the beat up by one.
    pub async fn beat(&self) -> Result<(), AuthorityError> {
        self.connections
            .run("beat", async |connection| {
                sqlx::query("update runtime.sync_epoch set beat = beat + 1")
                    .execute(connection)
                    .await?;
                Ok(())
            })
            .await
    }

    /// Which history this is, and how far it has come.
    pub async fn epoch(&self) -> Result<AuthorityEpoch, AuthorityError> {
        self.connections
            .run("epoch", async |connection| {
                let epoch = sqlx::query_as("select epoch::text, beat from runtime.sync_epoch");
                Ok(authority_epoch(epoch.fetch_one(connection).await?))
            })
            .await
    }

    /// Begins a new epoch, and records that in the audit log.
    pub async fn begin_epoch(&self, actor: &Actor) -> Result<AuthorityEpoch, AuthorityError> {
        self.connections
            .run("begin_epoch", async |connection| {
                let begun = sqlx::query_as("select epoch, beat from runtime.sync_begin_epoch($1, $2)")
                    .bind(actor.who())
                    .bind(actor.origin());
                Ok(authority_epoch(begun.fetch_one(connection).await?))
            })
            .await
    }
}

fn authority_epoch((epoch, beat): (String, i64)) -> AuthorityEpoch {
    AuthorityEpoch {
        epoch,
        beat: count(beat),
    }
}

pub(super) async fn extent_of(
    connection: &mut PgConnection,
    stream_id: &StreamId,
) -> Result<Option<Extent>, CallError> {
    let row = sqlx::query(EXTENT)
        .bind(stream_id.as_str())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(extent).transpose()
}

fn extent(row: &PgRow) -> Result<Extent, CallError> {
    let id: String = row.try_get(0)?;
    let id = stream_id(&id)?;
    let seq = |at: usize, what| -> Result<Seq, CallError> {
        let value: i64 = row.try_get(at)?;
        Seq::from_sql(value).ok_or_else(|| corrupt(&id, value, what))
    };
    let (oldest_seq, head_seq) = (seq(1, "an oldest_seq")?, seq(3, "a head_seq")?);
    let chain =
        |bytes: &[u8], at: Seq| ChainHash::from_slice(bytes).ok_or_else(|| corrupt(&id, at.to_sql(), "a chain hash"));
    let (floor_chain, head_chain): (Option<&[u8]>, &[u8]) = (row.try_get(2)?, row.try_get(4)?);
    let floor_chain = match floor_chain {
        None => ChainHash::genesis(&id),
        Some(bytes) => chain(bytes, oldest_seq.previous())?,
    };
    // A stream without a class still has a row, with NULLs.
    let (window, budget): (Option<i64>, Option<i64>) = (row.try_get(5)?, row.try_get(6)?);
    let snapshot: Option<i64> = row.try_get(7)?;
    Ok(Extent {
        oldest_seq,
        floor_chain,
        head_seq,
        head_chain: chain(head_chain, head_seq)?,
        window_events: window.map(count),
        replay_budget_events: budget.map(count),
        snapshot_seq: snapshot.and_then(Seq::from_sql),
    })
}

/// Reads a column that a constraint keeps from being negative.
fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

pub(super) fn corrupt(stream_id: &StreamId, seq: i64, what: &'static str) -> CallError {
    CallError::Content(AuthorityError::Corrupt {
        stream_id: stream_id.as_str().to_owned(),
        seq,
        what,
    })
}
