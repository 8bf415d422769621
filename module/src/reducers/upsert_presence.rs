//! A heartbeat: the caller's session reports that it is online on a node, or that it leaves. Each node of a session has
//! its own rows.
//!
//! Presence does not follow connections: lifecycle reducers also run around every HTTP call and SQL request, and a
//! session whose connection broke has not left yet.

use spacetime_sync_proto::Label;
use spacetime_sync_proto::access::Scope;
use spacetime_sync_rules::presence::{self, HeldPresence, OFFLINE};
use spacetime_sync_rules::quota::Call;
use spacetimedb::{ReducerContext, Table, Timestamp, reducer};

use crate::access::{forbidden_stream, may_read, session};
use crate::log_access::trust_row;
use crate::quota::spend;
use crate::refuse::{Refused, invalid_argument, refused, unauthorized};
use crate::tables::{SessionPresence, session_presence};

#[reducer]
pub fn upsert_presence(
    ctx: &ReducerContext,
    session_id: String,
    node_id: String,
    status: String,
    region: String,
    serves: Vec<String>,
) -> Result<(), Refused> {
    let heartbeat = presence::heartbeat(&node_id, &status, &region, &serves).map_err(refused)?;
    let own = session(ctx).filter(|own| own.session_id == session_id);
    let own = own.ok_or_else(|| unauthorized("session_id is not the caller's session, or the session has expired"))?;
    if !heartbeat.serves.is_empty() {
        own.may(Scope::Serve)?;
    }
    spend(ctx, Call::Heartbeat)?;
    let trust = trust_row(ctx)?;
    let user_id = Label::new(&own.user_id).map_err(|error| invalid_argument(error.to_string()))?;
    let mut audiences = vec![trust.user_key(&user_id)?];
    for stream_id in &heartbeat.serves {
        let stream_key = trust.stream_key(stream_id)?;
        if !may_read(ctx, stream_key) {
            return Err(refused(forbidden_stream()));
        }
        audiences.push(stream_key);
    }
    audiences.sort_unstable();
    audiences.dedup();

    let rows = ctx.db.session_presence();
    let held: Vec<HeldPresence> = rows
        .session_id()
        .filter(session_id.as_str())
        .map(HeldPresence::from)
        .collect();
    let now_us = ctx.timestamp.to_micros_since_unix_epoch();
    let placement = presence::place(&held, &heartbeat.node_id, &audiences, now_us).map_err(refused)?;
    for presence_id in placement.deleted {
        rows.presence_id().delete(presence_id);
    }
    for (audience_key, presence_id) in placement.rows {
        let row = SessionPresence {
            presence_id: presence_id.unwrap_or(0),
            audience_key,
            session_id: session_id.clone(),
            node_id: heartbeat.node_id.as_str().to_owned(),
            status: heartbeat.status.to_owned(),
            reason: heartbeat.reason.to_owned(),
            region: heartbeat.region.clone(),
            started_at: Timestamp::from_micros_since_unix_epoch(placement.started_at_us),
            last_seen: ctx.timestamp,
            holds_until: ctx.timestamp + presence::holds_for(heartbeat.status),
        };
        if presence_id.is_some() {
            rows.presence_id().update(row);
        } else {
            rows.insert(row);
        }
    }
    Ok(())
}

impl From<SessionPresence> for HeldPresence {
    fn from(row: SessionPresence) -> Self {
        Self {
            presence_id: row.presence_id,
            audience_key: row.audience_key,
            node_id: row.node_id,
            is_there: row.status != OFFLINE,
            started_at_us: row.started_at.to_micros_since_unix_epoch(),
            last_seen_us: row.last_seen.to_micros_since_unix_epoch(),
        }
    }
}
