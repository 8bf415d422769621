//! A heartbeat: the caller's session is there, or says goodbye.
//!
//! Connections are not looked at: a lifecycle reducer also runs around every HTTP call and SQL request, and a connection
//! that broke is not yet a session that is gone.

use spacetime_sync_proto::Label;
use spacetime_sync_rules::presence::{self, OFFLINE};
use spacetimedb::{ReducerContext, Table, reducer};

use crate::access::{forbidden_stream, may_read, session};
use crate::log_access::trust_row;
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
    let own = own.ok_or_else(|| unauthorized("a session speaks for itself alone, and only while it lasts"))?;
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
    let held: Vec<SessionPresence> = rows.session_id().filter(session_id.as_str()).collect();
    let unbroken = held.iter().find(|row| row.status != OFFLINE);
    let started_at = unbroken.map_or(ctx.timestamp, |row| row.started_at);
    for row in &held {
        if audiences.binary_search(&row.audience_key).is_err() {
            rows.presence_id().delete(row.presence_id);
        }
    }
    for audience_key in audiences {
        let before = held.iter().find(|row| row.audience_key == audience_key);
        let row = SessionPresence {
            presence_id: before.map_or(0, |row| row.presence_id),
            audience_key,
            session_id: session_id.clone(),
            node_id: heartbeat.node_id.as_str().to_owned(),
            status: heartbeat.status.to_owned(),
            reason: heartbeat.reason.to_owned(),
            region: heartbeat.region.clone(),
            started_at,
            last_seen: ctx.timestamp,
            holds_until: ctx.timestamp + presence::holds_for(heartbeat.status),
        };
        if before.is_some() {
            rows.presence_id().update(row);
        } else {
            rows.insert(row);
        }
    }
    Ok(())
}
