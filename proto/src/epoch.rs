//! The authority epoch: which history the authority holds.

/// Names the authority's history and says how far it has come. A restored authority continues with an older beat of the
/// same epoch; that is how the lane notices a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityEpoch {
    /// The history.
    pub epoch: String,
    /// A counter that only grows within an epoch.
    pub beat: u64,
}
