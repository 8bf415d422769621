//! Who calls, and what the caller may do, by its session or by a grant that an operator gave.

use std::collections::BTreeSet;
use std::time::Duration;

use spacetime_sync_proto::access::{Compatibility, Scope, StreamPattern};
use spacetime_sync_proto::{Label, Refusal, RefusalCode, StreamId, limit};
use spacetime_sync_rules::session::{self, Claims, Newest, NewestToken, Policy, Session};
use spacetime_sync_rules::stream_key;
use spacetimedb::{Identity, ReducerContext, Table, Timestamp};

use crate::log_access::trust_row;
use crate::refuse::{Refused, invalid_argument, refused, unauthorized};
use crate::tables::{
    EndedSession, GrantCount, GrantPattern, Issuer, StandingGrant, StreamGrant, SyncSession, SyncStream, SyncTrust,
    ended_session, grant_count, grant_pattern, revoked_session, standing_grant, stream_grant, sync_checkpoint,
    sync_session, sync_stream,
};

/// Admits a connection, or refuses it. A token of the issuer opens its session, or renews it.
pub fn admit(ctx: &ReducerContext) -> Result<(), Refused> {
    let trust = trust_row(ctx)?;
    let Some(issuer) = &trust.issuer else {
        return trust.trust().admit_without_issuer(ctx.sender()).map_err(refused);
    };
    let auth = ctx.sender_auth();
    let claims = auth.jwt().and_then(|jwt| Claims::read(jwt.raw_payload()).ok());
    if let Some(claims) = claims
        && claims.issuer() == Some(issuer.url.as_str())
    {
        let is_revoked = |name: &Label| {
            ctx.db
                .revoked_session()
                .session_id()
                .find(name.as_str().to_owned())
                .is_some()
        };
        let judged = session::judge(claims, &issuer.policy(), second_of(ctx.timestamp), is_revoked);
        return open(ctx, &trust, judged.map_err(|denied| denied.to_wire())?);
    }
    let caller = ctx.sender();
    if trust.trust().operator(caller).is_ok() || has_standing_grant(ctx, caller) {
        return Ok(());
    }
    Err(unauthorized(
        "connecting needs a token from the bridge: ask for one with POST /api/sync/token",
    ))
}

impl Issuer {
    pub fn policy(&self) -> Policy {
        Policy {
            issuer: self.url.clone(),
            audience: self.audience.clone(),
            compatibility: Compatibility {
                min_client_build_id: self.min_client_build_id.clone(),
                max_client_build_id: self.max_client_build_id.clone(),
                min_schema_version: self.min_schema_version,
                max_schema_version: self.max_schema_version,
            },
        }
    }
}

fn open(ctx: &ReducerContext, trust: &SyncTrust, session: Session) -> Result<(), Refused> {
    let identity = ctx.sender();
    let sessions = ctx.db.sync_session();
    let held = sessions.identity().find(identity);
    if let Some(held) = &held
        && held.device_id != session.device_id.as_str()
    {
        let message = "the session is bound to another device: sign in again on this one";
        return Err(refused(Refusal::new(RefusalCode::SessionBound, message)));
    }
    let newest = newest_token(ctx, identity, held.as_ref());
    if !session.renews(newest, second_of(ctx.timestamp)).map_err(refused)? {
        return Ok(());
    }
    ctx.db.ended_session().identity().delete(identity);
    let row = SyncSession {
        identity,
        session_id: session.session_id.as_str().to_owned(),
        user_id: session.user_id.as_str().to_owned(),
        org_id: session.org_id.as_ref().map(|org| org.as_str().to_owned()),
        device_id: session.device_id.as_str().to_owned(),
        scopes: session.scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
        issued_at: session.issued_at_us,
        expires_at: at_second(session.expires_at),
    };
    if held.is_some() {
        sessions.identity().update(row);
    } else {
        sessions.try_insert(row).map_err(|_| {
            let message = "the session belongs to another user: sign in again";
            refused(Refusal::new(RefusalCode::SessionBound, message))
        })?;
    }
    grant(ctx, trust, identity, &session, held.as_ref())
}

/// The newest token of the identity's session, which lasts or has ended.
fn newest_token(ctx: &ReducerContext, identity: Identity, held: Option<&SyncSession>) -> Option<NewestToken> {
    let token = |issued_at_us, expires_at| NewestToken {
        issued_at_us,
        expires_at: second_of(expires_at),
    };
    match held {
        Some(held) => Some(token(held.issued_at, held.expires_at)),
        None => {
            let ended = ctx.db.ended_session().identity().find(identity)?;
            Some(token(ended.issued_at, ended.expired_at))
        }
    }
}

/// Sets a session's grants and patterns to what its token says: the audiences that it belongs to, the streams that it names,
/// and the newest ones that match its patterns. Writes only the rows that differ.
fn grant(
    ctx: &ReducerContext,
    trust: &SyncTrust,
    identity: Identity,
    session: &Session,
    before: Option<&SyncSession>,
) -> Result<(), Refused> {
    let mut wanted = BTreeSet::from([trust.user_key(session.user_id.as_str())?]);
    if session.scopes.contains(&Scope::Provider) {
        wanted.insert(trust.providers_key()?);
    }
    if session.scopes.contains(&Scope::Mirror) {
        wanted.insert(trust.mirrors_key()?);
    }
    let mut prefixes = BTreeSet::new();
    for pattern in &session.streams {
        match pattern {
            StreamPattern::Exact(stream_id) if session::may_see(&session.scopes, stream_id) => {
                wanted.insert(trust.stream_key(stream_id)?);
            }
            StreamPattern::Exact(_) => {}
            StreamPattern::Prefix(prefix) => {
                prefixes.insert(prefix.clone());
            }
        }
    }
    let patterns = ctx.db.grant_pattern();
    let held_prefixes: BTreeSet<String> = patterns.identity().filter(identity).map(|row| row.prefix).collect();
    let grants = ctx.db.stream_grant();
    let held: Vec<StreamGrant> = grants.by_holder().filter(identity).collect();

    let streams = ctx.db.sync_stream();
    let mut newest = Newest::new(limit::PATTERN_GRANTS);
    let mut consider = |stream: SyncStream| {
        let covered = StreamId::new(&stream.stream_id).is_ok_and(|id| session.covers(&id));
        if covered && !wanted.contains(&stream.stream_key) {
            newest.add(stream.created_at, stream.stream_key);
        }
    };
    let same_patterns = held_prefixes == prefixes && before.is_some_and(|before| before.scopes() == session.scopes);
    if same_patterns && has_had_room(ctx, identity) {
        // Streams that were created since the last token were granted when they were created, so there is no need to go
        // through all streams again.
        held.iter()
            .filter_map(|row| streams.stream_key().find(row.stream_key))
            .for_each(&mut consider);
    } else {
        for prefix in &prefixes {
            streams
                .by_name()
                .filter(prefix.as_str()..end_of(prefix).as_str())
                .for_each(&mut consider);
        }
    }
    wanted.extend(newest.keys());

    let mut missing = wanted.clone();
    for row in held {
        let is_wanted = missing.remove(&row.stream_key);
        if row.standing {
            set_beside_session(ctx, row.grant_id, is_wanted);
        } else if !is_wanted {
            take(ctx, &row);
        }
    }
    for stream_key in missing {
        grants.insert(StreamGrant {
            grant_id: 0,
            identity,
            stream_key,
            standing: false,
        });
    }

    ctx.db.grant_count().identity().delete(identity);
    if !prefixes.is_empty() {
        let grants = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
        ctx.db.grant_count().insert(GrantCount { identity, grants });
    }
    if held_prefixes != prefixes {
        patterns.identity().delete(identity);
        for prefix in prefixes {
            patterns.insert(GrantPattern {
                pattern_id: 0,
                identity,
                prefix,
            });
        }
    }
    Ok(())
}

/// Whether there was room to grant every stream that was created since the session's last token.
fn has_had_room(ctx: &ReducerContext, identity: Identity) -> bool {
    let count = ctx.db.grant_count().identity().find(identity);
    count.is_some_and(|count| (count.grants as usize) < limit::SESSION_GRANTS)
}

fn second_of(time: Timestamp) -> u64 {
    u64::try_from(time.to_micros_since_unix_epoch() / 1_000_000).unwrap_or_default()
}

fn at_second(second: u64) -> Timestamp {
    let micros = i64::try_from(second).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    Timestamp::from_micros_since_unix_epoch(micros)
}

/// The first text after all texts that begin with this one. Names are ASCII.
fn end_of(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    end.push('\u{7f}');
    end
}

/// Grants a stream that was just created to the sessions whose patterns cover it. A session without room for another
/// grant gets it with its next token.
pub fn grant_new_stream(ctx: &ReducerContext, stream_id: &StreamId, stream_key: u64) {
    let counts = ctx.db.grant_count();
    for prefix in StreamPattern::prefixes_of(stream_id) {
        for pattern in ctx.db.grant_pattern().prefix().filter(prefix) {
            let identity = pattern.identity;
            let session = ctx.db.sync_session().identity().find(identity);
            let may_see = session.is_some_and(|session| session::may_see(&session.scopes(), stream_id));
            let held = grant_row(ctx, identity, stream_key);
            if !may_see || held.as_ref().is_some_and(|held| is_of_session(ctx, held)) {
                continue;
            }
            // A session without a count is older than this table. Its next token counts its grants.
            if let Some(count) = counts.identity().find(identity) {
                if count.grants as usize >= limit::SESSION_GRANTS {
                    continue;
                }
                let grants = count.grants + 1;
                counts.identity().update(GrantCount { grants, ..count });
            }
            match held {
                Some(held) => set_beside_session(ctx, held.grant_id, true),
                None => {
                    ctx.db.stream_grant().insert(StreamGrant {
                        grant_id: 0,
                        identity,
                        stream_key,
                        standing: false,
                    });
                }
            }
        }
    }
}

/// Notes whether the session has the right that the owner gave, too.
fn set_beside_session(ctx: &ReducerContext, grant_id: u64, beside_session: bool) {
    let given = ctx.db.standing_grant().grant_id();
    if let Some(held) = given.find(grant_id)
        && held.beside_session != beside_session
    {
        given.update(StandingGrant { beside_session, ..held });
    }
}

/// Ends what the owner gave. What the session has by its token remains.
pub fn end_standing(ctx: &ReducerContext, grant: StreamGrant) {
    if !is_of_session(ctx, &grant) {
        return take(ctx, &grant);
    }
    ctx.db.standing_grant().grant_id().delete(grant.grant_id);
    ctx.db.stream_grant().grant_id().update(StreamGrant {
        standing: false,
        ..grant
    });
}

/// Takes a grant away, and with it the checkpoints that its holder acknowledged.
pub fn take(ctx: &ReducerContext, grant: &StreamGrant) {
    ctx.db.stream_grant().grant_id().delete(grant.grant_id);
    let held = ctx.db.sync_checkpoint().by_holder();
    held.delete((grant.identity, grant.stream_key));
    if grant.standing {
        ctx.db.standing_grant().grant_id().delete(grant.grant_id);
    }
}

/// Ends a session whose newest token has expired.
pub fn expire(ctx: &ReducerContext, session: SyncSession) {
    let SyncSession {
        identity,
        issued_at,
        expires_at,
        ..
    } = session;
    end(ctx, identity);
    ctx.db.ended_session().insert(EndedSession {
        identity,
        issued_at,
        expired_at: expires_at,
        until: ctx.timestamp + Duration::from_secs(session::REVOKED_SECONDS),
    });
}

/// Ends a session. With this transaction it sees nothing more, on live connections too.
pub fn end(ctx: &ReducerContext, identity: Identity) {
    for row in ctx.db.stream_grant().by_holder().filter(identity) {
        if row.standing {
            set_beside_session(ctx, row.grant_id, false);
        } else {
            take(ctx, &row);
        }
    }
    ctx.db.grant_pattern().identity().delete(identity);
    ctx.db.grant_count().identity().delete(identity);
    ctx.db.sync_session().identity().delete(identity);
}

impl SyncSession {
    pub fn scopes(&self) -> Vec<Scope> {
        self.scopes.iter().filter_map(|scope| scope.parse().ok()).collect()
    }

    /// Whether its token has this scope.
    pub fn may(&self, scope: Scope) -> Result<(), Refused> {
        if self.scopes.iter().any(|held| held == scope.as_str()) {
            Ok(())
        } else {
            let message = format!("the session has no scope {scope}");
            Err(refused(Refusal::new(RefusalCode::MissingScope, message)))
        }
    }
}

/// The caller's session. `None` if it has expired, even if no sweep has removed it yet.
pub fn session(ctx: &ReducerContext) -> Option<SyncSession> {
    let row = ctx.db.sync_session().identity().find(ctx.sender())?;
    (row.expires_at > ctx.timestamp).then_some(row)
}

/// The caller's session, where nobody but a session may call.
pub fn own_session(ctx: &ReducerContext) -> Result<SyncSession, Refused> {
    session(ctx)
        .ok_or_else(|| unauthorized("only a session may do this, and only until it ends: connect with a new token"))
}

/// Whether the caller may read a stream.
pub fn may_read(ctx: &ReducerContext, stream_key: u64) -> bool {
    match grant_row(ctx, ctx.sender(), stream_key) {
        Some(row) => is_standing(ctx, &row) || is_of_session(ctx, &row) && session(ctx).is_some(),
        None => false,
    }
}

/// The keys of all streams that the caller may read by a grant.
pub fn readable_keys(ctx: &ReducerContext) -> Vec<u64> {
    let has_session = session(ctx).is_some();
    let held = ctx.db.stream_grant().by_holder().filter(ctx.sender());
    let readable = held.filter(|row| has_session && is_of_session(ctx, row) || is_standing(ctx, row));
    readable.map(|row| row.stream_key).collect()
}

/// Whether the grant follows from the token of a session, alone or beside what the owner gave.
fn is_of_session(ctx: &ReducerContext, grant: &StreamGrant) -> bool {
    let given = ctx.db.standing_grant().grant_id();
    !grant.standing || given.find(grant.grant_id).is_some_and(|given| given.beside_session)
}

/// Whether the owner gave the grant, and it has not ended, even if no sweep has removed it yet.
fn is_standing(ctx: &ReducerContext, grant: &StreamGrant) -> bool {
    let given = ctx.db.standing_grant().grant_id();
    grant.standing
        && given
            .find(grant.grant_id)
            .is_none_or(|given| given.ends_at > ctx.timestamp)
}

/// Whether the caller may acknowledge what it has read of a stream.
pub fn may_acknowledge(ctx: &ReducerContext, stream_key: u64) -> Result<(), Refused> {
    match grant_row(ctx, ctx.sender(), stream_key) {
        Some(row) if is_standing(ctx, &row) => Ok(()),
        Some(row) if is_of_session(ctx, &row) => session(ctx)
            .ok_or_else(|| refused(session::expired()))?
            .may(Scope::CheckpointWrite),
        Some(_) | None => Err(refused(forbidden_stream())),
    }
}

/// Allows only the bridge.
pub fn bridge_only(ctx: &ReducerContext, trust: &SyncTrust) -> Result<(), Refused> {
    trust.trust().bridge_only(ctx.sender()).map_err(refused)?;
    backed(ctx, trust)
}

/// Allows the owner and the bridge.
pub fn operator(ctx: &ReducerContext, trust: &SyncTrust) -> Result<(), Refused> {
    trust.trust().operator(ctx.sender()).map_err(refused)?;
    backed(ctx, trust)
}

/// A bridge that uses tokens needs a session that has not expired, like everyone else.
fn backed(ctx: &ReducerContext, trust: &SyncTrust) -> Result<(), Refused> {
    match &trust.issuer {
        Some(issuer) if issuer.service == ctx.sender() => session(ctx)
            .ok_or_else(|| refused(session::expired()))?
            .may(Scope::Append),
        _ => Ok(()),
    }
}

pub fn grant_row(ctx: &ReducerContext, identity: Identity, stream_key: u64) -> Option<StreamGrant> {
    ctx.db.stream_grant().by_holder().filter((identity, stream_key)).next()
}

fn has_standing_grant(ctx: &ReducerContext, identity: Identity) -> bool {
    ctx.db
        .stream_grant()
        .by_holder()
        .filter(identity)
        .any(|row| is_standing(ctx, &row))
}

impl SyncTrust {
    /// The key under which all sessions of a user see each other.
    pub fn user_key(&self, user_id: &str) -> Result<u64, Refused> {
        let user_id = Label::new(user_id).map_err(|error| invalid_argument(format!("user_id: {error}")))?;
        Ok(stream_key::derive_user(self.secret()?, &user_id))
    }

    /// The key under which all sessions that may provide see the assignments that are open to all.
    pub fn providers_key(&self) -> Result<u64, Refused> {
        Ok(stream_key::derive_providers(self.secret()?))
    }

    /// The key under which mirrors see the outbox.
    pub fn mirrors_key(&self) -> Result<u64, Refused> {
        Ok(stream_key::derive_mirrors(self.secret()?))
    }
}

/// The refusal for a caller without a grant for a stream. If its patterns cover the stream, it may know that.
pub fn no_grant(ctx: &ReducerContext, stream_id: &StreamId, stream_key: u64) -> Refusal {
    if is_left_out(ctx, stream_id, stream_key) {
        let message = "the token does not name this stream, and its patterns cover more streams than one session may see: \
                       ask for a token that names the stream";
        return Refusal::new(RefusalCode::TooManyGrants, message);
    }
    forbidden_stream()
}

/// Whether the caller's patterns cover a stream that got no grant because too many newer ones came first.
fn is_left_out(ctx: &ReducerContext, stream_id: &StreamId, stream_key: u64) -> bool {
    let Some(session) = session(ctx) else { return false };
    let count = ctx.db.grant_count().identity().find(session.identity);
    let is_bounded = count.is_some_and(|count| count.grants as usize >= limit::PATTERN_GRANTS);
    let covers = |pattern: GrantPattern| StreamPattern::prefixes_of(stream_id).any(|prefix| prefix == pattern.prefix);
    is_bounded
        && session::may_see(&session.scopes(), stream_id)
        && ctx.db.grant_pattern().identity().filter(session.identity).any(covers)
        && ctx.db.sync_stream().stream_key().find(stream_key).is_some()
}

/// The refusal is the same whether or not the stream exists.
pub fn forbidden_stream() -> Refusal {
    Refusal::new(
        RefusalCode::ForbiddenStream,
        "no grant for this stream: ask the bridge for a token that names it, or the operator for a grant",
    )
}
