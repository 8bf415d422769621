//! What the session does with a message of a connection.

use std::collections::BTreeSet;

use spacetime_sync_proto::contract::Contract;
use spacetime_sync_proto::{RefusalCode, Seq};

use super::Session;
use super::connection::Connection;
use super::counted::less;
use super::event::{CallFailure, ConnectionId, Inbound};
use super::status::StopReason;
use super::stream::{Input, Mode};

/// The schema version that this release speaks with a module, or why it speaks none.
pub(crate) fn agree(found: Contract) -> Result<u32, StopReason> {
    let ours = Contract::ours();
    ours.agree(&found).map_err(|mismatch| StopReason::ContractMismatch {
        ours: Box::new(ours),
        found: Box::new(found),
        mismatch,
    })
}

impl Session {
    /// Handles a whole message.
    pub(super) fn message(&mut self, from: ConnectionId, message: Vec<Inbound>) -> Result<(), StopReason> {
        if !self.heard(from, !message.is_empty()) {
            return Ok(());
        }
        let mut changed = BTreeSet::new();
        for inbound in message {
            if let Inbound::Changed(watchable) = inbound {
                changed.insert(watchable);
            }
            self.inbound(from, inbound)?;
        }
        self.renew_if_large();
        // Once per message, and only from the serving connection: the replaced one may be behind.
        self.show_views(from, changed);
        self.reconnect_if_overfull();
        Ok(())
    }

    /// Whether the connection is in use. `something` is false when the SDK woke only to send, which says nothing about
    /// the other end.
    fn heard(&mut self, from: ConnectionId, something: bool) -> bool {
        let now = self.now;
        match &mut self.connection {
            Connection::Up(up) if up.id == from => {
                if something {
                    up.heard_at = now;
                }
                true
            }
            Connection::Up(up) => up.old.as_ref().is_some_and(|old| old.id == from),
            Connection::Waiting { .. } | Connection::Dialing(_) => false,
        }
    }

    pub(super) fn inbound(&mut self, from: ConnectionId, inbound: Inbound) -> Result<(), StopReason> {
        match inbound {
            Inbound::Contract(found) => {
                let speaks = agree(found)?;
                if let Connection::Up(up) = &mut self.connection
                    && up.id == from
                    && std::mem::replace(&mut up.speaks, speaks) != speaks
                {
                    self.readable_changed();
                }
            }
            Inbound::NoModule { detail } => return Err(StopReason::NoModule { detail }),
            Inbound::GrantCame => {
                self.readable_changed();
                self.ask_for_keys_again();
                for at in 0..self.followers.len() {
                    if let Mode::Refused(_) = self.followers[at].stream.mode() {
                        self.followers[at].ask_at = None;
                        self.feed(at, Input::AskAgain);
                    }
                }
            }
            Inbound::GrantLost { stream_key } => {
                self.readable_changed();
                self.ears_lost(stream_key);
                if let Some(at) = self.by_key.get(&stream_key).copied() {
                    // The module forgot this stream's checkpoint together with the grant.
                    self.followers[at].acknowledgement.forget();
                    self.feed(at, Input::GrantLost);
                    // The issuer knows why: it may have revoked the session, or the session has ended by SpacetimeDB's
                    // clock.
                    self.doubt_token_if(true);
                }
            }
            Inbound::Frame { stream_key, frame } => {
                if let Some(at) = self.by_key.get(&stream_key).copied() {
                    self.delivered(from, at, frame.bytes.len());
                    self.feed(at, Input::Frame(frame));
                    if self.unapplied_bytes > self.settings.limits.unapplied_bytes {
                        self.feed(at, Input::Overrun);
                    }
                }
            }
            Inbound::Gone { stream_key, last_seq } => {
                if let Some(at) = self.by_key.get(&stream_key).copied() {
                    self.feed(at, Input::Gone { last_seq });
                }
            }
            Inbound::Subscribed { stream, id } => {
                self.followers[stream].subscription_answered();
                self.feed(stream, Input::Subscribed(id));
            }
            Inbound::Unsubscribed { stream, id } => self.unsubscribed(stream, id),
            Inbound::SubscriptionFailed { stream, id, detail } => {
                self.followers[stream].subscription_answered();
                tracing::warn!(stream = %self.followers[stream].id, detail, "a subscription failed");
                if !self.followers[stream].is_followed() {
                    // It was given up, and has ended in this way.
                    self.unsubscribed(stream, id);
                } else if self.handed_over() == Some(from) {
                    self.old_subscription_failed(stream, id);
                } else {
                    self.feed(stream, Input::SubscriptionFailed(id));
                }
            }
            Inbound::Page { stream, read, answer } => self.page(from, stream, read, answer)?,
            Inbound::Acked { stream, seq, answer } => self.acked(from, stream, seq, &answer),
            Inbound::PresenceSaid { answer } => self.presence_said(from, &answer),
            Inbound::Called { id, answer } => self.called(from, id, answer),
            Inbound::AudienceTold { ear, answer } => self.audience_told(from, ear, answer),
            Inbound::HearingBegan { ear } => self.hearing_began(from, ear),
            Inbound::HearingFailed { ear, detail } => self.hearing_failed(from, ear, &detail),
            Inbound::Told(heard) => self.told(from, heard),
            Inbound::Readable { question, answer } => self.readable_told(from, question, answer),
            // Shown once for the whole message.
            Inbound::Changed(_) => {}
            Inbound::ViewBegan(watchable) => self.view_began(from, watchable),
            Inbound::ViewFailed { watchable, detail } => self.view_failed(from, watchable, &detail),
        }
        Ok(())
    }

    /// The module has answered an acknowledgement.
    pub(super) fn acked(&mut self, from: ConnectionId, at: usize, seq: Seq, answer: &Result<(), CallFailure>) {
        self.followers[at].acknowledgement.answered(from, seq, answer);
        match answer {
            Ok(()) => self.counters.acks += 1,
            Err(failure) => {
                self.counters.acks_refused += 1;
                self.doubt_token_if(failure.is_of_aged_token());
                tracing::debug!(stream = %self.followers[at].id, %seq, ?failure, "an acknowledgement failed");
            }
        }
    }

    /// The module has answered a presence call.
    pub(super) fn presence_said(&mut self, from: ConnectionId, answer: &Result<(), CallFailure>) {
        if let Connection::Up(up) = &mut self.connection
            && up.id == from
        {
            less(&mut up.presence_calls, 1);
        }
        match answer {
            Ok(()) => self.counters.heartbeats += 1,
            Err(failure) => {
                self.counters.heartbeats_refused += 1;
                self.doubt_token_if(failure.is_of_aged_token());
                if matches!(failure, CallFailure::Refused(refusal) if refusal.code == RefusalCode::MissingScope) {
                    tracing::warn!(
                        "the presence is refused: the authority's policy does not let this session say what it serves"
                    );
                } else {
                    tracing::debug!(?failure, "a presence call failed");
                }
            }
        }
    }
}
