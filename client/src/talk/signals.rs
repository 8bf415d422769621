//! What a connection hears in passing.

use std::sync::Arc;

use spacetime_sync_bindings::{
    DbConnection, PresenceChangeTableAccess as _, SessionSignalTableAccess as _, read_audience_key, read_providers_key,
};
use spacetimedb_sdk::EventTable as _;

use super::link::{Inbox, Link, Subscriber, flat, push, time};
use crate::presence::{OfflineReason, PresenceKey, PresenceStatus};
use crate::session::Inbound;
use crate::signal::{Audience, Heard, HeardSignal, PresenceChange, Purpose, Says, Subject};

/// Turns rows of the event tables into what the session is told.
pub(super) fn hear_signals(connection: &DbConnection, inbox: &Inbox) {
    let to = Arc::clone(inbox);
    connection.db.session_signal().on_insert(move |_, row| {
        if let Some(signal) = signal(row) {
            push(&to, Inbound::Told(Heard::Signal(signal)));
        }
    });
    let to = Arc::clone(inbox);
    connection.db.presence_change().on_insert(move |_, row| {
        if let Some(change) = change(row) {
            push(&to, Inbound::Told(Heard::Presence(change)));
        }
    });
}

/// `None` if the module says something that this client does not know.
fn signal(row: &spacetime_sync_bindings::SessionSignal) -> Option<HeardSignal> {
    let from = (!row.session_id.is_empty()).then(|| PresenceKey {
        session_id: row.session_id.clone(),
        node_id: row.node_id.clone(),
    });
    Some(HeardSignal {
        from,
        subject: Subject::read(&row.subject_kind, &row.subject)?,
        says: Says::read(&row.kind, [row.done, row.total], row.note.clone())?,
        said_at: time(row.said_at),
    })
}

fn change(row: &spacetime_sync_bindings::PresenceChange) -> Option<PresenceChange> {
    Some(PresenceChange {
        key: PresenceKey {
            session_id: row.session_id.clone(),
            node_id: row.node_id.clone(),
        },
        status: PresenceStatus::read(&row.status)?,
        reason: OfflineReason::read(&row.reason),
        region: row.region.clone(),
        surface: row.surface.clone(),
        nostr_key: row.nostr_pubkey.parse().ok(),
        changed_at: time(row.changed_at),
    })
}

impl Link {
    /// Asks for the key of an audience.
    pub(crate) fn ask_audience(&self, ear: usize, audience: &Audience) {
        let inbox = Arc::clone(&self.inbox);
        let say = move |answer| push(&inbox, Inbound::AudienceTold { ear, answer });
        let procedures = &self.connection.procedures;
        match audience {
            Audience::OwnUser => procedures.read_audience_key_then(String::new(), move |_, answer| say(flat(answer))),
            Audience::Stream(stream_id) => {
                let name = stream_id.as_str().to_owned();
                procedures.read_audience_key_then(name, move |_, answer| say(flat(answer)));
            }
            Audience::Providers => procedures.read_providers_key_then(move |_, answer| say(flat(answer))),
        }
    }

    /// Subscribes to what is wanted of an audience.
    pub(crate) fn hear(&mut self, ear: usize, purpose: Purpose, key: u64) {
        let tables = match purpose {
            Purpose::Signals => &["presence_change", "session_signal"][..],
            Purpose::Presences => &["session_presence"],
            // The history is there before what it is the history of.
            Purpose::Assignments => &["compute_assignment_change", "compute_assignment"],
        };
        let query = |table| format!("SELECT * FROM {table} WHERE audience_key = {key}");
        self.subscribe_all(
            Subscriber::Ear(ear),
            tables.iter().map(query).collect(),
            move || Inbound::HearingBegan { ear },
            move |detail| Inbound::HearingFailed { ear, detail },
        );
    }
}
