//! Where documents go.

use std::sync::Arc;

use sqlx::{PgConnection, Row as _};

use super::telemetry::Telemetry;
use super::{Document, Outcome, ProjectError, Projected};

/// Where a projector's documents go.
pub trait Sink: Send + Sync {
    /// Projects a document, in the caller's transaction.
    fn project(
        &self,
        transaction: &mut PgConnection,
        document: &Document<'_>,
    ) -> impl Future<Output = Result<Projected, ProjectError>> + Send;
}

/// The lane: `runtime.sync_project`. Its transaction holds the lock of the document's stream until it ends, so project late and
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
            "select outcome, seq, payload_hash, hydration_required
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
            hydration_required: row.try_get(3)?,
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
        self.telemetry.note(document, &result);
        result
    }
}

/// Does nothing, and says so.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoopSink;

impl Sink for NoopSink {
    async fn project(&self, _: &mut PgConnection, _: &Document<'_>) -> Result<Projected, ProjectError> {
        Ok(Projected {
            outcome: Outcome::Ignored,
            seq: None,
            payload_hash: None,
            hydration_required: false,
        })
    }
}

/// Two sinks in one transaction: first one, then the other, both or neither. What the second says counts.
#[derive(Debug, Clone, Default)]
pub struct DualSink<First, Second> {
    first: First,
    second: Second,
}

impl<First: Sink, Second: Sink> DualSink<First, Second> {
    /// Both of them. The lane comes second, because it holds the lock of a stream from then on.
    pub fn new(first: First, second: Second) -> Self {
        Self { first, second }
    }
}

impl<First: Sink, Second: Sink> Sink for DualSink<First, Second> {
    async fn project(
        &self,
        transaction: &mut PgConnection,
        document: &Document<'_>,
    ) -> Result<Projected, ProjectError> {
        self.first.project(&mut *transaction, document).await?;
        self.second.project(transaction, document).await
    }
}
