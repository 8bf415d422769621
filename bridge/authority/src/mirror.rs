//! What the mirror reads of the authority: its policy, and where the events are that it has not read yet. Never a payload.
//!
//! Nobody waits for these statements: they take no lock but those of a read, and the server ends them early.

use spacetime_sync_proto::access::StreamPattern;
use spacetime_sync_proto::{Kind, PayloadHash, Seq, StreamId};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection as _, Executor as _, Row as _};

use super::error::CallError;
use super::log::Timestamp;
use super::relay::one_relay;
use super::retention::corrupt;
use super::{Authority, AuthorityError, is_name, stream_id};

/// How long one statement of the mirror may take on the server.
const BRIEF: &str = "set local statement_timeout = '2s'";
/// The most policies, and the most trusted keys. Further ones have no effect.
const POLICIES: i64 = 256;

/// What is mirrored, and to which relays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorPolicy {
    /// Its name.
    pub policy_id: String,
    /// Where it comes from.
    pub source: MirrorSource,
    /// The kinds of events; none: all.
    pub kinds: Vec<String>,
    /// The schema of what is published.
    pub schema: String,
    /// The kind of what is published, by Nostr's count.
    pub nostr_kind: u16,
    /// Where it is published, each relay once and in its one form.
    pub relays: Vec<String>,
    /// How many relays must have it before it counts as sent.
    pub quorum: usize,
}

/// Where something comes from that is mirrored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirrorSource {
    /// The events of these streams.
    Events(StreamPattern),
    /// The capabilities that SpacetimeDB shows.
    Capabilities,
    /// What others have put into SpacetimeDB's outbox.
    Enqueued,
}

impl MirrorSource {
    /// Its name in the tables.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Events(_) => "events",
            Self::Capabilities => "capabilities",
            Self::Enqueued => "enqueued",
        }
    }
}

/// A key whose capabilities come in from relays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    /// The public key, in hex.
    pub nostr_key: String,
    /// How the names of its providers begin here.
    pub provider_prefix: String,
}

/// How far a policy has read a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// The stream.
    pub stream_id: StreamId,
    /// The last seq that it has read.
    pub cursor: Seq,
    /// The seq before the first event that there is.
    pub floor: Seq,
    /// The last seq that there is.
    pub head: Seq,
}

/// An event, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirroredEvent {
    /// Its position.
    pub seq: Seq,
    /// Its kind.
    pub kind: Kind,
    /// The hash of its payload.
    pub payload_hash: PayloadHash,
    /// When it was committed, in microseconds since 1970.
    pub committed_at_us: i64,
}

impl Authority {
    /// The policies that are enabled, in the order of their names, and the names of those that cannot be read.
    pub async fn mirror_policies(&self) -> Result<(Vec<MirrorPolicy>, Vec<String>), AuthorityError> {
        self.connections
            .run("mirror_policies", async |connection| {
                let rows = sqlx::query(
                    "select policy_id, source, pattern, kinds, schema, nostr_kind, relays, quorum
                     from runtime.sync_mirror_policy where enabled order by policy_id limit $1",
                )
                .bind(POLICIES)
                .fetch_all(connection)
                .await?;
                let (mut good, mut malformed) = (Vec::new(), Vec::new());
                for row in &rows {
                    match policy(row)? {
                        Ok(policy) => good.push(policy),
                        Err(name) => malformed.push(name),
                    }
                }
                Ok((good, malformed))
            })
            .await
    }

    /// The keys that are trusted.
    pub async fn trusted_keys(&self) -> Result<Vec<TrustedKey>, AuthorityError> {
        self.connections
            .run("trusted_keys", async |connection| {
                let rows: Vec<(String, String)> = sqlx::query_as(
                    "select nostr_key, provider_prefix from runtime.sync_mirror_trusted_keys
                     where enabled order by nostr_key limit $1",
                )
                .bind(POLICIES)
                .fetch_all(connection)
                .await?;
                let key = |(nostr_key, provider_prefix)| TrustedKey {
                    nostr_key,
                    provider_prefix,
                };
                Ok(rows.into_iter().map(key).collect())
            })
            .await
    }

    /// How far a policy has read the next `limit` streams of a pattern after `after`, in the order of their names.
    pub async fn mirror_positions(
        &self,
        policy_id: &str,
        pattern: &StreamPattern,
        after: Option<&StreamId>,
        limit: usize,
    ) -> Result<Vec<Behind>, AuthorityError> {
        let (low, high) = match pattern {
            StreamPattern::Exact(only) => (only.as_str(), only.as_str().to_owned()),
            // No character of a name comes after it.
            StreamPattern::Prefix(prefix) => (prefix.as_str(), format!("{prefix}\u{7f}")),
        };
        self.connections
            .run("mirror_positions", async |connection| {
                let mut transaction = connection.begin().await?;
                transaction.execute(BRIEF).await?;
                let rows = sqlx::query(concat!(
                    "select s.stream_id, s.head_seq, s.oldest_seq - 1, coalesce(c.seq, 0)
                     from (
                       select stream_id, head_seq, oldest_seq from runtime.sync_streams
                       where stream_id >= $2 and stream_id <= $3 and stream_id > $4 and head_seq > 0 and ",
                    is_name!(),
                    " order by stream_id limit $5
                     ) s
                     left join runtime.sync_mirror_cursors c on c.policy_id = $1 and c.stream_id = s.stream_id
                     order by s.stream_id"
                ))
                .bind(policy_id)
                .bind(low)
                .bind(&high)
                .bind(after.map_or("", StreamId::as_str))
                .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                .fetch_all(&mut *transaction)
                .await?;
                transaction.commit().await?;
                rows.iter().map(behind).collect()
            })
            .await
    }

    /// The events after a seq, in order, at most `limit`.
    pub async fn mirrored_events(
        &self,
        stream_id: &StreamId,
        after: Seq,
        limit: usize,
    ) -> Result<Vec<MirroredEvent>, AuthorityError> {
        self.connections
            .run("mirrored_events", async |connection| {
                let mut transaction = connection.begin().await?;
                transaction.execute(BRIEF).await?;
                let rows = events(&mut transaction, stream_id, after, limit).await?;
                transaction.commit().await?;
                rows.iter().map(|row| event(stream_id, row)).collect()
            })
            .await
    }

    /// Removes the cursors of policies that are gone.
    pub async fn forget_mirror_cursors(&self) -> Result<u64, AuthorityError> {
        self.connections
            .run("forget_mirror_cursors", async |connection| {
                let gone = sqlx::query(
                    "delete from runtime.sync_mirror_cursors c
                     where not exists (select from runtime.sync_mirror_policy p where p.policy_id = c.policy_id)",
                )
                .execute(connection)
                .await?;
                Ok(gone.rows_affected())
            })
            .await
    }
}

async fn events(
    connection: &mut PgConnection,
    stream_id: &StreamId,
    after: Seq,
    limit: usize,
) -> Result<Vec<PgRow>, CallError> {
    let rows = sqlx::query(
        "select seq, kind, payload_hash, committed_at from runtime.sync_stream_events
         where stream_id = $1 and seq > $2 order by seq limit $3",
    )
    .bind(stream_id.as_str())
    .bind(after.to_sql())
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

fn policy(row: &PgRow) -> Result<Result<MirrorPolicy, String>, CallError> {
    let policy_id: String = row.try_get(0)?;
    let pattern: Option<String> = row.try_get(2)?;
    let source = match row.try_get::<&str, _>(1)? {
        "events" => pattern
            .and_then(|text| StreamPattern::new(&text).ok())
            .map(MirrorSource::Events),
        "capabilities" => Some(MirrorSource::Capabilities),
        "enqueued" => Some(MirrorSource::Enqueued),
        _ => None,
    };
    let (nostr_kind, quorum): (i32, Option<i32>) = (row.try_get(5)?, row.try_get(7)?);
    // Here alone: whatever is written for a policy has this form.
    let named: Vec<String> = row.try_get(6)?;
    let mut relays: Vec<String> = named.iter().map(|address| one_relay(address)).collect();
    relays.sort();
    relays.dedup();
    let quorum = quorum.map_or(Some(relays.len()), |quorum| usize::try_from(quorum).ok());
    let (Some(source), Ok(nostr_kind), Some(quorum)) = (source, u16::try_from(nostr_kind), quorum) else {
        return Ok(Err(policy_id));
    };
    if quorum > relays.len() {
        return Ok(Err(policy_id));
    }
    Ok(Ok(MirrorPolicy {
        policy_id,
        source,
        kinds: row.try_get(3)?,
        schema: row.try_get(4)?,
        nostr_kind,
        relays,
        quorum,
    }))
}

fn behind(row: &PgRow) -> Result<Behind, CallError> {
    let stream_id = stream_id(row.try_get(0)?)?;
    let seq = |value, what| Seq::from_sql(value).ok_or_else(|| corrupt(&stream_id, value, what));
    Ok(Behind {
        head: seq(row.try_get(1)?, "a head_seq")?,
        floor: seq(row.try_get(2)?, "an oldest_seq")?,
        cursor: seq(row.try_get(3)?, "a cursor")?,
        stream_id,
    })
}

fn event(stream_id: &StreamId, row: &PgRow) -> Result<MirroredEvent, CallError> {
    let seq: i64 = row.try_get(0)?;
    let Timestamp(committed_at_us) = row.try_get(3).map_err(|_| corrupt(stream_id, seq, "a time"))?;
    Ok(MirroredEvent {
        seq: Seq::from_sql(seq).ok_or_else(|| corrupt(stream_id, seq, "a position"))?,
        kind: Kind::new(row.try_get(1)?).map_err(|_| corrupt(stream_id, seq, "a kind"))?,
        payload_hash: PayloadHash::from_slice(row.try_get(2)?)
            .ok_or_else(|| corrupt(stream_id, seq, "a payload hash"))?,
        committed_at_us,
    })
}
