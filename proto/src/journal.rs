//! The journal: what only SpacetimeDB decides and may not be lost with it, as the authority keeps it. The module writes each
//! entry and reads it again; the bridge and the authority never look into one.

use std::time::Duration;

/// Most entries in one page of the journal, in either direction.
pub const PAGE_ENTRIES: usize = 256;
/// Most bytes of entries in one page, unless a single entry is larger.
pub const PAGE_BYTES: usize = 256 * 1024;
/// The largest entry, in bytes. The module's own bounds keep every document well below it.
pub const ENTRY_BYTES: usize = 128 * 1024;

/// Something that the module holds, or holds no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// The module counts its changes. Of two entries with one key, the one with the higher mark is the newer.
    pub mark: u64,
    /// What it is.
    pub key: String,
    /// How it is. Empty if the module holds it no longer.
    pub document: String,
}

/// How it is with the journal in the module, and its oldest entries that are not settled yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalPage {
    /// Whether the module accepts calls that change what the journal covers.
    pub is_open: bool,
    /// The authority's epoch when the journal was last opened; empty before that.
    pub epoch: String,
    /// The authority keeps everything up to this mark.
    pub settled: u64,
    /// Once this mark is settled, the authority has been given everything that the module held when the epoch began. 0 if
    /// nobody asked for that.
    pub whole_at: u64,
    /// The newest mark.
    pub newest: u64,
    /// How many entries are not settled.
    pub waiting: u64,
    /// How long the one that waits longest has waited.
    pub oldest: Duration,
    /// These entries are all that there is after `settled` up to this mark.
    pub to: u64,
    /// The entries, in the order of their marks.
    pub entries: Vec<JournalEntry>,
}

/// What the authority says when a bridge begins to keep the journal on a new link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalTurn {
    /// Names the turn. The authority keeps no page of an earlier one.
    pub turn: u64,
    /// The newest mark that it was ever given.
    pub newest: u64,
    /// Which history of the authority this is.
    pub epoch: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::ASSIGNMENT_BYTES;

    #[test]
    fn an_entry_holds_the_largest_document_and_its_report_and_a_page_holds_entries() {
        let (entry, page) = (std::hint::black_box(ENTRY_BYTES), std::hint::black_box(PAGE_BYTES));
        assert!(entry >= 2 * ASSIGNMENT_BYTES, "{entry}");
        assert!(page >= entry, "{page}");
    }
}
