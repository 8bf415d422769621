//! How a session ends: the applier finishes its batch, the session acknowledges it and says that it leaves, and the
//! connection closes. Nothing new begins meanwhile.

use std::time::Instant;

use super::connection::Connection;
use super::event::{ConnectionId, Event, Inbound};
use super::status::{Phase, StopReason};
use super::stream::Input;
use super::{Command, Session};
use crate::error::{CallError, FollowError};

#[derive(Debug)]
pub(super) enum Life {
    Running,
    /// The apply thread finishes its batch, however long that takes: only then is it known what was saved.
    Draining {
        reason: StopReason,
    },
    /// The session tells the module how far the streams got, and that it leaves.
    Leaving {
        reason: StopReason,
        until: Instant,
    },
    Ended,
}

impl Session {
    /// Begins to stop. From here on nothing new begins.
    pub(super) fn begin_to_stop(&mut self, reason: StopReason) {
        self.life = Life::Draining { reason };
        self.old_is_gone();
        self.end_calls();
        self.end_changes();
        self.views_are_stale();
        self.readable_is_stale();
        let attempted = match &mut self.connection {
            Connection::Up(up) => up.next.take(),
            Connection::Dialing(attempted) => Some(*attempted),
            Connection::Waiting { .. } => None,
        };
        if let Some(connection) = attempted {
            self.commands.push(Command::Close { connection });
        }
        if self.serving().is_none() {
            self.connection = Connection::Waiting { until: self.now };
        }
        for at in 0..self.followers.len() {
            self.withdraw(at);
            self.withdraw_content(at);
        }
        if self.applier_ended {
            self.leave();
        } else {
            self.commands.push(Command::StopApplier);
        }
    }

    pub(super) fn wind_down(&mut self, event: Event) {
        match event {
            Event::Applied(outcome) => {
                // A store failure is either already the reason for stopping or comes too late to become it.
                let _ = self.applied(outcome);
            }
            Event::ApplierEnded => {
                self.applier_ended = true;
                self.leave();
            }
            Event::Message { connection, inbound } if self.serving() == Some(connection) => {
                for inbound in inbound {
                    self.last_words(connection, inbound);
                }
                self.end_if_all_is_said();
            }
            Event::Closed { connection, .. } if self.serving() == Some(connection) => {
                self.connection = Connection::Waiting { until: self.now };
                self.commands.push(Command::Close { connection });
                self.end_if_all_is_said();
            }
            Event::Call { id, .. } => {
                let reply = Err(CallError::Stopped);
                self.commands.push(Command::Reply { id, reply });
            }
            Event::Follow { call, .. } | Event::Unfollow { call, .. } => {
                let result = Err(FollowError::Stopped);
                self.commands.push(Command::Followed { call, result });
            }
            // The attempt succeeded before the session could give it up.
            Event::Dialed { connection, .. } => self.commands.push(Command::Close { connection }),
            Event::Woken => {
                if let Life::Leaving { until, .. } = self.life
                    && self.now >= until
                {
                    self.end();
                }
            }
            Event::Message { .. }
            | Event::Closed { .. }
            | Event::Answered { .. }
            | Event::Heads { .. }
            | Event::Wishes { .. }
            | Event::Hear(_)
            | Event::Stop => {}
        }
    }

    /// Handles the part of a message that still counts.
    fn last_words(&mut self, from: ConnectionId, inbound: Inbound) {
        match inbound {
            Inbound::Acked { stream, seq, answer } => self.acked(from, stream, seq, &answer),
            Inbound::PresenceSaid { answer } => self.presence_said(from, &answer),
            Inbound::Contract(_)
            | Inbound::NoModule { .. }
            | Inbound::GrantCame
            | Inbound::GrantLost { .. }
            | Inbound::Frame { .. }
            | Inbound::Gone { .. }
            | Inbound::Subscribed { .. }
            | Inbound::Unsubscribed { .. }
            | Inbound::SubscriptionFailed { .. }
            | Inbound::Page { .. }
            | Inbound::Changed(_)
            | Inbound::ViewBegan(_)
            | Inbound::ViewFailed { .. }
            | Inbound::Called { .. }
            | Inbound::AudienceTold { .. }
            | Inbound::HearingBegan { .. }
            | Inbound::HearingFailed { .. }
            | Inbound::Told(_)
            | Inbound::Readable { .. } => {}
        }
    }

    /// Nothing more will be saved: the session tells the module how far it got.
    fn leave(&mut self) {
        let Life::Draining { reason } = &self.life else {
            return;
        };
        self.life = Life::Leaving {
            reason: reason.clone(),
            until: self.now + self.settings.limits.stop_timeout,
        };
        self.acknowledge_all();
        self.say_presence(None);
        self.end_if_all_is_said();
    }

    fn end_if_all_is_said(&mut self) {
        if !matches!(self.life, Life::Leaving { .. }) {
            return;
        }
        let unsaid = match &self.connection {
            Connection::Up(up) => {
                let acks = self
                    .followers
                    .iter()
                    .filter(|follower| follower.acknowledgement.is_under_way());
                up.presence_calls + acks.count()
            }
            Connection::Waiting { .. } | Connection::Dialing(_) => 0,
        };
        if unsaid == 0 {
            self.end();
        }
    }

    fn end(&mut self) {
        let Life::Leaving { reason, .. } = std::mem::replace(&mut self.life, Life::Ended) else {
            return;
        };
        for at in 0..self.followers.len() {
            self.feed(at, Input::Disconnected);
        }
        if let Some(connection) = self.serving() {
            self.commands.push(Command::Close { connection });
        }
        self.connection = Connection::Waiting { until: self.now };
        tracing::info!(%reason, "the client has stopped");
        self.phase = Phase::Stopped { reason };
        self.token_unshown = true;
    }
}
