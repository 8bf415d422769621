//! Appends events, for tools and tests. The runtime calls the SQL functions inside its own transactions.

use bytes::Bytes;
use spacetime_sync_proto::{IdempotencyKey, Kind, Seq, StreamId};

use super::error::CallError;
use super::{Authority, AuthorityError};

/// An event to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// The key, which is unique in the stream.
    pub idempotency_key: IdempotencyKey,
    /// The kind of the payload.
    pub kind: Kind,
    /// The runtime's bytes.
    pub payload: Bytes,
}

impl Authority {
    /// Appends one event in a transaction of its own.
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

    /// Appends at most 10,000 events in one transaction of its own, and returns their seqs in the same order.
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
