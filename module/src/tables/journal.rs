//! What of the journal the authority does not have yet, and whether the module accepts calls about what the journal covers.
//! Private: an entry's key names an assignment or a provider.

use spacetimedb::{Timestamp, table};

#[table(accessor = journal_state)]
pub struct JournalState {
    /// Always 0. A database without this row has never met a bridge that keeps the journal.
    #[primary_key]
    pub id: u8,
    /// False until the bridge has brought back what the authority keeps.
    pub is_open: bool,
    /// The authority's epoch when the bridge last opened the journal. Empty before that.
    pub epoch: String,
    /// The authority keeps everything up to this mark.
    pub settled: u64,
    /// The next change gets this mark.
    pub next_mark: u64,
    /// The last mark that was given when everything was marked anew for another history of the authority. 0 if it never was, and the
    /// largest number while it is done.
    pub whole_at: u64,
}

/// What has changed since the authority last kept it: one row for each thing, however often it has changed.
#[table(accessor = journal_mark, index(accessor = by_mark, btree(columns = [mark, key])))]
pub struct JournalMark {
    /// A change gives its thing the next mark, so the marks tell the order of the changes.
    #[primary_key]
    pub mark: u64,
    /// The thing's key in the journal.
    #[unique]
    pub key: String,
    /// Since when the authority has not had it as it is.
    pub since: Timestamp,
}

/// How far everything has been marked anew, while that is under way.
#[table(accessor = journal_pass)]
pub struct JournalPass {
    /// Always 0.
    #[primary_key]
    pub id: u8,
    /// How many kinds of things are done: assignments, those that are held no longer, capabilities.
    pub kinds: u8,
    /// It goes by the times at which things are due, in microseconds, and has come up to here.
    pub from_us: i64,
    /// When it began, in microseconds.
    pub begun_us: i64,
    /// Whether the authority may forget, after it, what it keeps from another history.
    pub is_for_another_history: bool,
}
