//! The rows of nodes: who sees them, which Nostr key is bound to them, and who is told that they changed.

use spacetime_sync_proto::NostrKey;
use spacetime_sync_rules::content::invalid;
use spacetime_sync_rules::presence::{self, Heartbeat, HeldPresence, OFFLINE, TTL_EXPIRED};
use spacetimedb::{ReducerContext, Table, Timestamp};

use crate::refuse::{Refused, refused};
use crate::tables::{
    NostrBinding, PresenceBeat, PresenceChange, PresenceCount, SessionPresence, nostr_binding, nostr_challenge,
    presence_beat, presence_change, presence_count, session_presence,
};

/// Writes what a node says of itself, for these audiences, and tells them if it is something new. What only repeats is noted beside
/// the rows, now and then: each rewriting of a row is a message to everybody who watches. Returns whether rows were written.
pub fn place(
    ctx: &ReducerContext,
    session_id: &str,
    heartbeat: &Heartbeat,
    audiences: &[u64],
) -> Result<bool, Refused> {
    let rows = ctx.db.session_presence();
    let node_id = heartbeat.node_id.as_str();
    let held: Vec<SessionPresence> = rows.session_id().filter(session_id).collect();
    let judged: Vec<HeldPresence> = held.iter().map(HeldPresence::from).collect();
    let now_us = ctx.timestamp.to_micros_since_unix_epoch();
    let placement = presence::place(&judged, &heartbeat.node_id, audiences, now_us).map_err(refused)?;
    // Whichever node is forgotten, its rows are deleted.
    let mut writes = !placement.deleted.is_empty();
    for presence_id in placement.deleted {
        rows.presence_id().delete(presence_id);
    }
    if let Some(forgotten) = placement.forgets {
        ctx.db
            .nostr_binding()
            .by_node()
            .delete((session_id, forgotten.as_str()));
    }
    let before = held.iter().find(|row| row.node_id == node_id);
    let binding = bound_to(ctx, session_id, node_id);
    for (audience_key, presence_id) in placement.rows {
        let row = SessionPresence {
            presence_id: presence_id.unwrap_or(0),
            audience_key,
            session_id: session_id.to_owned(),
            node_id: node_id.to_owned(),
            status: heartbeat.status.to_owned(),
            reason: heartbeat.reason.to_owned(),
            region: heartbeat.region.clone(),
            started_at: Timestamp::from_micros_since_unix_epoch(placement.started_at_us),
            last_seen: ctx.timestamp,
            holds_until: ctx.timestamp + presence::holds_for(heartbeat.status),
            surface: heartbeat.surface.clone(),
            nostr_pubkey: binding
                .as_ref()
                .map_or_else(String::new, |held| held.nostr_pubkey.clone()),
        };
        // A heartbeat that only repeats is told to nobody. Whoever sees the node for the first time is told.
        if presence_id.is_none() || before.is_none_or(|before| differ(before, &row)) {
            tell(ctx, &row);
        } else if heartbeat.status != OFFLINE && before.is_some_and(|row| row.last_seen <= ctx.timestamp) {
            // A row of the future is rewritten: a clock was set back.
            continue;
        }
        writes = true;
        if presence_id.is_some() {
            rows.presence_id().update(row);
        } else {
            rows.insert(row);
        }
    }
    let is_there = heartbeat.status != OFFLINE;
    if is_there {
        note(ctx, session_id, node_id);
    } else {
        ctx.db.presence_beat().by_node().delete((session_id, node_id));
    }
    if let Some(binding) = binding {
        set_there(ctx, binding, is_there);
    }
    Ok(writes)
}

/// Notes that a node is there, unless that was noted a moment ago.
fn note(ctx: &ReducerContext, session_id: &str, node_id: &str) {
    let (beats, seen_at) = (ctx.db.presence_beat(), ctx.timestamp);
    let held = beat_of(ctx, session_id, node_id);
    let micros = Timestamp::to_micros_since_unix_epoch;
    if let Some(held) = &held
        && presence::is_fresh(micros(held.seen_at), micros(seen_at))
    {
        return;
    }
    let beat = PresenceBeat {
        beat_id: held.as_ref().map_or(0, |held| held.beat_id),
        session_id: session_id.to_owned(),
        node_id: node_id.to_owned(),
        seen_at,
        stale_at: seen_at + presence::STALE_AFTER,
    };
    if held.is_some() {
        beats.beat_id().update(beat);
    } else {
        beats.insert(beat);
    }
}

fn beat_of(ctx: &ReducerContext, session_id: &str, node_id: &str) -> Option<PresenceBeat> {
    ctx.db.presence_beat().by_node().filter((session_id, node_id)).next()
}

impl From<&SessionPresence> for HeldPresence {
    fn from(row: &SessionPresence) -> Self {
        Self {
            presence_id: row.presence_id,
            audience_key: row.audience_key,
            node_id: row.node_id.clone(),
            is_there: row.status != OFFLINE,
            started_at_us: row.started_at.to_micros_since_unix_epoch(),
            last_seen_us: row.last_seen.to_micros_since_unix_epoch(),
        }
    }
}

/// Whether somebody who sees the node sees a difference, besides the times.
fn differ(before: &SessionPresence, after: &SessionPresence) -> bool {
    shown(before) != shown(after)
}

fn shown(row: &SessionPresence) -> [&String; 5] {
    [&row.status, &row.reason, &row.region, &row.surface, &row.nostr_pubkey]
}

/// Tells the row's audience what it says.
fn tell(ctx: &ReducerContext, row: &SessionPresence) {
    ctx.db.presence_change().insert(PresenceChange {
        audience_key: row.audience_key,
        session_id: row.session_id.clone(),
        node_id: row.node_id.clone(),
        status: row.status.clone(),
        reason: row.reason.clone(),
        region: row.region.clone(),
        surface: row.surface.clone(),
        nostr_pubkey: row.nostr_pubkey.clone(),
        changed_at: ctx.timestamp,
    });
}

fn set_there(ctx: &ReducerContext, binding: NostrBinding, is_there: bool) {
    if binding.is_there != is_there {
        let bindings = ctx.db.nostr_binding().binding_id();
        bindings.update(NostrBinding { is_there, ..binding });
    }
}

/// The key that is bound to a node, if one is.
fn bound_to(ctx: &ReducerContext, session_id: &str, node_id: &str) -> Option<NostrBinding> {
    ctx.db.nostr_binding().by_node().filter((session_id, node_id)).next()
}

/// The rows of a node of a session, one for each audience.
fn of_node(ctx: &ReducerContext, session_id: &str, node_id: &str) -> Vec<SessionPresence> {
    let of_session = ctx.db.session_presence().session_id().filter(session_id);
    of_session.filter(|row| row.node_id == node_id).collect()
}

/// The refusal for a node of which the session has said nothing. A key is bound to what others can see.
pub fn check_known(ctx: &ReducerContext, session_id: &str, node_id: &str) -> Result<(), Refused> {
    if of_node(ctx, session_id, node_id).is_empty() {
        let message = "node_id: the session has said nothing of this node: announce it first, with upsert_presence";
        return Err(refused(invalid(message)));
    }
    Ok(())
}

/// Binds a key to a node. The key's binding to another node ends, and so does that of another key to this node.
pub fn bind(ctx: &ReducerContext, session_id: &str, node_id: &str, key: &NostrKey) {
    let (bindings, nostr_pubkey) = (ctx.db.nostr_binding(), key.to_string());
    if let Some(former) = bindings.nostr_pubkey().find(nostr_pubkey.clone()) {
        bindings.binding_id().delete(former.binding_id);
        if former.session_id != session_id || former.node_id != node_id {
            show_key(ctx, &former.session_id, &former.node_id, "");
        }
    }
    bindings.by_node().delete((session_id, node_id));
    let is_there = of_node(ctx, session_id, node_id)
        .iter()
        .any(|row| row.status != OFFLINE);
    bindings.insert(NostrBinding {
        binding_id: 0,
        nostr_pubkey: nostr_pubkey.clone(),
        session_id: session_id.to_owned(),
        node_id: node_id.to_owned(),
        is_there,
        bound_at: ctx.timestamp,
    });
    show_key(ctx, session_id, node_id, &nostr_pubkey);
}

fn show_key(ctx: &ReducerContext, session_id: &str, node_id: &str, nostr_pubkey: &str) {
    for row in of_node(ctx, session_id, node_id) {
        if row.nostr_pubkey != nostr_pubkey {
            let row = SessionPresence {
                nostr_pubkey: nostr_pubkey.to_owned(),
                ..row
            };
            tell(ctx, &row);
            ctx.db.session_presence().presence_id().update(row);
        }
    }
}

/// Marks nodes that have been silent for too long as offline, tells now and then when those that go on saying the same were last heard,
/// and forgets those that have been offline for long, with what is bound to them. It leaves to the next sweep what is more than so many
/// rows of each kind. At last it counts who is there.
pub fn sweep(ctx: &ReducerContext, most: usize) {
    let now = ctx.timestamp;
    let presences = ctx.db.session_presence();
    let beats = ctx.db.presence_beat();
    let silent: Vec<PresenceBeat> = beats.stale_at().filter(..=now).take(most).collect();
    let mut ended = 0;
    for beat in silent {
        if ended >= most {
            break;
        }
        beats.beat_id().delete(beat.beat_id);
        for row in of_node(ctx, &beat.session_id, &beat.node_id) {
            end(ctx, row, beat.seen_at);
            ended += 1;
        }
    }
    let due: Vec<SessionPresence> = presences.holds_until().filter(..=now).take(most).collect();
    for row in due {
        if row.status == OFFLINE {
            presences.presence_id().delete(row.presence_id);
            if of_node(ctx, &row.session_id, &row.node_id).is_empty() {
                let of_node = (row.session_id.as_str(), row.node_id.as_str());
                ctx.db.nostr_binding().by_node().delete(of_node);
            }
        } else if let Some(beat) = beat_of(ctx, &row.session_id, &row.node_id) {
            presences.presence_id().update(SessionPresence {
                last_seen: beat.seen_at,
                holds_until: now + presence::holds_for(&row.status),
                ..row
            });
        } else {
            // An earlier release wrote the row, which held for as long as a node is there without another heartbeat.
            let last_seen = row.last_seen;
            end(ctx, row, last_seen);
        }
    }
    let challenges = ctx.db.nostr_challenge();
    let expired = challenges.expires_at().filter(..=now).take(most);
    for challenge_id in expired.map(|row| row.challenge_id).collect::<Vec<_>>() {
        challenges.challenge_id().delete(challenge_id);
    }
    count(ctx);
}

/// Marks a row of a node as offline that has been silent since then.
fn end(ctx: &ReducerContext, row: SessionPresence, last_seen: Timestamp) {
    let row = SessionPresence {
        status: OFFLINE.to_owned(),
        reason: TTL_EXPIRED.to_owned(),
        last_seen,
        holds_until: ctx.timestamp + presence::holds_for(OFFLINE),
        ..row
    };
    tell(ctx, &row);
    if let Some(binding) = bound_to(ctx, &row.session_id, &row.node_id) {
        set_there(ctx, binding, false);
    }
    ctx.db.session_presence().presence_id().update(row);
}

/// Counts the providers that are there. They are counted anew each time, so no sum can go wrong.
fn count(ctx: &ReducerContext) {
    let providers_online = ctx.db.nostr_binding().is_there().filter(true).count() as u64;
    let counts = ctx.db.presence_count().id();
    let row = PresenceCount {
        id: 0,
        providers_online,
        counted_at: ctx.timestamp,
    };
    match counts.find(0) {
        Some(held) if held.providers_online == providers_online => {}
        Some(_) => {
            counts.update(row);
        }
        // Without a row, there never was one.
        None if providers_online == 0 => {}
        None => {
            ctx.db.presence_count().insert(row);
        }
    }
}
