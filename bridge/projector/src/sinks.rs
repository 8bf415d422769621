//! Where documents go.

use std::sync::Arc;

use sqlx::{PgConnection, Row as _};

use super::telemetry::Telemetry;
use super::{Document, Outcome, ProjectError, Projected, TopicEvent};

/// Where a projector's documents go, and the runtime's events of topics.
pub trait Sink: Send + Sync {
    /// Projects a document, in the caller's transaction.
    fn project(
        &self,
        transaction: &mut PgConnection,
        document: &Document<'_>,
    ) -> impl Future<Output = Result<Projected, ProjectError>> + Send;

    /// Publishes an event of a topic, in the caller's transaction. To publish the same again changes nothing.
    fn publish(
        &self,
        transaction: &mut PgConnection,
        event: &TopicEvent<'_>,
    ) -> impl Future<Output = Result<Projected, ProjectError>> + Send;
}

/// The lane: `runtime.sync_project` and `runtime.sync_append`. Its transaction holds the lock of the stream until it ends, so project late and
/// commit soon.
#[derive(Debug, Clone, Default)]
pub struct PostgresSink {
    telemetry: Arc<Telemetry>,
}

impl PostgresSink {
    /// A sink that counts there what it does.
    pub fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { telemetry }
    }

    /// What it has done.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    async fn call(transaction: &mut PgConnection, document: &Document<'_>) -> Result<Projected, sqlx::Error> {
        // What PostgreSQL cannot hold is refused there as what is out of range.
        let source_seq = i64::try_from(document.source_seq).unwrap_or(i64::MAX);
        let version = i32::try_from(document.projection_version).unwrap_or(i32::MAX);
        let row = sqlx::query(
            "select outcome, seq, payload_hash, hydration_required, doc_key
             from runtime.sync_project($1, $2, $3, runtime.sync_checked_json($4::json), $5, $6)",
        )
        .bind(document.projection)
        .bind(document.entity_id)
        .bind(source_seq)
        .bind(document.json())
        .bind(document.stream_id)
        .bind(version)
        .fetch_one(transaction)
        .await?;
        let seq: Option<i64> = row.try_get(1)?;
        Ok(Projected {
            outcome: match row.try_get(0)? {
                "unchanged" => Outcome::Unchanged,
                "moved" => Outcome::Moved,
                _ => Outcome::Applied,
            },
            seq: seq.and_then(|seq| u64::try_from(seq).ok()),
            payload_hash: row.try_get(2)?,
            doc_key: row.try_get(4)?,
            hydration_required: row.try_get(3)?,
        })
    }

    async fn append(transaction: &mut PgConnection, event: &TopicEvent<'_>) -> Result<Projected, sqlx::Error> {
        let seq: i64 = sqlx::query_scalar("select runtime.sync_append($1, $2, $3, $4)")
            .bind(event.stream_id().as_str())
            .bind(event.idempotency_key())
            .bind(event.kind())
            .bind(event.payload().as_bytes())
            .fetch_one(transaction)
            .await?;
        Ok(Projected {
            outcome: Outcome::Applied,
            seq: u64::try_from(seq).ok(),
            payload_hash: Some(event.payload_hash().to_string()),
            doc_key: None,
            hydration_required: false,
        })
    }
}

impl Sink for PostgresSink {
    async fn project(
        &self,
        transaction: &mut PgConnection,
        document: &Document<'_>,
    ) -> Result<Projected, ProjectError> {
        let result = Self::call(transaction, document)
            .await
            .map_err(ProjectError::from_driver);
        let about = (document.projection(), document.entity_id(), document.source_seq());
        self.telemetry.note(about, &result);
        result
    }

    async fn publish(&self, transaction: &mut PgConnection, event: &TopicEvent<'_>) -> Result<Projected, ProjectError> {
        let result = Self::append(transaction, event)
            .await
            .map_err(ProjectError::from_driver);
        self.telemetry.note((event.topic(), "", event.seq()), &result);
        result
    }
}

/// Does nothing, and says so.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoopSink;

impl Sink for NoopSink {
    async fn project(&self, _: &mut PgConnection, _: &Document<'_>) -> Result<Projected, ProjectError> {
        Ok(IGNORED)
    }

    async fn publish(&self, _: &mut PgConnection, _: &TopicEvent<'_>) -> Result<Projected, ProjectError> {
        Ok(IGNORED)
    }
}

const IGNORED: Projected = Projected {
    outcome: Outcome::Ignored,
    seq: None,
    payload_hash: None,
    doc_key: None,
    hydration_required: false,
};
