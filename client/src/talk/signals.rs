//! What a connection hears in passing, and the calls that the application makes on it.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use spacetime_sync_bindings::{
    DbConnection, PresenceChangeTableAccess as _, SessionSignalTableAccess as _, bind_nostr_key, challenge_nostr_key,
    read_audience_key, send_signal,
};
use spacetime_sync_proto::{IdentityHex, Label};
use spacetimedb_sdk::{DbContext as _, EventTable as _, Identity};

use super::link::{Inbox, Link, call_failure, push, time};
use crate::nostr::NostrChallenge;
use crate::presence::{OfflineReason, PresenceKey, PresenceStatus};
use crate::session::{Call, CallFailure, CallId, Called, Inbound};
use crate::signal::{Audience, Heard, HeardSignal, PresenceChange, Says, Signal, Subject};

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
    /// Notes who the client is by its token, which SpacetimeDB cannot choose.
    pub(super) fn know_identity(&mut self, token: Option<&str>) {
        self.identity = token.and_then(identity_of);
    }

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

    /// Subscribes to what is told to an audience. The two subscriptions are answered in turn.
    pub(crate) fn hear(&self, ear: usize, key: u64) {
        for (table, is_last) in [("presence_change", false), ("session_signal", true)] {
            let (began, failed) = (Arc::clone(&self.inbox), Arc::clone(&self.inbox));
            self.connection
                .subscription_builder()
                .on_applied(move |_| {
                    if is_last {
                        push(&began, Inbound::HearingBegan { ear });
                    }
                })
                .on_error(move |_, error| {
                    let detail = error.to_string();
                    push(&failed, Inbound::HearingFailed { ear, detail });
                })
                .subscribe(format!("SELECT * FROM {table} WHERE audience_key = {key}"));
        }
    }

    /// Makes a call of the application.
    pub(crate) fn call(&self, id: CallId, call: Call) {
        let inbox = Arc::clone(&self.inbox);
        let say = move |answer: Called<CallFailure>| push(&inbox, Inbound::Called { id, answer });
        let procedures = &self.connection.procedures;
        match call {
            Call::Challenge { node_id } => {
                let identity = self.identity.clone();
                procedures.challenge_nostr_key_then(node_id.clone(), move |_, answer| {
                    say(flat(answer).and_then(|text| own_challenge(&node_id, identity.as_ref(), text).map(Some)));
                });
            }
            Call::Bind {
                node_id,
                challenge,
                key,
                signature,
            } => {
                let (key, signature) = (key.to_string(), signature.to_string());
                procedures.bind_nostr_key_then(node_id, challenge, key, signature, move |_, answer| {
                    say(flat(answer).map(|()| None));
                });
            }
            Call::Signal(Signal { node_id, subject, says }) => {
                let (subject_kind, subject) = subject.parts();
                let (kind, [done, total], note) = says.parts();
                let sent = self.connection.reducers.send_signal_then(
                    node_id,
                    subject_kind.as_str().to_owned(),
                    subject.to_owned(),
                    kind.as_str().to_owned(),
                    done,
                    total,
                    note.to_owned(),
                    move |_, answer| say(flat(answer).map(|()| None)),
                );
                if let Err(error) = sent {
                    let answer = Err(CallFailure::Failed(error.to_string()));
                    push(&self.inbox, Inbound::Called { id, answer });
                }
            }
        }
    }
}

fn flat<T, E: ToString>(answer: Result<Result<T, String>, E>) -> Result<T, CallFailure> {
    match answer {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(text)) => Err(call_failure(text)),
        Err(error) => Err(CallFailure::Failed(error.to_string())),
    }
}

/// Whoever signs another session's challenge binds the key to that session.
fn own_challenge(node_id: &str, identity: Option<&IdentityHex>, text: String) -> Result<String, CallFailure> {
    let own = Label::new(node_id)
        .ok()
        .zip(identity)
        .and_then(|(node_id, identity)| NostrChallenge::of(node_id, identity, text));
    own.map(|own| own.text().to_owned())
        .ok_or_else(|| CallFailure::Failed("the challenge is not for this node of this session".to_owned()))
}

/// Who a token makes its bearer: SpacetimeDB derives the identity from issuer and subject.
fn identity_of(token: &str) -> Option<IdentityHex> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    let identity = Identity::from_claims(claims["iss"].as_str()?, claims["sub"].as_str()?);
    identity.to_hex().to_string().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_follows_from_the_token() {
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let found = identity_of(&token(r#"{"iss":"https://issuer","sub":"user:7/session:a"}"#)).unwrap();
        let expected = Identity::from_claims("https://issuer", "user:7/session:a")
            .to_hex()
            .to_string();
        assert_eq!(found.as_str(), expected);
        for other in [
            token("{}"),
            token("[]"),
            token(""),
            "e30".to_owned(),
            "a.%.c".to_owned(),
            String::new(),
        ] {
            assert_eq!(identity_of(&other), None, "{other}");
        }
    }

    #[test]
    fn a_challenge_of_another_session_is_not_handed_out() {
        let identity: IdentityHex = "c2".repeat(32).parse().unwrap();
        let of = |identity: &str| {
            spacetime_sync_proto::nostr::challenge(&Label::new("n1").unwrap(), &identity.repeat(32), 7)
        };
        let asked = |text: String| own_challenge("n1", Some(&identity), text);
        assert_eq!(asked(of("c2")), Ok(of("c2")));
        assert!(asked(of("c3")).is_err());
        assert!(own_challenge("n2", Some(&identity), of("c2")).is_err());
        assert!(own_challenge("n1", None, of("c2")).is_err());
    }
}
