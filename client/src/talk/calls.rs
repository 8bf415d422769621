//! The calls that the application makes on a connection.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use spacetime_sync_bindings::{
    bind_nostr_key, challenge_nostr_key, enqueue_bridge_event, mark_bridge_event_sent, open_compute_assignment,
    publish_provider_capability, send_signal, update_compute_assignment,
};
use spacetime_sync_proto::{IdentityHex, Label};
use spacetimedb_sdk::Identity;

use super::link::{Link, flat, push};
use crate::nostr::NostrChallenge;
use crate::outbox::{OutboxEvent, OutboxOutcome};
use crate::session::{Call, CallFailure, CallId, Called, Inbound};
use crate::signal::Signal;
use crate::work::{Capability, ChangeAssignment, OpenAssignment};

impl Link {
    /// Notes who the client is by its token, which SpacetimeDB cannot choose.
    pub(super) fn know_identity(&mut self, token: Option<&str>) {
        self.identity = token.and_then(identity_of);
    }

    /// Makes a call of the application.
    pub(crate) fn call(&self, id: CallId, call: Call) {
        let inbox = Arc::clone(&self.inbox);
        let say = move |answer: Called<CallFailure>| push(&inbox, Inbound::Called { id, answer });
        let (reducers, procedures) = (&self.connection.reducers, &self.connection.procedures);
        let sent = match call {
            Call::Challenge { node_id } => {
                let identity = self.identity.clone();
                procedures.challenge_nostr_key_then(node_id.clone(), move |_, answer| {
                    say(flat(answer).and_then(|text| own_challenge(&node_id, identity.as_ref(), text).map(Some)));
                });
                Ok(())
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
                Ok(())
            }
            Call::Signal(Signal { node_id, subject, says }) => {
                let (subject_kind, subject) = subject.parts();
                let (kind, [done, total], note) = says.parts();
                reducers.send_signal_then(
                    node_id,
                    subject_kind.as_str().to_owned(),
                    subject.to_owned(),
                    kind.as_str().to_owned(),
                    done,
                    total,
                    note.to_owned(),
                    move |_, answer| say(flat(answer).map(|()| None)),
                )
            }
            Call::Publish(Capability {
                provider_id,
                capability,
                version,
                price_hint_sats,
                region,
                document,
                stands_for,
            }) => reducers.publish_provider_capability_then(
                provider_id,
                capability,
                version,
                price_hint_sats,
                region,
                document,
                stands_for.as_secs(),
                move |_, answer| say(flat(answer).map(|()| None)),
            ),
            Call::Open(OpenAssignment {
                request_id,
                provider_id,
                document,
                deadline,
            }) => reducers.open_compute_assignment_then(
                request_id,
                provider_id.unwrap_or_default(),
                document,
                deadline.as_secs(),
                move |_, answer| say(flat(answer).map(|()| None)),
            ),
            Call::Change(ChangeAssignment {
                request_id,
                update_id,
                expected_version,
                to,
                provider_id,
                document,
            }) => reducers.update_compute_assignment_then(
                request_id,
                update_id,
                expected_version,
                to.as_str().to_owned(),
                provider_id.unwrap_or_default(),
                document.unwrap_or_default(),
                move |_, answer| say(flat(answer).map(|()| None)),
            ),
            Call::Enqueue(OutboxEvent {
                event_id,
                transport,
                payload,
            }) => reducers.enqueue_bridge_event_then(event_id, transport, payload, move |_, answer| {
                say(flat(answer).map(|()| None));
            }),
            Call::Mark(OutboxOutcome { event_id, published_as }) => {
                let published_as = published_as.unwrap_or_default();
                reducers.mark_bridge_event_sent_then(event_id, published_as, move |_, answer| {
                    say(flat(answer).map(|()| None));
                })
            }
        };
        if let Err(error) = sent {
            let answer = Err(CallFailure::Failed(error.to_string()));
            push(&self.inbox, Inbound::Called { id, answer });
        }
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
