//! Reads a stream's log: pages of events, and chain hashes.

use bytes::Bytes;
use futures_util::TryStreamExt;
use spacetime_sync_proto::{ChainHash, Event, IdempotencyKey, Kind, PayloadHash, Seq, StreamId};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgConnection, PgRow, PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Row, Type};

use super::Authority;
use super::error::{AuthorityError, CallError};

impl Authority {
    /// The events after a seq, in order: at most `max_events`, and at most `max_bytes` of payload, but always the first event.
    /// Empty at the head.
    pub async fn read_events(
        &self,
        stream_id: &StreamId,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Vec<Event>, AuthorityError> {
        self.connections
            .run("read_events", async |connection| {
                read_events(connection, stream_id, after, max_events, max_bytes).await
            })
            .await
    }

    /// The chain hash at a seq. `None` if the log ends before it, or if the event after it is purged as well. At seq 0 it is
    /// the chain hash of the empty log, even if the stream does not exist.
    pub async fn chain_at(&self, stream_id: &StreamId, seq: Seq) -> Result<Option<ChainHash>, AuthorityError> {
        self.connections
            .run("chain_at", async |connection| {
                chain_at(connection, stream_id, seq).await
            })
            .await
    }
}

/// One page. The window function counts the bytes on the server, so that events past the bound never leave it.
/// `octet_length` does not read a payload that is stored out of line. The first event always comes, however large.
const PAGE: &str = "
    select seq, idempotency_key, kind, payload, payload_hash, chain_hash, committed_at
    from (
      select *, sum(octet_length(payload)) over (order by seq rows unbounded preceding) as bytes
      from runtime.sync_stream_events
      where stream_id = $1 and seq > $2
      order by seq limit $3
    ) page
    where bytes <= $4 or bytes = octet_length(payload)
    order by seq";

/// Postgres counts microseconds since 2000-01-01, the contract since 1970-01-01.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

pub(super) async fn read_events(
    connection: &mut PgConnection,
    stream_id: &StreamId,
    after: Seq,
    max_events: usize,
    max_bytes: usize,
) -> Result<Vec<Event>, CallError> {
    let limit = i64::try_from(max_events).unwrap_or(i64::MAX);
    let mut rows = sqlx::query(PAGE)
        .bind(stream_id.as_str())
        .bind(after.to_sql())
        .bind(limit)
        .bind(i64::try_from(max_bytes).unwrap_or(i64::MAX))
        .fetch(connection);
    let mut events: Vec<Event> = Vec::with_capacity(max_events.min(1_000));
    while let Some(row) = rows.try_next().await? {
        let event = event(stream_id, &row, 0, events.last().map(|event| &event.kind))?;
        events.push(event);
    }
    Ok(events)
}

pub(super) async fn chain_at(
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

/// The chain hash in a column.
fn chain_hash(stream_id: &StreamId, seq: Seq, bytes: &[u8]) -> Result<ChainHash, AuthorityError> {
    ChainHash::from_slice(bytes).ok_or_else(|| AuthorityError::Corrupt {
        stream_id: stream_id.as_str().to_owned(),
        seq: seq.to_sql(),
        what: "a chain hash",
    })
}

/// The event in the columns of a row from `column` on.
pub(super) fn event(
    stream_id: &StreamId,
    row: &PgRow,
    column: usize,
    last_kind: Option<&Kind>,
) -> Result<Event, CallError> {
    let seq: i64 = row.try_get(column)?;
    let corrupt = |what| {
        CallError::Content(AuthorityError::Corrupt {
            stream_id: stream_id.as_str().to_owned(),
            seq,
            what,
        })
    };
    let key: &str = row.try_get(column + 1)?;
    let kind: &str = row.try_get(column + 2)?;
    let payload: &[u8] = row.try_get(column + 3)?;
    let payload_hash: &[u8] = row.try_get(column + 4)?;
    let chain_hash: &[u8] = row.try_get(column + 5)?;
    // Postgres has times that are not moments, such as infinity.
    let Timestamp(committed_at_us) = row.try_get(column + 6).map_err(|_| corrupt("a time"))?;
    Ok(Event {
        seq: Seq::from_sql(seq).ok_or_else(|| corrupt("a position"))?,
        idempotency_key: IdempotencyKey::new(key).map_err(|_| corrupt("a key"))?,
        // Neighbouring events mostly have the same kind. Sharing it saves a check and an allocation.
        kind: match last_kind {
            Some(last) if last.as_str() == kind => last.clone(),
            _ => Kind::new(kind).map_err(|_| corrupt("a kind"))?,
        },
        payload: Bytes::copy_from_slice(payload),
        payload_hash: PayloadHash::from_slice(payload_hash).ok_or_else(|| corrupt("a payload hash"))?,
        chain_hash: ChainHash::from_slice(chain_hash).ok_or_else(|| corrupt("a chain hash"))?,
        committed_at_us,
    })
}

/// A `timestamptz` as microseconds since 1970-01-01 UTC.
pub(super) struct Timestamp(pub(super) i64);

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz")
    }

    fn compatible(_: &PgTypeInfo) -> bool {
        true
    }
}

impl<'r> sqlx::Decode<'r, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        // The driver prepares statements, so results are binary.
        let since_2000 = i64::from_be_bytes(value.as_bytes()?.try_into()?);
        since_2000
            .checked_add(POSTGRES_EPOCH_US)
            .map(Self)
            .ok_or_else(|| "a time out of range".into())
    }
}
