//! The SQL behind tokens and revocations: who may read what, and which sessions exist.

use std::net::IpAddr;

use spacetime_sync_proto::access::{Scope, StreamPattern};
use spacetime_sync_proto::{Label, limit};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::error::CallError;
use super::{Actor, Authority, AuthorityError};

/// Most names read for one pattern: one more than a token may hold, so that the caller notices when there are too many.
const NAMES_PER_PATTERN: i64 = limit::TOKEN_STREAMS as i64 + 1;

/// Who asks for access, and to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessQuestion {
    /// The session.
    pub session_id: Label,
    /// Its user.
    pub user_id: Label,
    /// The organisation that it acts for.
    pub org_id: Option<Label>,
    /// The streams that it asks for.
    pub wanted: Vec<StreamPattern>,
}

/// The authority's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The session, if it had a token or was revoked before.
    pub session: Option<BoundSession>,
    /// What the subject may read, as far as it overlaps with what the question asks for.
    pub allowed: Vec<StreamPattern>,
    /// Those scopes that the subject may have although [not everybody](Scope::needs_policy) gets them.
    pub scopes: Vec<Scope>,
}

/// A session that the authority knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundSession {
    /// User and device of its first token; `None` if it never had one.
    pub bound_to: Option<(Label, Label)>,
    /// Whether it was revoked.
    pub revoked: bool,
}

impl Authority {
    /// Which of the wanted streams a subject may read, and what the authority knows about its session. This is one
    /// statement, and the question bounds every lookup in it.
    pub async fn access(&self, question: &AccessQuestion) -> Result<Access, AuthorityError> {
        let Lookups {
            streams,
            patterns,
            low,
            high,
        } = Lookups::of(&question.wanted);
        let principals = principals(question);
        self.connections
            .run("access", async |connection| {
                let row = sqlx::query(
                    "select s.session_id is not null as known, s.user_id, s.device_id, s.revoked_at is not null as revoked,
                       array(
                         select p.pattern from runtime.sync_access_policy p
                         where p.principal = any($2) and p.pattern = any($3)
                         union all
                         select ranged.pattern
                         from unnest($2::text[]) as w(principal)
                         cross join unnest($5::text[], $6::text[]) as r(low, high)
                         cross join lateral (
                           select p.pattern from runtime.sync_access_policy p
                           where p.principal = w.principal collate \"C\"
                             and p.pattern > r.low collate \"C\" and p.pattern < r.high collate \"C\"
                           order by p.pattern limit $9) ranged
                       ) as patterns,
                       array(
                         select o.stream_id from runtime.sync_stream_owners o
                         where o.stream_id = any($4) and (o.user_id = $7 or o.org_id = $8)
                         union all
                         select ranged.stream_id from unnest($5::text[], $6::text[]) as r(low, high)
                         cross join lateral (
                           select o.stream_id from runtime.sync_stream_owners o
                           where o.user_id = $7
                             and o.stream_id > r.low collate \"C\" and o.stream_id < r.high collate \"C\"
                           order by o.stream_id limit $9) ranged
                         union all
                         select ranged.stream_id from unnest($5::text[], $6::text[]) as r(low, high)
                         cross join lateral (
                           select o.stream_id from runtime.sync_stream_owners o
                           where o.org_id = $8
                             and o.stream_id > r.low collate \"C\" and o.stream_id < r.high collate \"C\"
                           order by o.stream_id limit $9) ranged
                       ) as streams,
                       array(
                         select p.scope from runtime.sync_scope_policy p where p.principal = any($2)
                       ) as scopes
                     from (values ($1::text)) as asked(session_id)
                     left join runtime.sync_sessions s on s.session_id = asked.session_id collate \"C\"",
                )
                .bind(question.session_id.as_str())
                .bind(&principals)
                .bind(&patterns)
                .bind(&streams)
                .bind(&low)
                .bind(&high)
                .bind(question.user_id.as_str())
                .bind(question.org_id.as_ref().map(Label::as_str))
                .bind(NAMES_PER_PATTERN)
                .fetch_one(connection)
                .await?;
                let session = if row.try_get("known")? {
                    Some(bound_session(&row)?)
                } else {
                    None
                };
                let patterns: Vec<String> = row.try_get("patterns")?;
                let streams: Vec<String> = row.try_get("streams")?;
                // A text that is not a pattern grants nothing. The tables' checks keep such texts out.
                let allowed = patterns.iter().chain(&streams);
                let allowed = allowed.filter_map(|text| StreamPattern::new(text).ok());
                let scopes: Vec<String> = row.try_get("scopes")?;
                Ok(Access {
                    session,
                    allowed: allowed.collect(),
                    scopes: scopes.iter().filter_map(|name| name.parse().ok()).collect(),
                })
            })
            .await
    }

    /// Binds a session to the user and the device of its first token, unless it is bound already, and records in the audit
    /// log from which address that was asked. If its user or its device was revoked after `signed_in`, in Unix seconds, the
    /// session is revoked with that. Returns what the session is bound to afterwards.
    pub async fn bind_session(
        &self,
        session_id: &Label,
        user_id: &Label,
        device_id: &Label,
        signed_in: u64,
        address: IpAddr,
    ) -> Result<BoundSession, AuthorityError> {
        self.connections
            .run("bind_session", async |connection| {
                let row = sqlx::query(
                    "select bound_user as user_id, bound_device as device_id, revoked
                     from runtime.sync_bind_session($1, $2, $3, $4, $5)",
                )
                .bind(session_id.as_str())
                .bind(user_id.as_str())
                .bind(device_id.as_str())
                .bind(i64::try_from(signed_in).unwrap_or(i64::MAX))
                .bind(address.to_string())
                .fetch_one(connection)
                .await?;
                bound_session(&row)
            })
            .await
    }

    /// Revokes sessions, including those that never had a token. The first revocation of a session counts, and the audit log
    /// has it. Returns those that never had a token.
    pub async fn revoke_sessions(
        &self,
        session_ids: &[Label],
        reason: &str,
        actor: &Actor,
    ) -> Result<Vec<Label>, AuthorityError> {
        let ids: Vec<&str> = session_ids.iter().map(Label::as_str).collect();
        self.connections
            .run("revoke_sessions", async |connection| {
                let unknown: Vec<String> = sqlx::query_scalar("select runtime.sync_revoke_sessions($1, $2, $3, $4)")
                    .bind(&ids)
                    .bind(reason)
                    .bind(actor.who())
                    .bind(actor.origin())
                    .fetch_one(connection)
                    .await?;
                unknown.iter().map(|text| label(text)).collect()
            })
            .await
    }

    /// Revokes all sessions of these users and on these devices that were signed in until now, including those that never
    /// had a token. The audit log has it. Returns the sessions that this revoked.
    pub async fn revoke_subjects(
        &self,
        users: &[Label],
        devices: &[Label],
        reason: &str,
        actor: &Actor,
    ) -> Result<Vec<Label>, AuthorityError> {
        let [users, devices] = [users, devices].map(|names| names.iter().map(Label::as_str).collect::<Vec<_>>());
        self.connections
            .run("revoke_subjects", async |connection| {
                let revoked: Vec<String> =
                    sqlx::query_scalar("select runtime.sync_revoke_subjects($1, $2, $3, $4, $5)")
                        .bind(&users)
                        .bind(&devices)
                        .bind(reason)
                        .bind(actor.who())
                        .bind(actor.origin())
                        .fetch_one(connection)
                        .await?;
                revoked.iter().map(|text| label(text)).collect()
            })
            .await
    }

    /// Revoked sessions that SpacetimeDB has not taken yet, the oldest first.
    pub async fn undelivered_revocations(&self, limit: usize) -> Result<Vec<Label>, AuthorityError> {
        self.connections
            .run("undelivered_revocations", async |connection| {
                let found: Vec<String> = sqlx::query_scalar(
                    "select session_id from runtime.sync_sessions
                     where revoked_at is not null and delivered_at is null order by revoked_at limit $1",
                )
                .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                .fetch_all(connection)
                .await?;
                found.iter().map(|text| label(text)).collect()
            })
            .await
    }

    /// The sessions that were revoked within the last `seconds`.
    pub async fn recent_revocations(&self, seconds: f64) -> Result<Vec<Label>, AuthorityError> {
        self.connections
            .run("recent_revocations", async |connection| {
                let found: Vec<String> = sqlx::query_scalar(
                    "select session_id from runtime.sync_sessions
                     where revoked_at > clock_timestamp() - make_interval(secs => $1)",
                )
                .bind(seconds)
                .fetch_all(connection)
                .await?;
                found.iter().map(|text| label(text)).collect()
            })
            .await
    }

    /// Records that SpacetimeDB has taken the revocation of these sessions.
    pub async fn revocations_delivered(&self, session_ids: &[Label]) -> Result<(), AuthorityError> {
        let ids: Vec<&str> = session_ids.iter().map(Label::as_str).collect();
        self.connections
            .run("revocations_delivered", async |connection| {
                sqlx::query(
                    "update runtime.sync_sessions set delivered_at = clock_timestamp()
                     where session_id = any($1) and revoked_at is not null and delivered_at is null",
                )
                .bind(&ids)
                .execute(connection)
                .await?;
                Ok(())
            })
            .await
    }

    /// Records that SpacetimeDB may have lost the revocations of the last `seconds`. Returns how many these are.
    pub async fn redeliver_revocations(&self, seconds: f64) -> Result<u64, AuthorityError> {
        self.connections
            .run("redeliver_revocations", async |connection| {
                let done = sqlx::query(
                    "update runtime.sync_sessions set delivered_at = null
                     where revoked_at > clock_timestamp() - make_interval(secs => $1) and delivered_at is not null",
                )
                .bind(seconds)
                .execute(connection)
                .await?;
                Ok(done.rows_affected())
            })
            .await
    }

    /// Looks at the next `limit` sessions after `after`, and forgets those whose first token and whose revocation are more
    /// than `days` old, and older than `runtime.sync_session_retention` says. A session stays while SpacetimeDB has not
    /// taken its revocation. Returns the last session that it looked at, or `None` at the end, and how many it forgot.
    pub async fn forget_sessions(
        &self,
        days: u16,
        after: Option<&Label>,
        limit: usize,
    ) -> Result<(Option<Label>, u64), AuthorityError> {
        self.connections
            .run("forget_sessions", async |connection| {
                let (last, gone): (Option<String>, i64) =
                    sqlx::query_as("select last, gone from runtime.sync_forget_sessions($1, $2, $3)")
                        .bind(i32::from(days))
                        // The empty text sorts before every id, because no id is empty.
                        .bind(after.map_or("", Label::as_str))
                        .bind(i32::try_from(limit).unwrap_or(i32::MAX))
                        .fetch_one(connection)
                        .await?;
                let last = last.as_deref().map(label).transpose()?;
                Ok((last, u64::try_from(gone).unwrap_or_default()))
            })
            .await
    }
}

fn principals(question: &AccessQuestion) -> Vec<String> {
    let org = question.org_id.iter().map(|org| format!("org:{org}"));
    let mut principals = vec!["everyone".to_owned(), format!("user:{}", question.user_id)];
    principals.extend(org);
    principals
}

/// What to look for: names, patterns that cover what is wanted, and ranges of names below wanted prefixes.
#[derive(Debug, Default)]
struct Lookups {
    streams: Vec<String>,
    patterns: Vec<String>,
    low: Vec<String>,
    high: Vec<String>,
}

impl Lookups {
    fn of(wanted: &[StreamPattern]) -> Self {
        let mut lookups = Self::default();
        for pattern in wanted {
            lookups.patterns.push(pattern.to_string());
            match pattern {
                StreamPattern::Exact(stream_id) => {
                    let covering = StreamPattern::prefixes_of(stream_id).map(|prefix| format!("{prefix}*"));
                    lookups.patterns.extend(covering);
                    lookups.streams.push(stream_id.as_str().to_owned());
                }
                StreamPattern::Prefix(prefix) => {
                    let ends = prefix.char_indices().filter(|(_, c)| matches!(c, '.' | ':' | '/'));
                    let covering = ends.map(|(at, _)| format!("{}*", &prefix[..=at]));
                    lookups.patterns.extend(covering);
                    lookups.high.push(after_all(prefix));
                    lookups.low.push(prefix.clone());
                }
            }
        }
        lookups.patterns.sort();
        lookups.patterns.dedup();
        lookups
    }
}

/// The smallest text that sorts after all texts with a prefix: the prefix with its last character, an ASCII separator,
/// raised by one.
fn after_all(prefix: &str) -> String {
    let mut text = prefix.to_owned();
    if let Some(last) = text.pop() {
        text.push(char::from_u32(u32::from(last) + 1).unwrap_or(char::MAX));
    }
    text
}

pub(super) fn bound_session(row: &PgRow) -> Result<BoundSession, CallError> {
    let bound: (Option<String>, Option<String>) = (row.try_get("user_id")?, row.try_get("device_id")?);
    let bound_to = match bound {
        (Some(user_id), Some(device_id)) => Some((label(&user_id)?, label(&device_id)?)),
        _ => None,
    };
    Ok(BoundSession {
        bound_to,
        revoked: row.try_get("revoked")?,
    })
}

fn label(text: &str) -> Result<Label, CallError> {
    Label::new(text).map_err(|_| {
        CallError::Content(AuthorityError::Corrupt {
            stream_id: text.to_owned(),
            seq: 0,
            what: "a name of a session",
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookups_cover_exactly_what_is_wanted() {
        let wanted = ["user:1:notes", "user:1:*"].map(|text| StreamPattern::new(text).unwrap());
        let lookups = Lookups::of(&wanted);
        assert_eq!(lookups.streams, ["user:1:notes"]);
        assert_eq!(lookups.patterns, ["user:*", "user:1:*", "user:1:notes"]);
        assert_eq!(
            (&lookups.low[..], &lookups.high[..]),
            (&["user:1:".to_owned()][..], &["user:1;".to_owned()][..])
        );
        for (prefix, inside, outside) in [("a.", "a.~", "a/"), ("a:", "a:zz", "a;"), ("a/", "a/~", "a0")] {
            let high = after_all(prefix);
            assert!(inside < high.as_str() && outside >= high.as_str(), "{prefix}");
        }
    }
}
