//! Why a document was not projected.

use spacetime_sync_proto::InvalidId;
use spacetime_sync_proto::canonical::NotADocument;
use sqlx::postgres::PgDatabaseError;

/// Why a document was not projected, or an event not published. After what Postgres refused, the caller's transaction can only be
/// rolled back; a [`DualSink`](crate::DualSink) undoes its own part, and leaves the transaction as it was.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// The application's type does not become JSON.
    #[error("{document} does not become JSON; correct the type or its Serialize")]
    Unwritable {
        /// Projection and entity.
        document: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The content has no canonical JSON, so it has no hash that everybody computes alike.
    #[error("{document} has no canonical JSON; write it as proto/src/canonical.rs describes")]
    NotCanonical {
        /// Projection and entity, or topic and seq.
        document: String,
        /// Where, and why.
        source: NotADocument,
    },
    /// No stream carries the topic.
    #[error("topic {topic:?} has no stream; shorten it, or name another")]
    NoStream {
        /// The topic.
        topic: String,
        /// Why.
        source: InvalidId,
    },
    /// No topic has this stream, and a legacy lane knows topics alone.
    #[error("stream {stream_id} is no topic's, so no legacy lane hears of it; project into the stream of a topic")]
    NoTopic {
        /// The stream.
        stream_id: String,
    },
    /// The lane's sink does nothing, so there is no seq by which a legacy lane could be told of a document.
    #[error(
        "the lane's sink ignores {document}, so a legacy lane has no seq for it; use the legacy lane's own projector instead"
    )]
    NoSeq {
        /// Projection and entity.
        document: String,
    },
    /// The topic's seq is past what the lane counts.
    #[error("topic {topic:?} has seq {seq}, expected at most 2^63 - 1")]
    SeqOutOfRange {
        /// The topic.
        topic: String,
        /// The seq.
        seq: u64,
    },
    /// The legacy lane holds something else for the topic and the seq.
    #[error("the legacy lane holds another event at seq {seq} of topic {topic}; expected {payload_hash}")]
    LegacyConflict {
        /// The topic.
        topic: String,
        /// The seq.
        seq: u64,
        /// What was to be written.
        payload_hash: String,
    },
    /// What is held is further: another projector was faster, or this one read an old state. Begin again from the checkpoint.
    #[error("{message}; {hint}")]
    Backwards {
        /// What was expected and what was found.
        message: String,
        /// What to do.
        hint: String,
    },
    /// Another document is held for the same seq and version.
    #[error("{message}; {hint}")]
    Conflict {
        /// What was expected and what was found.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The document, its names or its size are not what the authority takes. To try again helps nobody.
    #[error("{code}: {message}; {hint}")]
    Refused {
        /// The SQLSTATE: of class SY, or of Postgres's own for a text that holds NUL or is nested too deep.
        code: String,
        /// What was expected and what was found.
        message: String,
        /// What to do.
        hint: String,
    },
    /// Postgres has undone the transaction because of others, or cannot be reached. The whole transaction may be tried again.
    #[error("postgres could not finish the transaction; try all of it again")]
    Again {
        /// What the driver says.
        source: sqlx::Error,
    },
    /// The role lacks the duty runtime, or a migration is missing, or something else that a person must mend.
    #[error("postgres failed to project; check the role's duty (runtime) and the lane's migrations")]
    Failed {
        /// What the driver says.
        source: sqlx::Error,
    },
    /// A sink of the application's own failed.
    #[error("{sink} failed")]
    Other {
        /// Which.
        sink: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ProjectError {
    /// Whether the same transaction may succeed when it is tried again.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Again { .. })
    }

    /// A short name for metrics.
    pub fn code(&self) -> &str {
        match self {
            Self::Unwritable { .. } => "unwritable",
            Self::NotCanonical { .. } => "not_canonical",
            Self::NoStream { .. } => "no_stream",
            Self::NoTopic { .. } => "no_topic",
            Self::NoSeq { .. } => "no_seq",
            Self::SeqOutOfRange { .. } => "seq_out_of_range",
            Self::LegacyConflict { .. } => "legacy_conflict",
            Self::Backwards { .. } => "SY012",
            Self::Conflict { .. } => "SY013",
            Self::Refused { code, .. } => code,
            Self::Again { .. } => "again",
            Self::Failed { .. } => "failed",
            Self::Other { .. } => "other",
        }
    }

    pub(crate) fn from_driver(error: sqlx::Error) -> Self {
        let Some(refusal) = error
            .as_database_error()
            .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        else {
            return match error {
                sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => Self::Again { source: error },
                _ => Self::Failed { source: error },
            };
        };
        let (message, hint) = (
            refusal.message().to_owned(),
            refusal.hint().unwrap_or_default().to_owned(),
        );
        match refusal.code() {
            "SY012" => Self::Backwards { message, hint },
            "SY013" => Self::Conflict { message, hint },
            code if code.starts_with("SY") => Self::Refused {
                code: code.to_owned(),
                message,
                hint,
            },
            // What no jsonb holds, and what is nested deeper than Postgres reads.
            code if ["22", "54"].contains(&code.get(..2).unwrap_or_default()) => Self::Refused {
                code: code.to_owned(),
                message,
                hint: "correct the document".to_owned(),
            },
            // Connection, rollback (deadlock, serialization), resources, lock, shutdown, system.
            code if ["08", "40", "53", "55", "57", "58"].contains(&code.get(..2).unwrap_or_default()) => {
                Self::Again { source: error }
            }
            _ => Self::Failed { source: error },
        }
    }
}
