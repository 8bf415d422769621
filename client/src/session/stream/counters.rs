//! What a client counts.

use serde::Serialize;
use spacetime_sync_proto::wire;

/// Counts that a person may want to see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Events applied and saved.
    pub events_applied: u64,
    /// Frames received, by page or subscription.
    pub frames: u64,
    /// Events received again and dropped.
    pub duplicates_dropped: u64,
    /// How often a live stream missed something and paged it.
    pub holes_paged: u64,
    /// Pages read.
    pub pages: u64,
    /// Pages read from the authority.
    pub history_pages: u64,
    /// Parts of documents read from the authority.
    pub document_pages: u64,
    /// Contents of documents read from the authority.
    pub contents: u64,
    /// Events of streams of documents that tell of none, and contents that were not to be had.
    pub documents_refused: u64,
    /// Requests to the authority that were refused or failed.
    pub history_failures: u64,
    /// How often SpacetimeDB did not bring in time what the authority has.
    pub withheld: u64,
    /// How often the authority did not continue from what was applied.
    pub stale_cursors: u64,
    /// How often a stream started over from a document.
    pub rebootstraps: u64,
    /// How often a stream started over without one.
    pub restarts: u64,
    /// How often a newer subscription replaced an older one.
    pub resubscriptions: u64,
    /// How often a stream went back to paging because applying lagged.
    pub overruns: u64,
    /// Batches that could not be applied.
    pub apply_failures: u64,
    /// Reads that the module refused or that failed.
    pub reads_refused: u64,
    /// Connections made after the first.
    pub reconnects: u64,
    /// Connections given up because SpacetimeDB was too far behind with sending.
    pub connections_overfull: u64,
    /// Connections that took over from one whose token was about to end.
    pub refreshes: u64,
    /// How often the provider gave no token, or a token was not accepted.
    pub token_failures: u64,
    /// Checkpoints that the module accepted.
    pub acks: u64,
    /// Checkpoints that the module refused.
    pub acks_refused: u64,
    /// Presence calls that the module accepted.
    pub heartbeats: u64,
    /// Presence calls that failed.
    pub heartbeats_refused: u64,
}

/// The counters as a message. Both sides name every field, so neither can have one that the other lacks.
impl From<Counters> for wire::ClientCounters {
    fn from(counters: Counters) -> Self {
        let Counters {
            events_applied,
            frames,
            duplicates_dropped,
            holes_paged,
            pages,
            history_pages,
            document_pages,
            contents,
            documents_refused,
            history_failures,
            withheld,
            stale_cursors,
            rebootstraps,
            restarts,
            resubscriptions,
            overruns,
            apply_failures,
            reads_refused,
            reconnects,
            connections_overfull,
            refreshes,
            token_failures,
            acks,
            acks_refused,
            heartbeats,
            heartbeats_refused,
        } = counters;
        Self {
            events_applied,
            frames,
            duplicates_dropped,
            holes_paged,
            pages,
            history_pages,
            document_pages,
            contents,
            documents_refused,
            history_failures,
            withheld,
            stale_cursors,
            rebootstraps,
            restarts,
            resubscriptions,
            overruns,
            apply_failures,
            reads_refused,
            reconnects,
            connections_overfull,
            refreshes,
            token_failures,
            acks,
            acks_refused,
            heartbeats,
            heartbeats_refused,
        }
    }
}
