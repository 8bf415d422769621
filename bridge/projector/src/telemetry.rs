//! What a sink has done, as counters and events of `tracing`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{Outcome, ProjectError, Projected};

/// Counts what a sink does. What it counts may be undone: a sink does not hear how the transaction ends.
#[derive(Debug, Default)]
pub struct Telemetry {
    applied: AtomicU64,
    unchanged: AtomicU64,
    moved: AtomicU64,
    pointers: AtomicU64,
    /// By code, of which there are as many as there are errors.
    failed: Mutex<BTreeMap<String, u64>>,
}

/// What was counted so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Documents that were new, other, or further, and events of topics.
    pub applied: u64,
    /// Documents that were held already.
    pub unchanged: u64,
    /// Documents that came from another stream.
    pub moved: u64,
    /// Of the documents that were applied or moved, those whose event holds a pointer.
    pub pointers: u64,
    /// Failures, by [`ProjectError::code`].
    pub failed: BTreeMap<String, u64>,
}

impl Telemetry {
    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        Counts {
            applied: self.applied.load(Ordering::Relaxed),
            unchanged: self.unchanged.load(Ordering::Relaxed),
            moved: self.moved.load(Ordering::Relaxed),
            pointers: self.pointers.load(Ordering::Relaxed),
            failed: self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// An event of a topic has the topic for a projection, and no entity.
    pub(crate) fn note(
        &self,
        (projection, entity_id, source_seq): (&str, &str, u64),
        result: &Result<Projected, ProjectError>,
    ) {
        match result {
            Ok(projected) => {
                let counter = match projected.outcome {
                    Outcome::Applied => &self.applied,
                    Outcome::Moved => &self.moved,
                    Outcome::Unchanged | Outcome::Ignored => &self.unchanged,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                if projected.hydration_required && projected.outcome != Outcome::Unchanged {
                    self.pointers.fetch_add(1, Ordering::Relaxed);
                }
                tracing::debug!(
                    projection,
                    entity_id,
                    source_seq,
                    outcome = ?projected.outcome,
                    seq = projected.seq,
                    "projected"
                );
            }
            Err(error) => {
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                *failed.entry(error.code().to_owned()).or_default() += 1;
                drop(failed);
                tracing::warn!(
                    projection,
                    entity_id,
                    source_seq,
                    code = error.code(),
                    "not projected: {error}"
                );
            }
        }
    }
}
