//! Calls about the journal on the live link. The bridge carries its entries, and does not look into them.

use std::time::Duration;

use spacetime_sync_bindings::{
    JournalEntry as EntryRow, bring_back, close_journal, open_journal, read_journal, settle_journal,
};
use spacetime_sync_proto::journal::{JournalEntry, JournalPage, PAGE_ENTRIES};

use super::StdbError;
use super::link::Link;

impl Link {
    /// How it is with the journal, and its oldest entries that the authority does not keep yet, durably as always on this link.
    pub async fn journal(&self) -> Result<JournalPage, StdbError> {
        let page = self
            .procedure("read_journal", |procedures, answer| {
                procedures.read_journal_then(PAGE_ENTRIES as u64, move |_, result| drop(answer.send(result)));
            })
            .await?;
        let entry = |row: EntryRow| JournalEntry {
            mark: row.mark,
            key: row.key,
            document: row.document,
        };
        Ok(JournalPage {
            is_open: page.is_open,
            epoch: page.epoch,
            settled: page.settled,
            whole_at: page.whole_at,
            newest: page.newest,
            waiting: page.waiting,
            oldest: Duration::from_micros(page.oldest_us),
            to: page.to,
            entries: page.entries.into_iter().map(entry).collect(),
        })
    }

    /// The authority keeps everything up to this mark.
    pub async fn settle_journal(&self, to: u64) -> Result<(), StdbError> {
        self.reducer("settle_journal", |reducers, answer| {
            reducers.settle_journal_then(to, move |_, result| drop(answer.send(result)))
        })
        .await
    }

    /// Has the module refuse changes until everything is brought back. It must be settled up to this mark.
    pub async fn close_journal(&self, settled: u64) -> Result<(), StdbError> {
        self.reducer("close_journal", |reducers, answer| {
            reducers.close_journal_then(settled, move |_, result| drop(answer.send(result)))
        })
        .await
    }

    /// Gives the module what it has lost.
    pub async fn bring_back(&self, entries: Vec<JournalEntry>) -> Result<(), StdbError> {
        let row = |entry: JournalEntry| EntryRow {
            mark: entry.mark,
            key: entry.key,
            document: entry.document,
        };
        let rows = entries.into_iter().map(row).collect();
        self.reducer("bring_back", |reducers, answer| {
            reducers.bring_back_then(rows, move |_, result| drop(answer.send(result)))
        })
        .await
    }

    /// Has the module accept changes. `newest` is the newest mark that the authority, which has this epoch, was ever given.
    pub async fn open_journal(&self, epoch: &str, newest: u64) -> Result<(), StdbError> {
        self.reducer("open_journal", |reducers, answer| {
            reducers.open_journal_then(epoch.to_owned(), newest, move |_, result| drop(answer.send(result)))
        })
        .await
    }
}
