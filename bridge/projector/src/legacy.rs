//! A lane and a legacy lane side by side, until one replaces the other.

use serde_json::json;
use spacetime_sync_proto::access::Topic;
use spacetime_sync_proto::document::{DELETE, PUT};
use spacetime_sync_proto::{PayloadHash, StreamId, canonical_json, sql_name};
use sqlx::{Executor as _, PgConnection};

use super::{Document, Outcome, ProjectError, Projected, Sink, TopicEvent};

/// What a legacy lane is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Emission<'a> {
    /// The topic.
    pub topic: &'a str,
    /// For an event of a topic the runtime's count; for a document the seq of the event by which its stream hears of it.
    pub seq: u64,
    /// What the payload is: `document.put` or `document.delete` for documents.
    pub kind: &'a str,
    /// Canonical JSON: the event's, or the whole document, even where the lane's event holds a pointer.
    pub payload: &'a str,
    /// The hash of that.
    pub payload_hash: PayloadHash,
}

/// A legacy lane.
pub trait LegacySink: Send + Sync {
    /// Tells it, in the caller's transaction. The lane may say the same event twice, and means it once.
    fn emit(
        &self,
        transaction: &mut PgConnection,
        emission: &Emission<'_>,
    ) -> impl Future<Output = Result<(), ProjectError>> + Send;
}

/// The lane and a legacy lane in one transaction: both or neither, whatever the caller does with the transaction after an error,
/// because a savepoint stands before both. Outside a transaction there is none, and it refuses to work. The lane comes first, because
/// its seq and whether anything has changed are what the legacy lane is told; so the stream's lock is held while the legacy sink
/// works.
///
/// A document that moves to another stream is told of there. That it is deleted where it was, the legacy lane does not hear.
#[derive(Debug, Clone, Default)]
pub struct DualSink<Lane, Legacy> {
    lane: Lane,
    legacy: Legacy,
}

impl<Lane: Sink, Legacy: LegacySink> DualSink<Lane, Legacy> {
    /// Both of them.
    pub fn new(lane: Lane, legacy: Legacy) -> Self {
        Self { lane, legacy }
    }

    /// The lane's sink.
    pub fn lane(&self) -> &Lane {
        &self.lane
    }

    /// The stream that hears of a document.
    async fn stream_of(transaction: &mut PgConnection, document: &Document<'_>) -> Result<String, ProjectError> {
        if let Some(stream_id) = document.stream_id {
            return Ok(stream_id.to_owned());
        }
        // The lane has taken the document, so there is such a projection, and it has a stream.
        sqlx::query_scalar("select stream from runtime.sync_projections where projection = $1")
            .bind(document.projection())
            .fetch_one(transaction)
            .await
            .map_err(ProjectError::from_driver)
    }
}

impl<Lane: Sink, Legacy: LegacySink> DualSink<Lane, Legacy> {
    async fn project_both(
        &self,
        transaction: &mut PgConnection,
        document: &Document<'_>,
    ) -> Result<Projected, ProjectError> {
        let name = || format!("{} {}", document.projection(), document.entity_id());
        let projected = self.lane.project(&mut *transaction, document).await?;
        let seq = match (projected.outcome, projected.seq) {
            (Outcome::Unchanged, _) => return Ok(projected),
            (Outcome::Applied | Outcome::Moved, Some(seq)) => seq,
            (Outcome::Applied | Outcome::Moved | Outcome::Ignored, _) => {
                return Err(ProjectError::NoSeq { document: name() });
            }
        };
        let stream_id = Self::stream_of(&mut *transaction, document).await?;
        let topic = StreamId::new(&stream_id).ok().and_then(|id| Topic::of_stream(&id));
        let topic = topic.ok_or(ProjectError::NoTopic { stream_id })?;
        let (kind, content) = match document.json() {
            Some(json) => (PUT, json.to_owned()),
            // What the lane's event says of it.
            None => (
                DELETE,
                json!({ "deleted": true, "doc_key": projected.doc_key, "doc_version": document.source_seq() })
                    .to_string(),
            ),
        };
        let payload = canonical_json(content.as_bytes()).map_err(|source| ProjectError::NotCanonical {
            document: name(),
            source,
        })?;
        let emission = Emission {
            topic: topic.as_str(),
            seq,
            kind,
            payload_hash: PayloadHash::of(payload.as_bytes()),
            payload: &payload,
        };
        self.legacy.emit(transaction, &emission).await?;
        Ok(projected)
    }

    async fn publish_both(
        &self,
        transaction: &mut PgConnection,
        event: &TopicEvent<'_>,
    ) -> Result<Projected, ProjectError> {
        let projected = self.lane.publish(&mut *transaction, event).await?;
        let emission = Emission {
            topic: event.topic(),
            seq: event.seq(),
            kind: event.kind(),
            payload: event.payload(),
            payload_hash: *event.payload_hash(),
        };
        self.legacy.emit(transaction, &emission).await?;
        Ok(projected)
    }
}

impl<Lane: Sink, Legacy: LegacySink> Sink for DualSink<Lane, Legacy> {
    async fn project(
        &self,
        transaction: &mut PgConnection,
        document: &Document<'_>,
    ) -> Result<Projected, ProjectError> {
        begin(transaction).await?;
        let projected = self.project_both(transaction, document).await;
        end(transaction, projected).await
    }

    async fn publish(&self, transaction: &mut PgConnection, event: &TopicEvent<'_>) -> Result<Projected, ProjectError> {
        begin(transaction).await?;
        let projected = self.publish_both(transaction, event).await;
        end(transaction, projected).await
    }
}

async fn begin(transaction: &mut PgConnection) -> Result<(), ProjectError> {
    let done = transaction.execute("savepoint spacetime_sync_both_lanes").await;
    done.map(drop).map_err(ProjectError::from_driver)
}

/// Keeps what both lanes have taken, or undoes what one of them has.
async fn end(
    transaction: &mut PgConnection,
    result: Result<Projected, ProjectError>,
) -> Result<Projected, ProjectError> {
    let statement = match &result {
        Ok(_) => "release savepoint spacetime_sync_both_lanes",
        Err(_) => "rollback to savepoint spacetime_sync_both_lanes; release savepoint spacetime_sync_both_lanes",
    };
    let done = transaction.execute(statement).await;
    let projected = result?;
    done.map_err(ProjectError::from_driver)?;
    Ok(projected)
}

/// A legacy lane that is a table, or of which a table keeps what it was told, so that `spacetime-sync parity` can compare it:
///
/// ```sql
/// create table public.legacy_events (
///   topic text, seq bigint, kind text, payload_hash text, primary key (topic, seq));
/// ```
#[derive(Debug, Clone)]
pub struct LegacyTable {
    insert: String,
}

impl LegacyTable {
    /// The table with this name in this schema, both as Postgres has them. The caller makes it, with a key of topic and seq.
    pub fn new(schema: &str, table: &str) -> Self {
        // A repeat changes nothing, and nothing comes back if another event is there.
        let insert = format!(
            "insert into {}.{} as held (topic, seq, kind, payload_hash) values ($1, $2, $3, $4)
             on conflict (topic, seq) do update set payload_hash = excluded.payload_hash
             where held.kind = excluded.kind and held.payload_hash = excluded.payload_hash",
            sql_name(schema),
            sql_name(table)
        );
        Self { insert }
    }
}

impl LegacySink for LegacyTable {
    async fn emit(&self, transaction: &mut PgConnection, emission: &Emission<'_>) -> Result<(), ProjectError> {
        let payload_hash = emission.payload_hash.to_string();
        let done = sqlx::query(&self.insert)
            .bind(emission.topic)
            // What Postgres cannot hold is refused there as what is out of range.
            .bind(i64::try_from(emission.seq).unwrap_or(i64::MAX))
            .bind(emission.kind)
            .bind(&payload_hash)
            .execute(transaction)
            .await
            .map_err(|error| match ProjectError::from_driver(error) {
                // Its hint is about the lane.
                ProjectError::Failed { source } => ProjectError::Other {
                    sink: "the legacy table",
                    source: source.into(),
                },
                error => error,
            })?;
        if done.rows_affected() == 0 {
            return Err(ProjectError::LegacyConflict {
                topic: emission.topic.to_owned(),
                seq: emission.seq,
                payload_hash,
            });
        }
        Ok(())
    }
}
