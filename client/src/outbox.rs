//! The outbox: what the world outside is to hear, for a session that takes it there.

use std::collections::BTreeMap;
use std::time::SystemTime;

use spacetime_sync_proto::{OutboxStatus, limit};

use crate::error::CallError;

/// An event to put into the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxEvent {
    /// Its name, which no other event has.
    pub event_id: String,
    /// By what it is sent.
    pub transport: String,
    /// What is sent: a JSON object.
    pub payload: String,
}

/// What became of an event of the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxOutcome {
    /// The event.
    pub event_id: String,
    /// As what it was sent. `None` if it never will be.
    pub published_as: Option<String>,
}

/// An event as the outbox has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenOutboxEvent {
    /// See [`OutboxEvent::transport`].
    pub transport: String,
    /// What is sent. `None` once the event does not wait any more.
    pub payload: Option<String>,
    /// What became of it.
    pub status: OutboxStatus,
    /// As what it was sent.
    pub published_as: Option<String>,
    /// When it was put in, by SpacetimeDB's clock.
    pub enqueued_at: SystemTime,
    /// When its status changed last.
    pub changed_at: SystemTime,
}

/// The events of the outbox, by their names.
pub type Outbox = BTreeMap<String, SeenOutboxEvent>;

impl OutboxEvent {
    pub(crate) fn check(&self) -> Result<(), CallError> {
        CallError::check_name("event_id", &self.event_id)?;
        CallError::check_name("transport", &self.transport)?;
        CallError::check_length("payload", &self.payload, limit::OUTBOX_BYTES)
    }
}

impl OutboxOutcome {
    pub(crate) fn check(&self) -> Result<(), CallError> {
        CallError::check_name("event_id", &self.event_id)?;
        match &self.published_as {
            Some(published_as) => CallError::check_name("published_as", published_as),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_module_would_refuse_is_refused_here() {
        let event = |event_id: &str, transport: &str, payload: &str| {
            let one = OutboxEvent {
                event_id: event_id.to_owned(),
                transport: transport.to_owned(),
                payload: payload.to_owned(),
            };
            one.check()
        };
        let outcome = |event_id: &str, published_as: Option<&str>| {
            let one = OutboxOutcome {
                event_id: event_id.to_owned(),
                published_as: published_as.map(str::to_owned),
            };
            one.check()
        };
        assert_eq!(event("e1", "nostr", "{}"), Ok(()));
        assert_eq!(outcome("e1", Some("n1")), Ok(()));
        assert_eq!(outcome("e1", None), Ok(()));
        for refused in [
            event("", "nostr", "{}"),
            event("e1", "no str", "{}"),
            event("e1", "nostr", &"x".repeat(limit::OUTBOX_BYTES + 1)),
            outcome("e 1", None),
            outcome("e1", Some("")),
        ] {
            assert!(matches!(refused, Err(CallError::Invalid(_))), "{refused:?}");
        }
    }
}
