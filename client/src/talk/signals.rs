//! What a connection hears in passing.

use std::sync::Arc;

use spacetime_sync_bindings::{
    DbConnection, PresenceChangeTableAccess as _, SessionSignalTableAccess as _, read_audience_key,
};
use spacetimedb_sdk::EventTable as _;

use super::link::{Inbox, Link, Subscriber, flat, push, time};
use crate::presence::{OfflineReason, PresenceKey, PresenceStatus};
use crate::session::Inbound;
use crate::signal::{Audience, Heard, HeardSignal, PresenceChange, Says, Subject};

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
        let stream_id = match audience {
            Audience::OwnUser => String::new(),
            Audience::Stream(stream_id) => stream_id.as_str().to_owned(),
        };
        self.connection
            .procedures
            .read_audience_key_then(stream_id, move |_, answer| {
                let answer = flat(answer);
                push(&inbox, Inbound::AudienceTold { ear, answer });
            });
    }

    /// Subscribes to what is told to an audience.
    pub(crate) fn hear(&mut self, ear: usize, key: u64) {
        let tables = ["presence_change", "session_signal"];
        let query = |table| format!("SELECT * FROM {table} WHERE audience_key = {key}");
        self.subscribe_all(
            Subscriber::Ear(ear),
            tables.map(query).to_vec(),
            move || Inbound::HearingBegan { ear },
            move |detail| Inbound::HearingFailed { ear, detail },
        );
    }
}
