//! A heartbeat: the caller's session reports that it is online on a node, or that it leaves. Each node of a session has
//! its own rows.
//!
//! Presence does not follow connections: lifecycle reducers also run around every HTTP call and SQL request, and a
//! session whose connection broke has not left yet.

use spacetime_sync_proto::access::Scope;
use spacetime_sync_rules::presence;
use spacetime_sync_rules::quota::Call;
use spacetimedb::{ReducerContext, reducer};

use crate::access::{forbidden_stream, may_read, session};
use crate::log_access::trust_row;
use crate::presences;
use crate::quota::spend;
use crate::refuse::{Refused, refused, unauthorized};

#[reducer]
pub fn upsert_presence(
    ctx: &ReducerContext,
    session_id: String,
    node_id: String,
    status: String,
    region: String,
    surface: String,
    serves: Vec<String>,
) -> Result<(), Refused> {
    let heartbeat = presence::heartbeat(&node_id, &status, [&region, &surface], &serves).map_err(refused)?;
    let own = session(ctx).filter(|own| own.session_id == session_id);
    let own = own.ok_or_else(|| unauthorized("session_id is not the caller's session, or the session has expired"))?;
    if !heartbeat.serves.is_empty() {
        own.may(Scope::Serve)?;
    }
    let trust = trust_row(ctx)?;
    let mut audiences = vec![trust.user_key(&own.user_id)?];
    for stream_id in &heartbeat.serves {
        let stream_key = trust.stream_key(stream_id)?;
        if !may_read(ctx, stream_key) {
            return Err(refused(forbidden_stream()));
        }
        audiences.push(stream_key);
    }
    audiences.sort_unstable();
    audiences.dedup();

    // One that only repeats is not counted. It writes at most one small row every few seconds, and to refuse it would cost as much as to
    // answer it.
    if presences::place(ctx, &session_id, &heartbeat, &audiences)? {
        spend(ctx, Call::Heartbeat)?;
    }
    Ok(())
}
