//! What SpacetimeDB's outbox is known to show of the authority's.

use spacetime_sync_proto::Label;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::{ENTRY, Entry, OutboxState, entry, name};
use crate::error::CallError;
use crate::{Authority, AuthorityError};

/// What SpacetimeDB's outbox is known to say of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reflected {
    /// It does not have it.
    Nothing,
    /// It is to be published.
    Pending,
    /// It is not to be published, as far as anybody knows.
    Dropped,
    /// It is published. Or there is nothing that SpacetimeDB could be told of it any more.
    Sent,
}

/// An entry whose state SpacetimeDB's outbox does not show yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreflected {
    /// The entry.
    pub entry: Entry,
    /// How it is.
    pub state: OutboxState,
    /// What SpacetimeDB is known to say of it.
    pub reflected: Reflected,
}

impl Reflected {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Pending => "pending",
            Self::Dropped => "dropped",
            Self::Sent => "sent",
        }
    }

    fn of(text: &str) -> Self {
        match text {
            "pending" => Self::Pending,
            "dropped" => Self::Dropped,
            "sent" => Self::Sent,
            _ => Self::Nothing,
        }
    }
}

/// What is over and not shown, as in the index.
const OVER: &str = "(o.status = 'sent' and o.reflected <> 'sent'
                      or o.status in ('parked', 'dropped') and o.reflected in ('nothing', 'pending'))";
/// What waits and is not shown, as in the index.
const WAITS: &str = "o.status = 'pending' and o.reflected = 'nothing'";

impl Authority {
    /// Entries whose state SpacetimeDB's outbox does not show: those that are over, or those that wait. Those first that it has,
    /// because they make room, and then the oldest.
    pub async fn outbox_unreflected(&self, are_over: bool, limit: usize) -> Result<Vec<Unreflected>, AuthorityError> {
        self.connections
            .run("outbox_unreflected", async |connection| {
                let of = if are_over { OVER } else { WAITS };
                let sql = format!(
                    "select {ENTRY}, o.status, o.reflected from runtime.sync_outbox o
                     where {of} order by (o.reflected = 'nothing'), o.enqueued_at limit $1"
                );
                let limit = i64::try_from(limit).unwrap_or(i64::MAX);
                let rows = sqlx::query(&sql).bind(limit).fetch_all(connection).await?;
                rows.iter().map(unreflected).collect()
            })
            .await
    }

    /// Those of these entries whose state SpacetimeDB's outbox does not show.
    pub async fn outbox_unreflected_of(&self, event_ids: &[&str]) -> Result<Vec<Unreflected>, AuthorityError> {
        self.connections
            .run("outbox_unreflected_of", async |connection| {
                let sql = format!(
                    "select {ENTRY}, o.status, o.reflected from runtime.sync_outbox o
                     where o.event_id = any ($1) and ({OVER} or {WAITS})"
                );
                let rows = sqlx::query(&sql).bind(event_ids).fetch_all(connection).await?;
                rows.iter().map(unreflected).collect()
            })
            .await
    }

    /// The names of entries after `after` that are to be published and that SpacetimeDB is known to show as such.
    pub async fn outbox_reflected(&self, after: &str, limit: usize) -> Result<Vec<Label>, AuthorityError> {
        self.connections
            .run("outbox_reflected", async |connection| {
                let names = sqlx::query_scalar::<_, String>(
                    "select event_id from runtime.sync_outbox
                     where event_id > $1 and reflected = 'pending' order by event_id limit $2",
                )
                .bind(after)
                .bind(i64::try_from(limit).unwrap_or(i64::MAX));
                let names = names.fetch_all(connection).await?;
                names.iter().map(|text| name(text)).collect()
            })
            .await
    }

    /// Which of these entries there are.
    pub async fn outbox_has(&self, event_ids: &[&str]) -> Result<Vec<String>, AuthorityError> {
        self.connections
            .run("outbox_has", async |connection| {
                let names = sqlx::query_scalar("select event_id from runtime.sync_outbox where event_id = any ($1)");
                Ok(names.bind(event_ids).fetch_all(connection).await?)
            })
            .await
    }

    /// Records that these entries wait in SpacetimeDB's outbox, if they were known to be over there: it is to be told again.
    pub async fn outbox_wait_again(&self, event_ids: &[&str]) -> Result<(), AuthorityError> {
        self.connections
            .run("outbox_wait_again", async |connection| {
                let again = sqlx::query(
                    "update runtime.sync_outbox o set reflected = 'pending'
                     from (select event_id from runtime.sync_outbox
                           where event_id = any ($1) and reflected in ('dropped', 'sent') order by event_id for update) n
                     where o.event_id = n.event_id",
                );
                again.bind(event_ids).execute(connection).await?;
                Ok(())
            })
            .await
    }

    /// Records what SpacetimeDB's outbox says of these entries.
    pub async fn outbox_reflect(&self, event_ids: &[&str], says: Reflected) -> Result<(), AuthorityError> {
        self.connections
            .run("outbox_reflect", async |connection| {
                let reflected = sqlx::query(
                    "update runtime.sync_outbox o set reflected = $2
                     from (select event_id from runtime.sync_outbox where event_id = any ($1) order by event_id for update) n
                     where o.event_id = n.event_id",
                );
                reflected.bind(event_ids).bind(says.as_str()).execute(connection).await?;
                Ok(())
            })
            .await
    }
}

fn unreflected(row: &PgRow) -> Result<Unreflected, CallError> {
    Ok(Unreflected {
        entry: entry(row)?,
        state: OutboxState::of(row.try_get(9)?),
        reflected: Reflected::of(row.try_get(10)?),
    })
}
