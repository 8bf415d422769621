//! Projections of tables: compares their documents with their rows, a page at a time.

use sqlx::Row as _;

use super::{Authority, AuthorityError};

/// What is being looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReprojectionPhase {
    /// Whether every row has its document.
    Rows,
    /// Whether every document has a row.
    Documents,
    /// Nothing any more.
    Done,
}

/// How far a comparison is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reprojection {
    /// What comes next.
    pub phase: ReprojectionPhase,
    /// Rows and documents that were looked at since it began.
    pub looked_at: u64,
    /// Events that this has made.
    pub applied: u64,
}

impl Authority {
    /// Where the comparison of a table's documents with its rows is. `None` if there never was one.
    pub async fn reprojection(&self, projection: &str) -> Result<Option<Reprojection>, AuthorityError> {
        self.connections
            .run("reprojection", async |connection| {
                let row = sqlx::query(
                    "select phase, looked_at, applied from runtime.sync_reprojections
                     where projection >= $1 and projection <= $1",
                )
                .bind(projection)
                .fetch_optional(connection)
                .await?;
                Ok(row.as_ref().map(reprojection).transpose()?)
            })
            .await
    }

    /// Compares the next `most` documents of a table with its rows, in a transaction of its own, and projects what differs. Goes
    /// on where the last call ended, or begins anew. Needs the right to read the table.
    pub async fn reproject(&self, projection: &str, most: u32, again: bool) -> Result<Reprojection, AuthorityError> {
        self.connections
            .run("reproject", async |connection| {
                let row = sqlx::query("select phase, looked_at, applied from runtime.sync_reproject($1, $2, $3)")
                    .bind(projection)
                    .bind(i32::try_from(most).unwrap_or(i32::MAX))
                    .bind(again)
                    .fetch_one(connection)
                    .await?;
                Ok(reprojection(&row)?)
            })
            .await
    }

    /// About how many rows the table of a projection has, as Postgres estimates. `None` if it does not know yet.
    pub async fn projected_rows(&self, projection: &str) -> Result<Option<u64>, AuthorityError> {
        self.connections
            .run("projected_rows", async |connection| {
                let rows: Option<i64> = sqlx::query_scalar(
                    "select c.reltuples::bigint from runtime.sync_projections p join pg_catalog.pg_class c on c.oid = p.source
                     where p.projection >= $1 and p.projection <= $1",
                )
                .bind(projection)
                .fetch_optional(connection)
                .await?;
                Ok(rows.and_then(|rows| u64::try_from(rows).ok()))
            })
            .await
    }
}

fn reprojection(row: &sqlx::postgres::PgRow) -> Result<Reprojection, sqlx::Error> {
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(Reprojection {
        phase: match row.try_get(0)? {
            "rows" => ReprojectionPhase::Rows,
            "documents" => ReprojectionPhase::Documents,
            _ => ReprojectionPhase::Done,
        },
        looked_at: count(row.try_get(1)?),
        applied: count(row.try_get(2)?),
    })
}
