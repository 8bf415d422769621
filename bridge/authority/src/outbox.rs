//! The outbox: what the mirror is to publish, what of it is published, and what is parked until a person decides.
//!
//! An entry is written together with the cursor behind the event that it is of, in one transaction: it is there once, however
//! often the mirror dies. Everything here concerns the mirror's own tables alone.

mod operator;
mod reflection;

use std::time::Duration;

use spacetime_sync_proto::{Label, Seq, StreamId};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection as _, Row as _};

use super::error::CallError;
use super::{Authority, AuthorityError, MirrorPolicy, MirrorSource};

pub use operator::{Depth, Forgotten, OutboxRow};
pub use reflection::{Reflected, Unreflected};

/// What is to be published: everything that the event of Nostr is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name of the thing. There is one entry of it.
    pub event_id: Label,
    /// The kind, by Nostr's count.
    pub nostr_kind: u16,
    /// The schema of the content.
    pub schema: String,
    /// The name under which a later event replaces it.
    pub d_tag: String,
    /// The content.
    pub content: String,
    /// Its time, in seconds since 1970.
    pub created_at_s: u64,
    /// When it is void, in seconds since 1970.
    pub expires_at_s: Option<u64>,
    /// The public key that signs it, in hex.
    pub author: String,
    /// The id of the event of Nostr, in hex.
    pub published_as: String,
}

/// How an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboxState {
    /// It is to be published.
    Pending,
    /// As many relays have it as its policy asks for.
    Sent,
    /// So many relays cannot have it any more. A person decides.
    Parked,
    /// A person has given it up, or a later one has replaced it.
    Dropped,
}

/// What becomes of new entries.
#[derive(Debug, Clone, Copy)]
pub enum Kept<'a> {
    /// They are published by this policy.
    Publish(&'a MirrorPolicy),
    /// No policy names them: they are parked, for this reason.
    Park(&'static str),
}

/// An entry that is due at a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The entry.
    pub entry: Entry,
    /// How often it was tried there.
    pub attempts: u32,
}

/// What one attempt at a relay came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The entry.
    pub event_id: Label,
    /// What it came to.
    pub attempt: Attempt,
}

/// See [`Outcome`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// The relay has it, and shows it.
    Accepted,
    /// It is tried again.
    Again {
        /// So much later.
        after: Duration,
        /// The kind of failure.
        failure: &'static str,
        /// What the relay said.
        detail: String,
    },
    /// It is not tried again.
    Failed {
        /// The kind of failure.
        failure: &'static str,
        /// What the relay said.
        detail: String,
    },
}

impl OutboxState {
    /// Its name in the tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::Parked => "parked",
            Self::Dropped => "dropped",
        }
    }

    fn of(text: &str) -> Self {
        match text {
            "sent" => Self::Sent,
            "parked" => Self::Parked,
            "dropped" => Self::Dropped,
            _ => Self::Pending,
        }
    }
}

/// The columns of an [`Entry`], in the order in which [`entry`] reads them.
const ENTRY: &str = "o.event_id, o.nostr_kind, o.schema, o.d_tag, o.content, o.created_at_s, o.expires_at_s, o.author, \
                     o.published_as";

/// Whoever changes entries or their deliveries locks the entries first, in the order of their names: nobody judges an entry by what
/// another one is about to change, and no two wait for each other.
const LOCK: &str = "select event_id from runtime.sync_outbox where event_id = any ($1) order by event_id for update";

/// The relays that are to have something, as `r`: one step for each, however many deliveries there are.
macro_rules! waiting_relays {
    () => {
        "with recursive r as (
           (select d.relay from runtime.sync_outbox_deliveries d where d.status = 'pending' order by d.relay limit 1)
           union all
           select (select d.relay from runtime.sync_outbox_deliveries d
                   where d.status = 'pending' and d.relay > r.relay order by d.relay limit 1)
           from r where r.relay is not null
         )"
    };
}
use waiting_relays;

/// Settles entries whose relays have decided.
const SETTLE: &str = "
    update runtime.sync_outbox o
    set status = case when c.accepted >= o.quorum then 'sent' else 'parked' end,
        failure = case when c.accepted >= o.quorum then null else c.failure end,
        settled_at = clock_timestamp()
    from (
      select d.event_id, count(*) filter (where d.status = 'accepted') as accepted,
          count(*) filter (where d.status = 'pending') as pending,
          min(d.failure) filter (where d.status = 'failed') as failure
      from runtime.sync_outbox_deliveries d where d.event_id = any ($1) group by d.event_id
    ) c
    where o.event_id = c.event_id and o.status = 'pending'
      and (c.accepted >= o.quorum or c.accepted + c.pending < o.quorum)
    returning o.event_id, o.status";

impl Authority {
    /// Writes entries of a policy's source, and moves the policy's cursor of a stream from one seq to another, in one
    /// transaction. Returns how many are new; `None`, and writes nothing, if somebody else has moved the cursor. What is there
    /// already stays as it is, but the relays of another policy that names the same event are to have it, too. An advertisement
    /// replaces those of the same name that are not published yet.
    pub async fn journal(
        &self,
        source: &MirrorSource,
        kept: Kept<'_>,
        moved: Option<(&StreamId, Seq, Seq)>,
        entries: &[Entry],
    ) -> Result<Option<usize>, AuthorityError> {
        self.connections
            .run("journal", async |connection| {
                let mut transaction = connection.begin().await?;
                if let (Some((stream_id, from, to)), Kept::Publish(policy)) = (moved, kept) {
                    let moved = sqlx::query(
                        "insert into runtime.sync_mirror_cursors as c (policy_id, stream_id, seq) values ($1, $2, $4)
                         on conflict (policy_id, stream_id) do update set seq = excluded.seq where c.seq = $3",
                    )
                    .bind(&policy.policy_id)
                    .bind(stream_id.as_str())
                    .bind(from.to_sql())
                    .bind(to.to_sql())
                    .execute(&mut *transaction)
                    .await?;
                    if moved.rows_affected() == 0 {
                        transaction.rollback().await?;
                        return Ok(None);
                    }
                }
                let fresh = if entries.is_empty() {
                    0
                } else {
                    insert(&mut transaction, source, kept, entries).await?
                };
                transaction.commit().await?;
                Ok(Some(fresh))
            })
            .await
    }

    /// How many entries of a policy are pending, counted up to `most`.
    pub async fn outbox_pending(&self, policy_id: &str, most: usize) -> Result<usize, AuthorityError> {
        self.connections
            .run("outbox_pending", async |connection| {
                let found: i64 = sqlx::query_scalar(
                    "select count(*) from (
                       select from runtime.sync_outbox where status = 'pending' and policy_id = $1 limit $2) p",
                )
                .bind(policy_id)
                .bind(i64::try_from(most).unwrap_or(i64::MAX))
                .fetch_one(connection)
                .await?;
                Ok(usize::try_from(found).unwrap_or_default())
            })
            .await
    }

    /// The relays at which something is due.
    pub async fn outbox_relays(&self) -> Result<Vec<String>, AuthorityError> {
        self.connections
            .run("outbox_relays", async |connection| {
                // One step for each relay, however many deliveries there are.
                let relays = sqlx::query_scalar(concat!(
                    waiting_relays!(),
                    " select relay from r where relay is not null and exists (
                       select from runtime.sync_outbox_deliveries d
                       where d.relay = r.relay and d.status = 'pending' and d.next_at <= clock_timestamp())"
                ));
                Ok(relays.fetch_all(connection).await?)
            })
            .await
    }

    /// The entries that are due at a relay, those first that are due longest.
    pub async fn outbox_due(&self, relay: &str, limit: usize) -> Result<Vec<Delivery>, AuthorityError> {
        self.connections
            .run("outbox_due", async |connection| {
                let sql = format!(
                    "select {ENTRY}, d.attempts
                     from (
                       select event_id, attempts, next_at from runtime.sync_outbox_deliveries
                       where relay = $1 and status = 'pending' and next_at <= clock_timestamp()
                       order by next_at limit $2
                     ) d
                     join runtime.sync_outbox o on o.event_id = d.event_id"
                );
                let rows = sqlx::query(&sql)
                    .bind(relay)
                    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                    .fetch_all(connection)
                    .await?;
                let delivery = |row: &PgRow| {
                    let attempts: i32 = row.try_get(9)?;
                    Ok(Delivery {
                        entry: entry(row)?,
                        attempts: u32::try_from(attempts).unwrap_or_default(),
                    })
                };
                rows.iter().map(delivery).collect()
            })
            .await
    }

    /// Gives up what is void: nobody is to hear of it any more. Returns how many deliveries that were.
    pub async fn outbox_void(&self, event_ids: &[&str]) -> Result<u64, AuthorityError> {
        self.connections
            .run("outbox_void", async |connection| {
                let mut transaction = connection.begin().await?;
                sqlx::query(LOCK).bind(event_ids).execute(&mut *transaction).await?;
                sqlx::query(
                    "update runtime.sync_outbox set status = 'dropped', failure = 'void', settled_at = clock_timestamp()
                     where event_id = any ($1) and status = 'pending'",
                )
                .bind(event_ids)
                .execute(&mut *transaction)
                .await?;
                let gone = sqlx::query(
                    "delete from runtime.sync_outbox_deliveries where event_id = any ($1) and status = 'pending'",
                );
                let gone = gone.bind(event_ids).execute(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(gone.rows_affected())
            })
            .await
    }

    /// Records what attempts at a relay came to, and returns the entries that are settled with it.
    pub async fn outbox_settle(
        &self,
        relay: &str,
        outcomes: &[Outcome],
    ) -> Result<Vec<(String, OutboxState)>, AuthorityError> {
        let ids: Vec<&str> = outcomes.iter().map(|outcome| outcome.event_id.as_str()).collect();
        let of = |outcome: &Outcome| match &outcome.attempt {
            Attempt::Accepted => ("accepted", 0.0, None, None),
            Attempt::Again { after, failure, detail } => {
                ("pending", after.as_secs_f64(), Some(*failure), Some(detail.clone()))
            }
            Attempt::Failed { failure, detail } => ("failed", 0.0, Some(*failure), Some(detail.clone())),
        };
        let (mut statuses, mut waits, mut failures, mut details) = (vec![], vec![], vec![], vec![]);
        for (status, wait, failure, detail) in outcomes.iter().map(of) {
            statuses.push(status);
            waits.push(wait);
            failures.push(failure);
            details.push(detail);
        }
        self.connections
            .run("outbox_settle", async |connection| {
                let mut transaction = connection.begin().await?;
                sqlx::query(LOCK).bind(&ids).execute(&mut *transaction).await?;
                sqlx::query(
                    "update runtime.sync_outbox_deliveries d
                     set status = w.status, attempts = d.attempts + 1, failure = w.failure, detail = w.detail,
                         next_at = clock_timestamp() + make_interval(secs => w.wait)
                     from unnest($2::text[], $3::text[], $4::float8[], $5::text[], $6::text[])
                         as w(event_id, status, wait, failure, detail)
                     where d.event_id = w.event_id and d.relay = $1 and d.status = 'pending'",
                )
                .bind(relay)
                .bind(&ids)
                .bind(&statuses)
                .bind(&waits)
                .bind(&failures)
                .bind(&details)
                .execute(&mut *transaction)
                .await?;
                let rows: Vec<(String, String)> =
                    sqlx::query_as(SETTLE).bind(&ids).fetch_all(&mut *transaction).await?;
                transaction.commit().await?;
                let settled = |(event_id, status): (String, String)| (event_id, OutboxState::of(&status));
                Ok(rows.into_iter().map(settled).collect())
            })
            .await
    }
}

async fn insert(
    connection: &mut PgConnection,
    source: &MirrorSource,
    kept: Kept<'_>,
    entries: &[Entry],
) -> Result<usize, CallError> {
    let texts = |of: fn(&Entry) -> &str| entries.iter().map(of).collect::<Vec<_>>();
    let seconds = |of: fn(&Entry) -> Option<u64>| -> Vec<Option<i64>> {
        let sql = |entry| of(entry).map(|value| i64::try_from(value).unwrap_or(i64::MAX));
        entries.iter().map(sql).collect()
    };
    let names = texts(|entry| &entry.d_tag);
    let created = seconds(|entry| Some(entry.created_at_s));
    if let MirrorSource::Capabilities = source {
        // What waits or is parked is given up; and what is sent goes to no further relay.
        for sql in [
            "with old as (
               select o.event_id from runtime.sync_outbox o
                 where o.status in ('pending', 'parked') and o.source = 'capabilities' and exists (
                   select from unnest($1::text[], $2::bigint[]) as n(d_tag, created_at_s)
                   where o.d_tag = n.d_tag and o.created_at_s < n.created_at_s)
                 order by o.event_id for update
             ), replaced as (
               update runtime.sync_outbox o set status = 'dropped', failure = 'superseded', settled_at = clock_timestamp()
                 from old where o.event_id = old.event_id
             )
             delete from runtime.sync_outbox_deliveries d using old where d.event_id = old.event_id",
            // What is void is given up without this.
            "with old as (
               select o.event_id from runtime.sync_outbox o
                 where o.status = 'sent' and o.source = 'capabilities' and o.d_tag = any ($1)
                   and o.expires_at_s > extract(epoch from clock_timestamp())::bigint and exists (
                     select from unnest($1::text[], $2::bigint[]) as n(d_tag, created_at_s)
                     where o.d_tag = n.d_tag and o.created_at_s < n.created_at_s)
                 order by o.event_id for update
             )
             delete from runtime.sync_outbox_deliveries d using old
               where d.event_id = old.event_id and d.status = 'pending'",
        ] {
            let superseding = sqlx::query(sql).bind(&names).bind(&created);
            superseding.execute(&mut *connection).await?;
        }
    }
    let (policy_id, relays, quorum, failure) = match kept {
        Kept::Publish(policy) => (
            policy.policy_id.as_str(),
            policy.relays.as_slice(),
            i32::try_from(policy.quorum).unwrap_or(i32::MAX),
            None,
        ),
        Kept::Park(failure) => ("", [].as_slice(), 0, Some(failure)),
    };
    // What others have put into SpacetimeDB is there.
    let reflected = match source {
        MirrorSource::Enqueued => Reflected::Pending,
        MirrorSource::Events(_) | MirrorSource::Capabilities => Reflected::Nothing,
    };
    let ids = texts(|entry| entry.event_id.as_str());
    let fresh: Vec<String> = sqlx::query_scalar(
        "insert into runtime.sync_outbox (event_id, policy_id, source, nostr_kind, schema, d_tag, content, created_at_s,
             expires_at_s, author, published_as, quorum, status, failure, reflected, settled_at)
           select n.event_id, $1, $2, n.nostr_kind, n.schema, n.d_tag, n.content, n.created_at_s, n.expires_at_s, n.author,
               n.published_as, $3, case when $4::text is null then 'pending' else 'parked' end, $4, $5,
               case when $4::text is not null then clock_timestamp() end
             from unnest($6::text[], $7::int[], $8::text[], $9::text[], $10::text[], $11::bigint[], $12::bigint[],
                 $13::text[], $14::text[])
               as n(event_id, nostr_kind, schema, d_tag, content, created_at_s, expires_at_s, author, published_as)
             order by n.event_id collate \"C\"
           on conflict (event_id) do nothing returning event_id",
    )
    .bind(policy_id)
    .bind(source.as_str())
    .bind(quorum)
    .bind(failure)
    .bind(reflected.as_str())
    .bind(&ids)
    .bind(entries.iter().map(|entry| i32::from(entry.nostr_kind)).collect::<Vec<_>>())
    .bind(texts(|entry| &entry.schema))
    .bind(&names)
    .bind(texts(|entry| &entry.content))
    .bind(&created)
    .bind(seconds(|entry| entry.expires_at_s))
    .bind(texts(|entry| &entry.author))
    .bind(texts(|entry| &entry.published_as))
    .fetch_all(&mut *connection)
    .await?;
    // Of an advertisement the first of its slot stands. An event may be named by several policies.
    let to_deliver = match source {
        MirrorSource::Events(_) => ids,
        MirrorSource::Capabilities | MirrorSource::Enqueued => fresh.iter().map(String::as_str).collect(),
    };
    if to_deliver.len() > fresh.len() {
        sqlx::query(LOCK).bind(&to_deliver).execute(&mut *connection).await?;
    }
    // What was over is open again. It has the same id, so those that have it already take it for what it is. What was given up stays
    // so for the policy that it is of.
    sqlx::query(
        "with added as (
           insert into runtime.sync_outbox_deliveries (event_id, relay)
             select i.event_id, r.relay
               from unnest($1::text[]) as i(event_id) join runtime.sync_outbox o on o.event_id = i.event_id
               cross join unnest($2::text[]) as r(relay)
               where o.status <> 'dropped' or o.policy_id <> $5
             on conflict (event_id, relay) do nothing returning event_id
         )
         update runtime.sync_outbox o
           set status = case when o.status = 'parked' then o.status else 'pending' end,
               settled_at = case when o.status = 'parked' then o.settled_at end,
               quorum = least(a.relays, $3) + case when o.status = 'dropped' then 0 else o.quorum end
           from (select event_id, count(*)::int as relays from added group by event_id) a
           where o.event_id = a.event_id and o.event_id <> all ($4::text[])",
    )
    .bind(&to_deliver)
    .bind(relays)
    .bind(quorum)
    .bind(&fresh)
    .bind(policy_id)
    .execute(&mut *connection)
    .await?;
    Ok(fresh.len())
}

/// The entry in the first columns of a row.
fn entry(row: &PgRow) -> Result<Entry, CallError> {
    let event_id: &str = row.try_get(0)?;
    let seconds = |value: i64| u64::try_from(value).map_err(|_| wrong(event_id, "a time of the outbox"));
    let (kind, created, expires): (i32, i64, Option<i64>) = (row.try_get(1)?, row.try_get(5)?, row.try_get(6)?);
    Ok(Entry {
        event_id: name(event_id)?,
        nostr_kind: u16::try_from(kind).map_err(|_| wrong(event_id, "a kind of Nostr"))?,
        schema: row.try_get(2)?,
        d_tag: row.try_get(3)?,
        content: row.try_get(4)?,
        created_at_s: seconds(created)?,
        expires_at_s: expires.map(seconds).transpose()?,
        author: row.try_get(7)?,
        published_as: row.try_get(8)?,
    })
}

/// The name of an entry.
fn name(text: &str) -> Result<Label, CallError> {
    Label::new(text).map_err(|_| wrong(text, "a name of the outbox"))
}

fn wrong(event_id: &str, what: &'static str) -> CallError {
    CallError::Content(AuthorityError::Corrupt {
        stream_id: event_id.to_owned(),
        seq: 0,
        what,
    })
}
