//! What a legacy lane left in a table of this database, and the events by which parity finds it again.

use futures_util::TryStreamExt;
use spacetime_sync_proto::access::Topic;
use spacetime_sync_proto::{Event, StreamId, sql_name};
use sqlx::Row as _;

use super::error::CallError;
use super::log::event;
use super::{Authority, AuthorityError};

/// The columns that the table must have, and the one that it may have.
const COLUMNS: [&str; 3] = ["topic", "seq", "payload_hash"];
const KIND: &str = "kind";

/// A table of somebody else, in the authority's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyTable {
    name: String,
    quoted: String,
}

/// A row of it, as text. Nothing is checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LegacyRow {
    /// The topic.
    pub topic: Option<String>,
    /// The seq.
    pub seq: Option<String>,
    /// The hash.
    pub payload_hash: Option<String>,
    /// What the payload is, if the table says it.
    pub kind: Option<String>,
}

impl LegacyTable {
    /// `schema.table`, or a table on the search path; both exactly as Postgres has them.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            quoted: match name.split_once('.') {
                Some((schema, table)) => format!("{}.{}", sql_name(schema), sql_name(table)),
                None => sql_name(name),
            },
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Authority {
    /// Reads a legacy table, at most so many rows of it, of topics that begin so, and hands each of them out. All are of one moment.
    /// What is too long to be right is cut off.
    pub async fn legacy_rows(
        &self,
        table: &LegacyTable,
        beginning: &str,
        most: usize,
        mut take: impl FnMut(LegacyRow),
    ) -> Result<(), AuthorityError> {
        let server = self.connections.server().to_owned();
        self.connections
            .run("legacy_rows", async |connection| {
                let found: Vec<String> = sqlx::query_scalar(
                    "select attname::text from pg_catalog.pg_attribute
                     where attrelid = to_regclass($1) and attnum > 0 and not attisdropped",
                )
                .bind(&table.quoted)
                .fetch_all(&mut *connection)
                .await?;
                let has = |column: &str| found.iter().any(|found| found == column);
                let missing: Vec<&str> = COLUMNS.into_iter().filter(|column| !has(column)).collect();
                if !missing.is_empty() {
                    let what = if found.is_empty() {
                        "no such table".to_owned()
                    } else {
                        format!("a table without {}", missing.join(", "))
                    };
                    return Err(CallError::Content(AuthorityError::LegacyTable {
                        server,
                        table: table.name.clone(),
                        found: what,
                    }));
                }
                let kind = if has(KIND) {
                    "left(kind::text, 200)"
                } else {
                    "null::text"
                };
                let sql = format!(
                    "select left(topic::text, 300), left(seq::text, 100), left(payload_hash::text, 200), {kind} from {}
                     where topic is null or starts_with(topic::text, $2) limit $1",
                    table.quoted
                );
                let mut rows = sqlx::query(&sql)
                    .bind(i64::try_from(most).unwrap_or(i64::MAX))
                    .bind(beginning)
                    .fetch(connection);
                while let Some(row) = rows.try_next().await? {
                    take(LegacyRow {
                        topic: row.try_get(0)?,
                        seq: row.try_get(1)?,
                        payload_hash: row.try_get(2)?,
                        kind: row.try_get(3)?,
                    });
                }
                Ok(())
            })
            .await
    }

    /// The events of a topic's stream that the topic counts as this one, whatever their kinds: at most so many, because there should
    /// be one.
    pub async fn topic_events(
        &self,
        topic: &Topic,
        stream_id: &StreamId,
        seq: u64,
        most: usize,
    ) -> Result<Vec<Event>, AuthorityError> {
        let beginning = topic.event_key_beginning(seq);
        // Keys are compared byte by byte, and no kind has a character past ASCII.
        let end = format!("{beginning}\u{80}");
        self.connections
            .run("topic_events", async |connection| {
                let rows = sqlx::query(
                    "select seq, idempotency_key, kind, payload, payload_hash, chain_hash, committed_at
                     from runtime.sync_stream_events
                     where stream_id = $1 and idempotency_key >= $2 and idempotency_key < $3
                     order by idempotency_key limit $4",
                )
                .bind(stream_id.as_str())
                .bind(&beginning)
                .bind(&end)
                .bind(i64::try_from(most).unwrap_or(i64::MAX))
                .fetch_all(connection)
                .await?;
                rows.iter().map(|row| event(stream_id, row, 0, None)).collect()
            })
            .await
    }
}
