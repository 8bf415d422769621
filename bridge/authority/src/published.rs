//! Records published seqs.

use spacetime_sync_proto::{Seq, StreamId};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::error::CallError;
use super::{Authority, AuthorityError, stream_id};

/// The streams that [`Authority::advance_published`] or [`Authority::set_published`] could not move. All others are done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advanced {
    /// A writer holds the row: try again later.
    pub locked: Vec<StreamId>,
    /// The authority's log ends before the seq: it has lost events that SpacetimeDB holds.
    pub above_head: Vec<StreamId>,
}

impl Authority {
    /// Records that SpacetimeDB durably holds these streams up to these seqs. One statement moves all of them. It never moves
    /// one back or above its head, and never waits for a writer.
    pub async fn advance_published(&self, to: &[(StreamId, Seq)]) -> Result<Advanced, AuthorityError> {
        if to.is_empty() {
            return Ok(Advanced::default());
        }
        let ids: Vec<&str> = to.iter().map(|(stream_id, _)| stream_id.as_str()).collect();
        let seqs: Vec<i64> = to.iter().map(|(_, seq)| seq.to_sql()).collect();
        self.connections
            .run("advance_published", async |connection| {
                // `free` leaves out rows that need no change, so that a repeat writes nothing and meets no lock. A missing
                // row counts as a log of length 0.
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
                not_advanced(&rows)
            })
            .await
    }

    /// Sets a stream's published seq back, because SpacetimeDB holds less than was recorded. It never moves it forwards, and
    /// it waits for a writer that holds the row.
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
}

/// Reads which streams a statement could not move. Each row names one, and says whether a writer holds its row.
pub(crate) fn not_advanced(rows: &[PgRow]) -> Result<Advanced, CallError> {
    let mut advanced = Advanced::default();
    for row in rows {
        let id = stream_id(row.try_get(0)?)?;
        if row.try_get(1)? {
            advanced.locked.push(id);
        } else {
            advanced.above_head.push(id);
        }
    }
    Ok(advanced)
}
