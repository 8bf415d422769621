//! What an operator sees of the outbox, and does with it, and what is forgotten of it.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::{OutboxState, waiting_relays};
use crate::{Actor, Authority, AuthorityError, hide_relay, shown_relay};

/// How much of what a relay said a list shows.
const DETAIL_CHARS: usize = 200;

/// How full the outbox is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Depth {
    /// Entries that are to be published.
    pub pending: u64,
    /// The age of the oldest of them, in seconds.
    pub oldest_s: u64,
    /// Entries that are parked.
    pub parked: u64,
    /// Entries that are published, and still remembered.
    pub sent: u64,
    /// The failures of deliveries that no relay has accepted yet, by their kind.
    pub failures: Vec<(String, u64)>,
}

/// How many entries were forgotten at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Those that were published or dropped.
    pub over: u64,
    /// Those that were parked.
    pub parked: u64,
}

/// An entry as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its name.
    pub event_id: String,
    /// `pending`, `sent` or `parked`.
    pub status: String,
    /// The schema of its content.
    pub schema: String,
    /// Its age in seconds.
    pub age_s: u64,
    /// Why it is parked.
    pub failure: Option<String>,
    /// How it is at each relay: the relay as far as it may be shown, how it is, how often it was tried, and what the last failure
    /// was.
    pub relays: Vec<String>,
}

impl Authority {
    /// Removes at most `limit` of the entries that are published for so long, or of which there are more than so many, and of
    /// parked ones of which there are more than so many, the oldest first. Returns how many of each.
    pub async fn outbox_forget(
        &self,
        sent_for: Duration,
        sent_most: usize,
        parked_most: usize,
        limit: usize,
    ) -> Result<Forgotten, AuthorityError> {
        let sql_of = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.connections
            .run("outbox_forget", async |connection| {
                let over = sqlx::query(
                    "delete from runtime.sync_outbox where event_id in (
                       (select event_id from runtime.sync_outbox
                        where status in ('sent', 'dropped') and settled_at < clock_timestamp() - make_interval(secs => $1)
                        order by settled_at limit $3)
                       union
                       (select event_id from runtime.sync_outbox where status in ('sent', 'dropped')
                        order by settled_at desc offset $2 limit $3))",
                )
                .bind(sent_for.as_secs_f64())
                .bind(sql_of(sent_most))
                .bind(sql_of(limit))
                .execute(&mut *connection)
                .await?;
                let parked = sqlx::query(
                    "delete from runtime.sync_outbox where event_id in (
                       select event_id from runtime.sync_outbox where status = 'parked'
                       order by settled_at desc offset $1 limit $2)",
                )
                .bind(sql_of(parked_most))
                .bind(sql_of(limit))
                .execute(&mut *connection)
                .await?;
                Ok(Forgotten {
                    over: over.rows_affected(),
                    parked: parked.rows_affected(),
                })
            })
            .await
    }

    /// How full the outbox is.
    pub async fn outbox_depth(&self) -> Result<Depth, AuthorityError> {
        self.connections
            .run("outbox_depth", async |connection| {
                let count =
                    |status: &str| format!("(select count(*) from runtime.sync_outbox where status = '{status}')");
                let sql = format!(
                    "select {}, {}, {}, coalesce((
                       select extract(epoch from clock_timestamp() - enqueued_at)::float8 from runtime.sync_outbox
                       where status = 'pending' order by enqueued_at limit 1), 0)",
                    count("pending"),
                    count("parked"),
                    count("sent"),
                );
                let (pending, parked, sent, oldest): (i64, i64, i64, f64) =
                    sqlx::query_as(&sql).fetch_one(&mut *connection).await?;
                let failures: Vec<(String, i64)> = sqlx::query_as(
                    "select failure, count(*) from runtime.sync_outbox_deliveries
                     where failure is not null and status <> 'accepted' group by failure",
                )
                .fetch_all(&mut *connection)
                .await?;
                let whole = |count: i64| u64::try_from(count).unwrap_or_default();
                Ok(Depth {
                    pending: whole(pending),
                    oldest_s: oldest.max(0.0) as u64,
                    parked: whole(parked),
                    sent: whole(sent),
                    failures: failures.into_iter().map(|(kind, count)| (kind, whole(count))).collect(),
                })
            })
            .await
    }

    /// The entries in a state, the oldest first.
    pub async fn outbox_list(&self, state: OutboxState, limit: usize) -> Result<Vec<OutboxRow>, AuthorityError> {
        self.connections
            .run("outbox_list", async |connection| {
                let rows = sqlx::query(
                    "select o.event_id, o.status, o.schema,
                        extract(epoch from clock_timestamp() - o.enqueued_at)::float8, o.failure,
                        array(select concat_ws(' ', d.relay, d.status, d.attempts, d.failure)
                          from runtime.sync_outbox_deliveries d where d.event_id = o.event_id order by d.relay),
                        array(select coalesce(d.detail, '')
                          from runtime.sync_outbox_deliveries d where d.event_id = o.event_id order by d.relay)
                     from runtime.sync_outbox o where o.status = $1 order by o.enqueued_at limit $2",
                )
                .bind(state.as_str())
                .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                .fetch_all(connection)
                .await?;
                let listed = |row: &PgRow| {
                    let (relays, details): (Vec<String>, Vec<String>) = (row.try_get(5)?, row.try_get(6)?);
                    Ok(OutboxRow {
                        event_id: row.try_get(0)?,
                        status: row.try_get(1)?,
                        schema: row.try_get(2)?,
                        age_s: row.try_get::<f64, _>(3)?.max(0.0) as u64,
                        failure: row.try_get(4)?,
                        relays: relays
                            .iter()
                            .zip(&details)
                            .map(|(line, detail)| shown_line(line, detail))
                            .collect(),
                    })
                };
                rows.iter().map(listed).collect()
            })
            .await
    }

    /// Has parked entries published again, and puts that on record. Returns those that were parked.
    pub async fn outbox_retry(&self, event_ids: &[String], actor: &Actor) -> Result<Vec<String>, AuthorityError> {
        self.outbox_act("select runtime.sync_retry_outbox($1, $2, $3)", event_ids, actor)
            .await
    }

    /// Gives entries up for good, and puts that on record. Returns those that were not published.
    pub async fn outbox_drop(&self, event_ids: &[String], actor: &Actor) -> Result<Vec<String>, AuthorityError> {
        self.outbox_act("select runtime.sync_drop_outbox($1, $2, $3)", event_ids, actor)
            .await
    }

    /// The relays at which something is to be published, whether it is due or not.
    pub async fn outbox_waiting_relays(&self) -> Result<Vec<String>, AuthorityError> {
        self.connections
            .run("outbox_waiting_relays", async |connection| {
                let relays = sqlx::query_scalar(concat!(
                    waiting_relays!(),
                    " select relay from r where relay is not null"
                ));
                Ok(relays.fetch_all(connection).await?)
            })
            .await
    }

    /// Gives up what waits for a relay, which has exactly this address here, and puts that on record: at most `limit` entries.
    /// Entries do not count the relay any more, and those that have no other are dropped. Returns how many there were: not those
    /// that were settled while it waited for their locks, so more may wait even if there were fewer than `limit`.
    pub async fn outbox_give_up(&self, relay: &str, limit: usize, actor: &Actor) -> Result<usize, AuthorityError> {
        self.connections
            .run("outbox_give_up", async |connection| {
                let given_up: i32 = sqlx::query_scalar("select runtime.sync_give_up_relay($1, $2, $3, $4)")
                    .bind(relay)
                    .bind(i32::try_from(limit).unwrap_or(i32::MAX))
                    .bind(actor.who())
                    .bind(actor.origin())
                    .fetch_one(connection)
                    .await?;
                Ok(usize::try_from(given_up).unwrap_or_default())
            })
            .await
    }

    async fn outbox_act(
        &self,
        sql: &'static str,
        event_ids: &[String],
        actor: &Actor,
    ) -> Result<Vec<String>, AuthorityError> {
        self.connections
            .run("an act on the outbox", async |connection| {
                let done = sqlx::query_scalar(sql)
                    .bind(event_ids)
                    .bind(actor.who())
                    .bind(actor.origin());
                Ok(done.fetch_one(connection).await?)
            })
            .await
    }
}

/// A line about a delivery, which begins with the address of its relay, and ends with what the relay said.
fn shown_line(line: &str, detail: &str) -> String {
    let (relay, rest) = line.split_once(' ').unwrap_or((line, ""));
    // The end is cut off last, or half a credential would be shown.
    let said: String = hide_relay(detail, relay).chars().take(DETAIL_CHARS).collect();
    format!("{} {rest} {said}", shown_relay(relay)).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_hides_what_a_relay_repeats_and_says_how_often_it_was_tried() {
        let line = "wss://a/?v=1&token=hunter2 pending 11 auth";
        let said = format!("{}hunter2", "x".repeat(DETAIL_CHARS - 3));
        for (detail, expected) in [
            ("", "wss://a/?… pending 11 auth"),
            ("no hunter2: v=1", "wss://a/?… pending 11 auth no …: …"),
        ] {
            assert_eq!(shown_line(line, detail), expected);
        }
        let shown = shown_line(line, &said);
        assert!(shown.ends_with("x…") && !shown.contains("hun"), "{shown}");
    }
}
