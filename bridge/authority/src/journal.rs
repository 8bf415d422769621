//! The journal: keeps what only SpacetimeDB decides, so that it can be brought back. What an entry says is none of the
//! authority's business.

use spacetime_sync_proto::journal::{JournalEntry, JournalTurn, PAGE_BYTES, PAGE_ENTRIES};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::error::CallError;
use super::{Authority, AuthorityError};

/// One page. The window function counts the bytes on the server, so that entries past the bound never leave it. The first one
/// always comes, however large.
const PAGE: &str = "
    select key, mark, document
    from (
      select *, sum(octet_length(document)) over (order by mark, key rows unbounded preceding) as bytes
      from runtime.sync_journal
      where mark > $1
      order by mark, key limit $2
    ) page
    where bytes <= $3 or bytes = octet_length(document)
    order by mark, key";

impl Authority {
    /// Begins to keep the journal of the SpacetimeDB to which there is a new link. No page of an earlier turn is kept any more.
    pub async fn begin_journal(&self) -> Result<JournalTurn, AuthorityError> {
        self.connections
            .run("begin_journal", async |connection| {
                let row = sqlx::query("select turn, newest, epoch from runtime.sync_begin_journal()")
                    .fetch_one(connection)
                    .await?;
                Ok(JournalTurn {
                    turn: from_sql(row.try_get(0)?),
                    newest: from_sql(row.try_get(1)?),
                    epoch: row.try_get(2)?,
                })
            })
            .await
    }

    /// The entries with a mark above `after`, in the order of their marks, as many as fit into a page. Empty at the end.
    pub async fn kept_journal(&self, after: u64) -> Result<Vec<JournalEntry>, AuthorityError> {
        self.connections
            .run("kept_journal", async |connection| {
                let rows = sqlx::query(PAGE)
                    .bind(to_sql(after))
                    .bind(i64::try_from(PAGE_ENTRIES).unwrap_or(i64::MAX))
                    .bind(i64::try_from(PAGE_BYTES).unwrap_or(i64::MAX))
                    .fetch_all(connection)
                    .await?;
                rows.iter().map(entry).collect()
            })
            .await
    }

    /// Keeps these entries, which are all up to the mark `to` that were not kept before. A repeat changes nothing, and an older
    /// entry never replaces a newer one.
    pub async fn keep_journal(&self, turn: u64, entries: &[JournalEntry], to: u64) -> Result<(), AuthorityError> {
        let keys: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let marks: Vec<i64> = entries.iter().map(|entry| to_sql(entry.mark)).collect();
        let documents: Vec<&str> = entries.iter().map(|entry| entry.document.as_str()).collect();
        self.connections
            .run("keep_journal", async |connection| {
                sqlx::query("select runtime.sync_keep_journal($1, $2, $3, $4, $5)")
                    .bind(to_sql(turn))
                    .bind(&keys)
                    .bind(&marks)
                    .bind(&documents)
                    .bind(to_sql(to))
                    .execute(connection)
                    .await?;
                Ok(())
            })
            .await
    }

    /// Removes a page of the entries that were kept in another history of the authority than this turn's. Returns how many.
    pub async fn forget_journal(&self, turn: u64) -> Result<u64, AuthorityError> {
        self.connections
            .run("forget_journal", async |connection| {
                let gone: i64 = sqlx::query_scalar("select runtime.sync_forget_journal($1, $2)")
                    .bind(to_sql(turn))
                    .bind(i32::try_from(PAGE_ENTRIES).unwrap_or(i32::MAX))
                    .fetch_one(connection)
                    .await?;
                Ok(from_sql(gone))
            })
            .await
    }
}

fn entry(row: &PgRow) -> Result<JournalEntry, CallError> {
    Ok(JournalEntry {
        key: row.try_get(0)?,
        mark: from_sql(row.try_get(1)?),
        document: row.try_get(2)?,
    })
}

/// A mark or a turn as a column. There are never as many as a `BIGINT` can count.
fn to_sql(mark: u64) -> i64 {
    i64::try_from(mark).unwrap_or(i64::MAX)
}

/// Reads a column that a constraint keeps from being negative.
fn from_sql(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}
