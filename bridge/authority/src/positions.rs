//! Reads how far streams have come: their heads, published seqs and floors.

use spacetime_sync_proto::heads::StreamHead;
use spacetime_sync_proto::{ChainHash, Seq, StreamId, StreamProgress};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::error::CallError;
use super::retention::corrupt;
use super::{Authority, AuthorityError, is_name, stream_id};

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
