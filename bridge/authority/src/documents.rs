//! Reads a stream's documents for clients over HTTP: pages of them as of a position, and the content of one.

use spacetime_sync_proto::document::{self, Pointer};
use spacetime_sync_proto::page::PAGE_EVENTS;
use spacetime_sync_proto::{PayloadHash, Seq, StreamId};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection as _, Row as _};

use super::error::CallError;
use super::history::History;
use super::log::chain_at;
use super::retention::{Extent, corrupt, extent_of};
use super::{Authority, AuthorityError};

/// So many rows are looked at for one page: those that are shown, those that are deleted, and those that have changed since.
const LOOKED_AT: usize = 2 * document::PAGE_DOCUMENTS;
/// As far behind the head, what is published is a position to read at. The events from there fill one page of the log.
const NEAR: u64 = PAGE_EVENTS as u64;

/// A part of a stream's documents as of a position, and what a caller needs to check that position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentsRead {
    /// The position: the one asked for, or the one chosen.
    pub at: Seq,
    /// The log at that moment, without events.
    pub log: History,
    /// The documents, in the order of their keys. None if the log does not reach the position.
    pub rows: Vec<DocumentRow>,
    /// The last key that was looked at. `None` if there is none after it.
    pub next_after: Option<String>,
}

/// A document as the read model holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentRow {
    /// Its key.
    pub key: String,
    /// The seq, in its source, of what it was made of last.
    pub version: u64,
    /// The seq of the event that told of it.
    pub seq: Seq,
    /// The hash and length that its canonical JSON is said to have.
    pub pointer: Pointer,
    /// Its JSON as Postgres writes it. `None` if its event holds a pointer.
    pub json: Option<String>,
}

impl Authority {
    /// Reads the documents that come after a key, as they were at a seq: at most `most` of them, and few enough rows and bytes.
    /// Without a seq it chooses one that the log continues, and that SpacetimeDB holds if it is not far behind. One transaction
    /// reads everything, so that the position, the log and the documents are of one moment.
    pub async fn documents(
        &self,
        stream_id: &StreamId,
        at: Option<Seq>,
        after: Option<&str>,
        most: usize,
    ) -> Result<DocumentsRead, AuthorityError> {
        self.connections
            .run("documents", async |connection| {
                let mut moment = connection
                    .begin_with("begin isolation level repeatable read read only")
                    .await?;
                let read = documents(&mut moment, stream_id, at, after, most).await?;
                moment.commit().await?;
                Ok(read)
            })
            .await
    }

    /// The JSON of a stream's document as Postgres writes it, if the newest version is said to have this hash.
    pub async fn document(
        &self,
        stream_id: &StreamId,
        key: &str,
        hash: PayloadHash,
    ) -> Result<Option<String>, AuthorityError> {
        self.connections
            .run("document", async |connection| {
                let json = sqlx::query_scalar(
                    "select document::text from runtime.sync_documents
                     where stream_id = $1 and doc_key >= $2 and doc_key <= $2 and payload_hash = $3 and document is not null
                     order by doc_key limit 1",
                )
                .bind(stream_id.as_str())
                .bind(key)
                .bind(&hash.as_bytes()[..])
                .fetch_optional(connection)
                .await?;
                Ok(json)
            })
            .await
    }
}

/// One page. What is counted before a row is what the page already holds, so that its last document may pass the bound. A document
/// is written as text only if it is shown. The last row that is looked at comes even if it is not, because the next page begins
/// after it.
const PAGE: &str = "
    select doc_key, nth, is_last, is_shown, doc_version, seq, payload_hash, payload_bytes::bigint,
      case when is_shown and not hydration_required then document::text end
    from (
      select *, row_number() over page as nth, lead(doc_key) over page is null as is_last,
        count(*) filter (where is_shown) over before as documents,
        sum(octet_length(doc_key) + case when hydration_required then 0 else payload_bytes end)
          filter (where is_shown) over before as bytes
      from (
        select doc_key, doc_version, seq, payload_hash, payload_bytes, hydration_required, document,
          document is not null and seq <= $3 as is_shown
        from runtime.sync_documents
        where stream_id = $1 and doc_key > $2
        order by doc_key limit $4
      ) looked_at
      window page as (order by doc_key), before as (page rows between unbounded preceding and 1 preceding)
    ) counted
    where documents < $5 and coalesce(bytes, 0) < $6 and (is_shown or is_last)
    order by doc_key";

async fn documents(
    connection: &mut PgConnection,
    stream_id: &StreamId,
    at: Option<Seq>,
    after: Option<&str>,
    most: usize,
) -> Result<DocumentsRead, CallError> {
    let extent = extent_of(&mut *connection, stream_id).await?;
    let at = match (at, &extent) {
        (Some(at), _) => at,
        (None, Some(extent)) => position(published(&mut *connection, stream_id).await?, extent),
        (None, None) => Seq::ZERO,
    };
    let chain = chain_at(&mut *connection, stream_id, at).await?;
    let reaches = |extent: &Extent| chain.is_some() && extent.floor() <= at && at <= extent.head_seq;
    let (rows, next_after) = if extent.as_ref().is_some_and(reaches) {
        read_page(&mut *connection, stream_id, at, after.unwrap_or_default(), most).await?
    } else {
        (Vec::new(), None)
    };
    let log = History {
        extent,
        chain,
        events: Vec::new(),
    };
    Ok(DocumentsRead {
        at,
        log,
        rows,
        next_after,
    })
}

/// The seq to read at: what SpacetimeDB holds, so that its rows continue the documents, or else the head.
fn position(published: Seq, extent: &Extent) -> Seq {
    let continues = published >= extent.floor() && published <= extent.head_seq;
    if continues && extent.head_seq.since(published) <= NEAR {
        published
    } else {
        extent.head_seq
    }
}

async fn published(connection: &mut PgConnection, stream_id: &StreamId) -> Result<Seq, CallError> {
    let published: i64 = sqlx::query_scalar(
        "select published_seq from runtime.sync_streams where stream_id >= $1 and stream_id <= $1 order by stream_id limit 1",
    )
    .bind(stream_id.as_str())
    .fetch_one(connection)
    .await?;
    Seq::from_sql(published).ok_or_else(|| corrupt(stream_id, published, "a published_seq"))
}

async fn read_page(
    connection: &mut PgConnection,
    stream_id: &StreamId,
    at: Seq,
    after: &str,
    most: usize,
) -> Result<(Vec<DocumentRow>, Option<String>), CallError> {
    let sql = |most: usize| i64::try_from(most).unwrap_or(i64::MAX);
    let read = sqlx::query(PAGE)
        .bind(stream_id.as_str())
        .bind(after)
        .bind(at.to_sql())
        .bind(sql(LOOKED_AT))
        .bind(sql(most))
        .bind(sql(document::PAGE_BYTES))
        .fetch_all(connection)
        .await?;
    let Some(last) = read.last() else {
        return Ok((Vec::new(), None));
    };
    let (nth, is_last): (i64, bool) = (last.try_get(1)?, last.try_get(2)?);
    let next_after = if is_last && nth < sql(LOOKED_AT) {
        None
    } else {
        Some(last.try_get(0)?)
    };
    let mut rows = Vec::with_capacity(read.len());
    for row in &read {
        if row.try_get(3)? {
            rows.push(document_row(stream_id, row)?);
        }
    }
    Ok((rows, next_after))
}

fn document_row(stream_id: &StreamId, row: &PgRow) -> Result<DocumentRow, CallError> {
    let (version, seq, bytes): (i64, i64, Option<i64>) = (row.try_get(4)?, row.try_get(5)?, row.try_get(7)?);
    let hash: Option<&[u8]> = row.try_get(6)?;
    let corrupt = |what| corrupt(stream_id, seq, what);
    Ok(DocumentRow {
        key: row.try_get(0)?,
        version: u64::try_from(version).map_err(|_| corrupt("a document's version"))?,
        seq: Seq::from_sql(seq).ok_or_else(|| corrupt("a document's seq"))?,
        pointer: Pointer {
            hash: hash
                .and_then(PayloadHash::from_slice)
                .ok_or_else(|| corrupt("a document's hash"))?,
            bytes: bytes
                .and_then(|bytes| u64::try_from(bytes).ok())
                .ok_or_else(|| corrupt("a document's length"))?,
        },
        json: row.try_get(8)?,
    })
}

#[cfg(test)]
mod tests {
    use spacetime_sync_proto::ChainHash;

    use super::*;

    fn seq(value: u64) -> Seq {
        Seq::new(value).unwrap()
    }

    #[test]
    fn documents_are_read_at_what_is_published_while_the_log_continues_it_and_it_is_near() {
        let stream_id = StreamId::new("s").unwrap();
        let at = |floor: u64, published: u64, head: u64| {
            let extent = Extent {
                oldest_seq: seq(floor).next(),
                floor_chain: ChainHash::genesis(&stream_id),
                head_seq: seq(head),
                head_chain: ChainHash::genesis(&stream_id),
                window_events: None,
                replay_budget_events: None,
                snapshot_seq: None,
            };
            position(seq(published), &extent).get()
        };
        assert_eq!(at(0, 0, 10), 0, "nothing is published yet");
        assert_eq!(at(0, 10, 10), 10);
        assert_eq!(at(7, 7, 10), 7);
        assert_eq!(at(8, 7, 10), 10, "purged");
        assert_eq!(at(0, 1_000, 5_000), 1_000);
        assert_eq!(at(0, 1_000, 5_001), 5_001, "more than a page behind");
        assert_eq!(at(0, 11, 10), 10, "ahead of the log");
    }
}
