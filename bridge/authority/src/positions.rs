//! Reads how far streams have come: their heads, published seqs and floors.

use std::collections::{BTreeMap, BTreeSet};

use spacetime_sync_proto::heads::StreamHead;
use spacetime_sync_proto::{ChainHash, Event, Seq, StreamId, StreamProgress};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::error::CallError;
use super::log::event;
use super::retention::corrupt;
use super::{Authority, AuthorityError, is_name, stream_id};

/// The most events of one stream that come with a look, and the most bytes of their payloads.
const LOOKED_EVENTS: i64 = 64;
const LOOKED_BYTES: i64 = 65_536;

/// What a look finds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Looked {
    /// The dirty streams, in the order of their ids.
    pub progress: Vec<StreamProgress>,
    /// The next events of dirty streams, in order.
    pub events: BTreeMap<StreamId, Vec<Event>>,
}

impl Authority {
    /// Dirty streams with ids after `after`, in order.
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

    /// Dirty streams with ids after `after`, in order, and the next few events of those that `read` names, after the seq
    /// that it names. Where the next event is large, none comes.
    pub async fn look(
        &self,
        after: Option<&StreamId>,
        limit: usize,
        read: &[(StreamId, Seq)],
    ) -> Result<Looked, AuthorityError> {
        if read.is_empty() {
            return Ok(Looked {
                progress: self.dirty_streams(after, limit).await?,
                events: BTreeMap::new(),
            });
        }
        let ids: Vec<&str> = read.iter().map(|(stream_id, _)| stream_id.as_str()).collect();
        let seqs: Vec<i64> = read.iter().map(|(_, seq)| seq.to_sql()).collect();
        self.connections
            .run("look", async |connection| {
                let rows = sqlx::query(concat!(
                    "select s.stream_id, s.head_seq, s.published_seq, s.floor_seq,
                            e.seq, e.idempotency_key, e.kind, e.payload, e.payload_hash, e.chain_hash, e.committed_at
                     from (
                       select stream_id, head_seq, published_seq, oldest_seq - 1 as floor_seq from runtime.sync_streams
                       where dirty and stream_id > $1 and ",
                    is_name!(),
                    " order by stream_id limit $2
                     ) s
                     left join unnest($3::text[], $4::bigint[]) r(stream_id, seq) on r.stream_id = s.stream_id
                     left join lateral (
                       select *
                       from (
                         select *, sum(octet_length(payload)) over (order by seq rows unbounded preceding) as bytes
                         from runtime.sync_stream_events
                         where stream_id = s.stream_id and seq > r.seq
                         order by seq limit $5
                       ) page
                       where bytes <= $6
                     ) e on true"
                ))
                .bind(after.map_or("", StreamId::as_str))
                .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                .bind(&ids)
                .bind(&seqs)
                .bind(LOOKED_EVENTS)
                .bind(LOOKED_BYTES)
                .fetch_all(connection)
                .await?;
                looked(&rows)
            })
            .await
    }

    /// All streams with ids after `after` to which something was ever appended, in order.
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

    /// Rows whose stream name is invalid. All other queries skip them.
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

    /// How far one stream has come. `None` if nothing was ever appended to it.
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

    /// Where these streams' logs end, and up to where they are published. A stream to which nothing was ever appended is
    /// missing.
    pub async fn heads(&self, streams: &[StreamId]) -> Result<Vec<StreamHead>, AuthorityError> {
        self.connections
            .run("heads", async |connection| {
                let rows = sqlx::query(
                    "select stream_id, head_seq, head_chain, published_seq from runtime.sync_streams
                     where stream_id = any($1) and head_seq > 0",
                )
                .bind(streams.iter().map(StreamId::as_str).collect::<Vec<_>>())
                .fetch_all(connection)
                .await?;
                rows.iter().map(head).collect()
            })
            .await
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
                    // The empty text sorts before every id, because no id is empty.
                    .bind(after.map_or("", StreamId::as_str))
                    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                    .fetch_all(connection)
                    .await?;
                rows.iter().map(position).collect()
            })
            .await
    }
}

/// Gathers the rows by stream, and puts streams and events in order, because a join has no order of its own. A stream with an
/// event that breaks the contract has no events here: its page says what is wrong, and all other streams go on.
fn looked(rows: &[PgRow]) -> Result<Looked, CallError> {
    let mut looked = Looked::default();
    let mut broken = BTreeSet::new();
    for row in rows {
        let progress = position(row)?;
        if row.try_get::<Option<i64>, _>(4)?.is_some() {
            let events: &mut Vec<Event> = looked.events.entry(progress.stream_id.clone()).or_default();
            match event(&progress.stream_id, row, 4, events.last().map(|event| &event.kind)) {
                Ok(event) => events.push(event),
                Err(CallError::Content(_)) => drop(broken.insert(progress.stream_id.clone())),
                Err(failed @ CallError::Driver(_)) => return Err(failed),
            }
        }
        looked.progress.push(progress);
    }
    looked.events.retain(|stream_id, _| !broken.contains(stream_id));
    looked
        .progress
        .sort_unstable_by(|one, other| one.stream_id.cmp(&other.stream_id));
    looked.progress.dedup();
    for events in looked.events.values_mut() {
        events.sort_unstable_by_key(|event| event.seq);
    }
    Ok(looked)
}

fn head(row: &PgRow) -> Result<StreamHead, CallError> {
    let stream_id = stream_id(row.try_get(0)?)?;
    let seq = |value, what| Seq::from_sql(value).ok_or_else(|| corrupt(&stream_id, value, what));
    let (head, published) = (row.try_get(1)?, row.try_get(3)?);
    Ok(StreamHead {
        seq: seq(head, "a head_seq")?,
        chain_hash: ChainHash::from_slice(row.try_get(2)?).ok_or_else(|| corrupt(&stream_id, head, "a chain hash"))?,
        published_seq: seq(published, "a published_seq")?,
        stream_id,
    })
}

fn position(row: &PgRow) -> Result<StreamProgress, CallError> {
    let stream_id = stream_id(row.try_get(0)?)?;
    let seq = |value, what| Seq::from_sql(value).ok_or_else(|| corrupt(&stream_id, value, what));
    Ok(StreamProgress {
        head_seq: seq(row.try_get(1)?, "a head_seq")?,
        published_seq: seq(row.try_get(2)?, "a published_seq")?,
        floor_seq: seq(row.try_get(3)?, "an oldest_seq")?,
        stream_id,
    })
}
