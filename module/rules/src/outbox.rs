//! The outbox: events that a mirror takes to the world outside. What may stand in it, and what a repeated call changes.
//!
//! Each event has a name. As long as the outbox knows the name, it stands for one event, which is sent as one thing. The mirror
//! remembers for longer, and makes the same thing of the same event.

use spacetime_sync_proto::{Label, OutboxStatus, Refusal, RefusalCode, limit};

use crate::content::{Digest, check_document, digest, name, optional_name};

/// An event for the outbox, with valid fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enqueued {
    /// Its name.
    pub event_id: Label,
    /// By what it is sent.
    pub transport: Label,
    /// What is sent: a JSON object.
    pub payload: String,
    /// Over all of the above.
    pub content: Digest,
}

/// Checks the fields of an event for the outbox.
pub fn enqueued(event_id: &str, transport: &str, payload: &str) -> Result<Enqueued, Refusal> {
    let (event_id, transport) = (name("event_id", event_id)?, name("transport", transport)?);
    check_document("payload", payload, limit::OUTBOX_BYTES)?;
    let content = digest(&[
        event_id.as_str().as_bytes(),
        transport.as_str().as_bytes(),
        payload.as_bytes(),
    ]);
    Ok(Enqueued {
        event_id,
        transport,
        payload: payload.to_owned(),
        content,
    })
}

/// What is held of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What it says.
    pub content: Digest,
    /// What became of it.
    pub status: OutboxStatus,
    /// As what it was sent. Empty if it was not.
    pub published_as: String,
}

/// How many events of each kind are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Those that wait.
    pub pending: u32,
    /// Those that do not.
    pub done: u32,
}

/// Whether a call changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It repeats what was done.
    Repeated,
    /// It does something new.
    New,
}

/// Decides about an event for the outbox.
pub fn enqueue(event: &Enqueued, held: Option<&Held>, counts: Counts) -> Result<Effect, Refusal> {
    match held {
        Some(held) if held.content == event.content => Ok(Effect::Repeated),
        Some(_) => Err(conflict(format!(
            "the outbox holds another event under the name {}: choose another event_id for another event",
            event.event_id
        ))),
        None if counts.pending < limit::OUTBOX_PENDING => Ok(Effect::New),
        None => Err(Refusal::new(
            RefusalCode::OutboxFull,
            format!(
                "{} events of the outbox wait, the most allowed: try again when some were sent",
                counts.pending
            ),
        )),
    }
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The event.
    pub event_id: Label,
    /// As what it was sent. `None` if it never will be.
    pub published_as: Option<Label>,
}

/// Checks the fields of an outcome.
pub fn outcome(event_id: &str, published_as: &str) -> Result<Outcome, Refusal> {
    Ok(Outcome {
        event_id: name("event_id", event_id)?,
        published_as: optional_name("published_as", published_as)?,
    })
}

impl Outcome {
    /// The status of the event after it.
    pub fn status(&self) -> OutboxStatus {
        match self.published_as {
            Some(_) => OutboxStatus::Sent,
            None => OutboxStatus::Dropped,
        }
    }
}

/// Decides about an outcome. An event is sent as one thing, and what was dropped may still turn out to be sent.
pub fn mark(outcome: &Outcome, held: Option<&Held>) -> Result<Effect, Refusal> {
    let event_id = &outcome.event_id;
    let Some(held) = held else {
        let message = format!("the outbox holds no event {event_id}: enqueue it first");
        return Err(conflict(message));
    };
    match (held.status, &outcome.published_as) {
        (OutboxStatus::Pending, _) | (OutboxStatus::Dropped, Some(_)) => Ok(Effect::New),
        (OutboxStatus::Dropped, None) => Ok(Effect::Repeated),
        (OutboxStatus::Sent, Some(published_as)) if held.published_as == published_as.as_str() => Ok(Effect::Repeated),
        (OutboxStatus::Sent, _) => Err(conflict(format!(
            "{event_id} was sent as {}: an event is sent once",
            held.published_as
        ))),
    }
}

/// Whether the oldest event that does not wait must be forgotten before another one joins it.
pub fn is_full(counts: Counts) -> bool {
    counts.done >= limit::OUTBOX_SENT
}

fn conflict(message: String) -> Refusal {
    Refusal::new(RefusalCode::OutboxConflict, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event_id: &str, payload: &str) -> Enqueued {
        enqueued(event_id, "nostr", payload).unwrap()
    }

    fn held(content: Digest, status: OutboxStatus, published_as: &str) -> Held {
        Held {
            content,
            status,
            published_as: published_as.to_owned(),
        }
    }

    const EMPTY: Counts = Counts { pending: 0, done: 0 };

    #[test]
    fn an_event_with_an_invalid_field_is_refused() {
        let said = |event_id: &str, transport: &str, payload: &str| {
            let said = enqueued(event_id, transport, payload);
            said.map(drop).map_err(|refusal| refusal.code)
        };
        let most = format!("{{\"a\":\"{}\"}}", "x".repeat(limit::OUTBOX_BYTES - 8));
        assert_eq!(said("e1", "nostr", "{}"), Ok(()));
        assert_eq!(said("e1", "nostr", &most), Ok(()));
        for (event_id, transport, payload) in [
            ("", "nostr", "{}"),
            ("e 1", "nostr", "{}"),
            ("e1", "", "{}"),
            ("e1", "no str", "{}"),
            ("e1", "nostr", ""),
            ("e1", "nostr", "[]"),
            ("e1", "nostr", &format!("{most} ")),
        ] {
            let code = said(event_id, transport, payload);
            assert_eq!(code, Err(RefusalCode::InvalidArgument), "{event_id} {transport}");
        }
    }

    #[test]
    fn a_repeat_changes_nothing_and_every_field_counts() {
        let first = event("e1", "{}");
        for status in OutboxStatus::ALL {
            let held = held(first.content, *status, "");
            assert_eq!(enqueue(&first, Some(&held), EMPTY), Ok(Effect::Repeated));
            for other in [event("e1", "{ }"), enqueued("e1", "post", "{}").unwrap()] {
                let refused = enqueue(&other, Some(&held), EMPTY).unwrap_err();
                assert_eq!(refused.code, RefusalCode::OutboxConflict);
            }
        }
        assert_eq!(enqueue(&first, None, EMPTY), Ok(Effect::New));
    }

    #[test]
    fn a_full_outbox_takes_repeats_and_nothing_new() {
        let full = |pending| Counts { pending, done: 0 };
        let (event, most) = (event("e1", "{}"), limit::OUTBOX_PENDING);
        assert_eq!(enqueue(&event, None, full(most - 1)), Ok(Effect::New));
        let refused = enqueue(&event, None, full(most)).unwrap_err();
        assert_eq!(refused.code, RefusalCode::OutboxFull);
        let held = held(event.content, OutboxStatus::Pending, "");
        assert_eq!(enqueue(&event, Some(&held), full(most)), Ok(Effect::Repeated));
    }

    #[test]
    fn what_is_done_is_bounded() {
        let done = |done| Counts { pending: 0, done };
        assert!(!is_full(done(limit::OUTBOX_SENT - 1)));
        assert!(is_full(done(limit::OUTBOX_SENT)));
    }

    #[test]
    fn an_event_is_sent_as_one_thing() {
        use OutboxStatus::{Dropped, Pending, Sent};
        let marked = |status, before: &str, published_as: &str| {
            let outcome = outcome("e1", published_as).unwrap();
            let marked = mark(&outcome, Some(&held([1; 32], status, before)));
            (outcome.status(), marked.map_err(|refusal| refusal.code))
        };
        let conflict = Err(RefusalCode::OutboxConflict);
        assert_eq!(marked(Pending, "", "n1"), (Sent, Ok(Effect::New)));
        assert_eq!(marked(Pending, "", ""), (Dropped, Ok(Effect::New)));
        assert_eq!(marked(Sent, "n1", "n1"), (Sent, Ok(Effect::Repeated)));
        assert_eq!(marked(Sent, "n1", "n2"), (Sent, conflict));
        assert_eq!(marked(Sent, "n1", ""), (Dropped, conflict));
        assert_eq!(marked(Dropped, "", ""), (Dropped, Ok(Effect::Repeated)));
        assert_eq!(marked(Dropped, "", "n1"), (Sent, Ok(Effect::New)));
        let unknown = mark(&outcome("e1", "n1").unwrap(), None).map_err(|refusal| refusal.code);
        assert_eq!(unknown, conflict);
        for (event_id, published_as) in [("", "n1"), ("e1", "n 1")] {
            let refused = outcome(event_id, published_as).unwrap_err();
            assert_eq!(refused.code, RefusalCode::InvalidArgument);
        }
    }
}
