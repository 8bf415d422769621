//! Projects documents inside the runtime's own transaction: what a projector makes of the runtime's events is written into its
//! read model, and its stream hears of it, both or neither.
//!
//! A projector calls [`Sink::project`] with the transaction in which it reads what happened. Which sink that is, the application
//! decides once: [`PostgresSink`] for the lane, [`NoopSink`] for none, and [`DualSink`] for the lane and a legacy lane that it is to
//! replace. A sink of one's own implements the trait. What is no document, but an event of a topic, goes by [`Sink::publish`].
//!
//! ```
//! use serde::Serialize;
//! use spacetime_sync_projector::{Document, ProjectError, Projected, Sink};
//! use sqlx::PgConnection;
//!
//! #[derive(Serialize)]
//! struct RunSummary {
//!     status: &'static str,
//!     steps: u32,
//! }
//!
//! async fn project(
//!     sink: &impl Sink,
//!     transaction: &mut PgConnection,
//!     run_id: &str,
//!     runtime_seq: u64,
//! ) -> Result<Projected, ProjectError> {
//!     let summary = RunSummary { status: "running", steps: 3 };
//!     let document = Document::of("run_summaries", run_id, runtime_seq, &summary)?;
//!     sink.project(transaction, &document).await
//! }
//! ```
//!
//! A document holds texts, integers below 2^53, booleans, nulls, arrays and objects, and fractions as texts, so that every language
//! makes the same bytes of it. This crate holds neither a connection nor a task, commits nothing, and tries nothing again: after an
//! error, the caller rolls its transaction back.

mod error;
mod legacy;
mod sinks;
mod telemetry;
mod topic_event;

use serde::Serialize;

pub use error::ProjectError;
pub use legacy::{DualSink, Emission, LegacySink, LegacyTable};
pub use sinks::{NoopSink, PostgresSink, Sink};
pub use telemetry::{Counts, Telemetry};
pub use topic_event::TopicEvent;

/// What a projector has made of an entity.
#[derive(Debug)]
pub struct Document<'a> {
    projection: &'a str,
    entity_id: &'a str,
    source_seq: u64,
    projection_version: u32,
    stream_id: Option<&'a str>,
    content: Option<String>,
}

impl<'a> Document<'a> {
    /// The document of an entity, after the runtime's event with this seq.
    pub fn of(
        projection: &'a str,
        entity_id: &'a str,
        source_seq: u64,
        content: &impl Serialize,
    ) -> Result<Self, ProjectError> {
        let content = serde_json::to_string(content).map_err(|source| ProjectError::Unwritable {
            document: format!("{projection} {entity_id}"),
            source,
        })?;
        Ok(Self {
            content: Some(content),
            ..Self::deleted(projection, entity_id, source_seq)
        })
    }

    /// The entity is gone since the runtime's event with this seq.
    pub fn deleted(projection: &'a str, entity_id: &'a str, source_seq: u64) -> Self {
        Self {
            projection,
            entity_id,
            source_seq,
            projection_version: 1,
            stream_id: None,
            content: None,
        }
    }

    /// It is made by this version of the projector's code. Begins at 1, and never goes back.
    #[must_use]
    pub fn version(mut self, projection_version: u32) -> Self {
        self.projection_version = projection_version;
        self
    }

    /// This stream hears of it, and not the one that the projection has for all.
    #[must_use]
    pub fn on(mut self, stream_id: &'a str) -> Self {
        self.stream_id = Some(stream_id);
        self
    }

    /// The projection.
    pub fn projection(&self) -> &str {
        self.projection
    }

    /// The entity.
    pub fn entity_id(&self) -> &str {
        self.entity_id
    }

    /// The seq, in the runtime, of the last event that is in it.
    pub fn source_seq(&self) -> u64 {
        self.source_seq
    }

    /// The JSON of it. `None` if it is deleted.
    pub fn json(&self) -> Option<&str> {
        self.content.as_deref()
    }
}

/// What a sink did with a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is new or another one, or its source is further.
    Applied,
    /// It is held already.
    Unchanged,
    /// As applied, and it was in another stream before, where it is deleted now.
    Moved,
    /// The sink does nothing.
    Ignored,
}

/// What became of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projected {
    /// What the sink did.
    pub outcome: Outcome,
    /// The seq of the event that tells of it. `None` if the sink has none.
    pub seq: Option<u64>,
    /// `sha256:` and the hash of its canonical JSON. `None` if it is deleted, or the sink has none.
    pub payload_hash: Option<String>,
    /// The key of the document in its stream. `None` if the sink has none, and of what is no document.
    pub doc_key: Option<String>,
    /// Whether its event holds a pointer, because the document is too large for its stream.
    pub hydration_required: bool,
}
