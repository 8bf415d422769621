//! Reads what the comparison with SpacetimeDB needs to know about streams, and sets published seqs exactly.

use spacetime_sync_proto::{ChainHash, Seq, StreamId, StreamProgress};
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::error::{AuthorityError, CallError};
use super::published::not_advanced;
use super::{Advanced, Authority};

/// What the authority says about a stream and one seq in it, read in one statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// How far the stream has come; all zero if nothing was ever appended to it.
    pub progress: StreamProgress,
    /// The chain hash at the seq, if the authority holds it.
    pub chain: Option<ChainHash>,
}

const STANDINGS: &str = "
    select w.place, s.head_seq, s.published_seq, s.oldest_seq - 1, e.chain_hash
    from unnest($1::text[], $2::bigint[]) with ordinality as w(stream_id, seq, place)
    left join runtime.sync_streams s
      on s.stream_id >= w.stream_id collate \"C\" and s.stream_id <= w.stream_id collate \"C\"
    left join lateral (
      (select chain_hash from runtime.sync_stream_events
       where stream_id = w.stream_id collate \"C\" and seq >= w.seq and seq <= w.seq order by seq limit 1)
      union all
      (select s.floor_chain where s.oldest_seq > 1 and s.oldest_seq - 1 = w.seq)
      limit 1
    ) e on true";

// Moves no published seq above a head, and skips rows that writers hold. `free` leaves out rows that need no change.
const SET: &str = "
    with asked as (
      select w.stream_id, max(w.seq) as seq
      from unnest($1::text[], $2::bigint[]) as w(stream_id, seq) group by w.stream_id
    ), free as (
      select s.stream_id, s.head_seq, a.seq
      from asked a join runtime.sync_streams s
        on s.stream_id >= a.stream_id collate \"C\" and s.stream_id <= a.stream_id collate \"C\"
      where s.published_seq <> a.seq
      for no key update of s skip locked
    ), moved as (
      update runtime.sync_streams s set published_seq = f.seq, published_at = clock_timestamp()
      from free f
      where s.stream_id >= f.stream_id and s.stream_id <= f.stream_id and f.seq <= f.head_seq
    )
    select a.stream_id, coalesce(f.stream_id is null and s.stream_id is not null, false) as locked
    from asked a
    left join runtime.sync_streams s
      on s.stream_id >= a.stream_id collate \"C\" and s.stream_id <= a.stream_id collate \"C\"
    left join free f on f.stream_id = a.stream_id collate \"C\"
    where coalesce(s.published_seq, 0) <> a.seq and (f.stream_id is null or f.seq > f.head_seq)";

impl Authority {
    /// What the authority says about each stream and a seq in it, in the same order. A row that breaks the contract has an
    /// error in its place.
    pub async fn standings(
        &self,
        at: &[(StreamId, Seq)],
    ) -> Result<Vec<Result<Standing, AuthorityError>>, AuthorityError> {
        let ids: Vec<&str> = at.iter().map(|(stream_id, _)| stream_id.as_str()).collect();
        let seqs: Vec<i64> = at.iter().map(|(_, seq)| seq.to_sql()).collect();
        self.connections
            .run("standings", async |connection: &mut PgConnection| {
                let rows = sqlx::query(STANDINGS)
                    .bind(&ids)
                    .bind(&seqs)
                    .fetch_all(connection)
                    .await?;
                let mut standings: Vec<_> = at.iter().map(|(stream_id, seq)| Ok(nothing(stream_id, *seq))).collect();
                for row in &rows {
                    let place: i64 = row.try_get(0)?;
                    // Places count from 1.
                    let place = usize::try_from(place - 1).unwrap_or(usize::MAX);
                    if let (Some(standing), Some((stream_id, seq))) = (standings.get_mut(place), at.get(place)) {
                        *standing = match read(row, stream_id, *seq) {
                            Ok(read) => Ok(read),
                            Err(CallError::Content(error)) => Err(error),
                            Err(error @ CallError::Driver(_)) => return Err(error),
                        };
                    }
                }
                Ok(standings)
            })
            .await
    }

    /// Sets the published seqs of streams to exactly these, forwards or backwards. One statement sets all of them. It never
    /// sets one above its head, and never waits for a writer.
    pub async fn set_published(&self, to: &[(StreamId, Seq)]) -> Result<Advanced, AuthorityError> {
        let ids: Vec<&str> = to.iter().map(|(stream_id, _)| stream_id.as_str()).collect();
        let seqs: Vec<i64> = to.iter().map(|(_, seq)| seq.to_sql()).collect();
        self.connections
            .run("set_published", async |connection: &mut PgConnection| {
                let rows = sqlx::query(SET).bind(&ids).bind(&seqs).fetch_all(connection).await?;
                not_advanced(&rows)
            })
            .await
    }
}

/// The standing of a stream to which nothing was ever appended.
fn nothing(stream_id: &StreamId, at: Seq) -> Standing {
    Standing {
        progress: StreamProgress {
            stream_id: stream_id.clone(),
            head_seq: Seq::ZERO,
            published_seq: Seq::ZERO,
            floor_seq: Seq::ZERO,
        },
        chain: (at == Seq::ZERO).then(|| ChainHash::genesis(stream_id)),
    }
}

fn read(row: &PgRow, stream_id: &StreamId, at: Seq) -> Result<Standing, CallError> {
    let corrupt = |seq: i64, what| {
        CallError::Content(AuthorityError::Corrupt {
            stream_id: stream_id.as_str().to_owned(),
            seq,
            what,
        })
    };
    let mut standing = nothing(stream_id, at);
    let Some(head): Option<i64> = row.try_get(1)? else {
        return Ok(standing);
    };
    let seq = |value: i64, what| Seq::from_sql(value).ok_or_else(|| corrupt(value, what));
    standing.progress.head_seq = seq(head, "a head_seq")?;
    standing.progress.published_seq = seq(row.try_get(2)?, "a published_seq")?;
    standing.progress.floor_seq = seq(row.try_get(3)?, "an oldest_seq")?;
    let chain: Option<&[u8]> = row.try_get(4)?;
    if let Some(bytes) = chain {
        let chain = ChainHash::from_slice(bytes).ok_or_else(|| corrupt(at.to_sql(), "a chain hash"))?;
        standing.chain = Some(chain);
    }
    Ok(standing)
}
