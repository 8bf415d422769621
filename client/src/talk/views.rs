//! What a connection brings of whatever the application watches.

use std::collections::BTreeMap;
use std::sync::Arc;

use spacetime_sync_bindings::{
    BridgeOutbox, BridgeOutboxTableAccess as _, ComputeAssignment, ComputeAssignmentChange,
    ComputeAssignmentChangeTableAccess as _, ComputeAssignmentTableAccess as _, DbConnection,
    PresenceCountTableAccess as _, ProviderCapability, ProviderCapabilityTableAccess as _, SessionPresence,
    SessionPresenceTableAccess as _,
};
use spacetimedb_sdk::{Table as _, TableWithPrimaryKey as _};

use super::link::{Inbox, Link, Subscriber, push, time};
use super::presence::{PresenceRow, seen};
use crate::outbox::{Outbox, SeenOutboxEvent};
use crate::presence::{PresenceKey, Presences};
use crate::session::Inbound;
use crate::watched::Watchable;
use crate::work::{AssignmentChange, Assignments, Capabilities, CapabilityKey, SeenAssignment, SeenCapability};

/// Tells the session about every change of a row.
pub(super) fn see_changes(connection: &DbConnection, inbox: &Inbox) {
    macro_rules! see {
        ($table:ident, $watchable:ident) => {
            let table = connection.db.$table();
            let [inserted, updated, deleted] = [(); 3].map(|()| {
                let to = Arc::clone(inbox);
                move || push(&to, Inbound::Changed(Watchable::$watchable))
            });
            table.on_insert(move |_, _| inserted());
            table.on_update(move |_, _, _| updated());
            table.on_delete(move |_, _| deleted());
        };
    }
    see!(session_presence, Presences);
    see!(presence_count, ProvidersOnline);
    see!(provider_capability, Capabilities);
    see!(compute_assignment, Assignments);
    see!(compute_assignment_change, Assignments);
    see!(bridge_outbox, Outbox);
}

impl Link {
    /// Subscribes to the whole of it. What is shown to audiences is heard, audience by audience, and has no table here.
    pub(crate) fn watch(&mut self, watchable: Watchable) {
        let table = match watchable {
            Watchable::ProvidersOnline => "presence_count",
            Watchable::Capabilities => "provider_capability",
            Watchable::Outbox => "bridge_outbox",
            Watchable::Presences | Watchable::Assignments => return,
        };
        self.subscribe_all(
            Subscriber::View(watchable),
            vec![format!("SELECT * FROM {table}")],
            move || Inbound::ViewBegan(watchable),
            move |detail| Inbound::ViewFailed { watchable, detail },
        );
    }

    /// The nodes of sessions.
    pub(crate) fn presences(&self) -> Presences {
        seen(self.connection.db.session_presence().iter().map(presence_row))
    }

    /// How many providers are there. Without a row there never was one.
    pub(crate) fn providers_online(&self) -> u64 {
        let rows = self.connection.db.presence_count();
        rows.iter().map(|row| row.providers_online).sum()
    }

    /// What providers can do.
    pub(crate) fn capabilities(&self) -> Capabilities {
        self.connection
            .db
            .provider_capability()
            .iter()
            .map(capability)
            .collect()
    }

    /// The assignments that the session sees.
    pub(crate) fn assignments(&self) -> Assignments {
        let db = &self.connection.db;
        assignments(db.compute_assignment().iter(), db.compute_assignment_change().iter())
    }

    /// What the world outside is to hear.
    pub(crate) fn outbox(&self) -> Outbox {
        self.connection
            .db
            .bridge_outbox()
            .iter()
            .filter_map(outbox_event)
            .collect()
    }
}

fn presence_row(row: SessionPresence) -> PresenceRow {
    PresenceRow {
        key: PresenceKey {
            session_id: row.session_id,
            node_id: row.node_id,
        },
        status: row.status,
        reason: row.reason,
        region: row.region,
        surface: row.surface,
        nostr_pubkey: row.nostr_pubkey,
        started_at: time(row.started_at),
        last_seen: time(row.last_seen),
    }
}

fn capability(row: ProviderCapability) -> (CapabilityKey, SeenCapability) {
    let key = CapabilityKey {
        provider_id: row.provider_id,
        capability: row.capability,
    };
    let seen = SeenCapability {
        version: row.version,
        price_hint_sats: row.price_hint_sats,
        region: row.region,
        document: row.document,
        published_at: time(row.published_at),
        ends_at: time(row.ends_at),
    };
    (key, seen)
}

/// `None` if its status is unknown.
fn outbox_event(row: BridgeOutbox) -> Option<(String, SeenOutboxEvent)> {
    let seen = SeenOutboxEvent {
        transport: row.transport,
        payload: some(row.payload),
        status: row.status.parse().ok()?,
        published_as: some(row.published_as),
        enqueued_at: time(row.enqueued_at),
        changed_at: time(row.changed_at),
    };
    Some((row.event_id, seen))
}

/// A session may see a row several times, once for each of its audiences. What names an unknown state is left out.
fn assignments(
    rows: impl Iterator<Item = ComputeAssignment>,
    changes: impl Iterator<Item = ComputeAssignmentChange>,
) -> Assignments {
    let mut history: BTreeMap<String, BTreeMap<u64, AssignmentChange>> = BTreeMap::new();
    for row in changes {
        let (request_id, version) = (row.request_id.clone(), row.version);
        if let Some(change) = change(row) {
            history.entry(request_id).or_default().insert(version, change);
        }
    }
    let mut seen = Assignments::new();
    for row in rows {
        let Ok(state) = row.status.parse() else { continue };
        let is_older = |held: &SeenAssignment| held.version < row.version;
        if !seen.get(&row.request_id).is_none_or(is_older) {
            continue;
        }
        let changes = history.get(&row.request_id);
        let assignment = SeenAssignment {
            version: row.version,
            state,
            provider_id: some(row.provider_id),
            to_all: row.to_all,
            document: row.assignment,
            report: some(row.report),
            opened_at: time(row.opened_at),
            changed_at: time(row.changed_at),
            deadline_at: time(row.deadline_at),
            changes: changes.map_or_else(Vec::new, |changes| changes.values().cloned().collect()),
        };
        seen.insert(row.request_id, assignment);
    }
    seen
}

fn change(row: ComputeAssignmentChange) -> Option<AssignmentChange> {
    Some(AssignmentChange {
        version: row.version,
        state: row.status.parse().ok()?,
        provider_id: some(row.provider_id),
        changed_by: row.changed_by.parse().ok()?,
        update_id: some(row.update_id),
        changed_at: time(row.changed_at),
    })
}

/// The module writes an empty text for what there is not.
fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use spacetime_sync_proto::{AssignmentSide, AssignmentState};
    use spacetimedb_sdk::Timestamp;

    use super::*;

    fn row(audience_key: u64, version: u64, status: &str, provider: &str) -> ComputeAssignment {
        ComputeAssignment {
            assignment_id: audience_key,
            audience_key,
            request_id: "r1".to_owned(),
            version,
            status: status.to_owned(),
            provider_id: provider.to_owned(),
            to_all: true,
            assignment: "{}".to_owned(),
            report: String::new(),
            opened_at: Timestamp::UNIX_EPOCH,
            changed_at: Timestamp::UNIX_EPOCH,
            deadline_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn change_row(audience_key: u64, version: u64, status: &str, by: &str) -> ComputeAssignmentChange {
        ComputeAssignmentChange {
            change_id: 10 * audience_key + version,
            audience_key,
            request_id: "r1".to_owned(),
            version,
            status: status.to_owned(),
            provider_id: String::new(),
            changed_by: by.to_owned(),
            update_id: if version == 1 {
                String::new()
            } else {
                format!("u{version}")
            },
            changed_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn an_assignment_is_one_however_many_audiences_see_it_and_its_changes_are_in_order() {
        let changes = [
            change_row(2, 2, "accepted", "provider"),
            change_row(1, 1, "open", "requester"),
            change_row(1, 2, "accepted", "provider"),
            change_row(1, 3, "unheard-of", "provider"),
        ];
        let rows = [
            row(1, 2, "accepted", "p1"),
            row(2, 2, "accepted", "p1"),
            row(3, 1, "open", ""),
        ];
        let seen = assignments(rows.into_iter(), changes.into_iter());
        assert_eq!(seen.len(), 1);
        let one = &seen["r1"];
        assert_eq!((one.version, one.state), (2, AssignmentState::Accepted));
        assert_eq!((one.provider_id.as_deref(), &one.report), (Some("p1"), &None));
        let found: Vec<_> = one
            .changes
            .iter()
            .map(|change| (change.version, change.changed_by))
            .collect();
        assert_eq!(found, [(1, AssignmentSide::Requester), (2, AssignmentSide::Provider)]);
        let names: Vec<_> = one.changes.iter().map(|change| change.update_id.as_deref()).collect();
        assert_eq!(names, [None, Some("u2")]);
        assert_eq!(
            assignments([row(1, 1, "unheard-of", "")].into_iter(), std::iter::empty()),
            Assignments::new()
        );
    }
}
