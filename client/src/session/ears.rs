//! What the session listens to: for each audience it asks the module for the key, and subscribes to what is wanted of it. All of
//! it begins anew with every connection, and the application is told about every break: of signals in their channel, of what it
//! watches by how fresh that is.
//!
//! A subscription names its audience, because SpacetimeDB looks at every subscription that names none for each change.

use std::time::Instant;

use super::event::{CallFailure, ConnectionId};
use super::{Command, Session};
use crate::signal::{Audience, Audiences, Heard, Purpose};

/// Everything the session listens to.
#[derive(Debug, Default)]
pub(super) struct Ears {
    ears: Vec<Ear>,
    /// How many listeners know what is heard.
    listeners: u64,
}

/// One audience, for one purpose.
#[derive(Debug)]
struct Ear {
    purpose: Purpose,
    audience: Audience,
    hearing: Hearing,
    /// The key that the connection has subscribed to.
    key: Option<u64>,
    /// Whether the module has said on this connection that the session does not belong to it.
    is_foreign: bool,
    /// Whether the application knows that the module refuses.
    refusal_told: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hearing {
    /// Nothing is heard. The session asks for the key at this time, or at once.
    Nothing { ask_at: Option<Instant> },
    /// The session has asked for the key.
    Asked,
    /// The session has subscribed.
    Subscribing,
    /// It hears.
    Listening,
}

impl Session {
    /// The application wants this of these audiences. It never gives one up.
    pub(super) fn hear(&mut self, Audiences { wanted, listeners }: Audiences) {
        for (purpose, audience) in wanted {
            let ears = &mut self.ears.ears;
            if !ears
                .iter()
                .any(|ear| (ear.purpose, &ear.audience) == (purpose, &audience))
            {
                ears.push(Ear {
                    purpose,
                    audience,
                    hearing: Hearing::Nothing { ask_at: None },
                    key: None,
                    is_foreign: false,
                    refusal_told: false,
                });
            }
        }
        if std::mem::replace(&mut self.ears.listeners, listeners) != listeners {
            for ear in &self.ears.ears {
                if ear.hearing == Hearing::Listening {
                    self.commands.extend(ear.says(Heard::Listening));
                }
            }
        }
        self.listen();
        self.views_follow_ears();
    }

    /// Nothing is heard any more. A hand-over is a break, too: what comes on both connections, or on none of them, cannot be told
    /// apart.
    pub(super) fn ears_fall_silent(&mut self) {
        for ear in &mut self.ears.ears {
            self.commands.extend(ear.falls_silent(None));
            (ear.key, ear.is_foreign) = (None, false);
        }
    }

    /// Asks for the keys that are due.
    pub(super) fn listen(&mut self) {
        let Some(connection) = self.serving() else { return };
        for (at, ear) in self.ears.ears.iter_mut().enumerate() {
            if let Hearing::Nothing { ask_at } = ear.hearing
                && ask_at.is_none_or(|at| at <= self.now)
            {
                ear.hearing = Hearing::Asked;
                self.commands.push(Command::AskAudience {
                    connection,
                    ear: at,
                    audience: ear.audience.clone(),
                });
            }
        }
    }

    /// The module has told the key of an audience, or refused.
    pub(super) fn audience_told(&mut self, from: ConnectionId, at: usize, answer: Result<u64, CallFailure>) {
        let ask_at = Some(self.now + self.settings.limits.ask_again_after);
        let Some(ear) = self.ear_of(from, at, Hearing::Asked) else {
            return;
        };
        match answer {
            // The connection has subscribed to it before, and the module took the right away meanwhile.
            Ok(key) if ear.key == Some(key) => self.hears(at),
            Ok(key) => {
                (ear.hearing, ear.key) = (Hearing::Subscribing, Some(key));
                ear.is_foreign = false;
                let purpose = ear.purpose;
                self.commands.push(Command::Hear {
                    connection: from,
                    ear: at,
                    purpose,
                    key,
                });
                self.views_follow_ears();
            }
            Err(failure) => {
                ear.hearing = Hearing::Nothing { ask_at };
                ear.is_foreign |= failure.is_of_rights();
                if let CallFailure::Refused(refusal) = &failure
                    && !std::mem::replace(&mut ear.refusal_told, true)
                {
                    let refused = |audience| Heard::Refused {
                        audience,
                        refusal: refusal.clone(),
                    };
                    let says = ear.says(refused);
                    self.commands.extend(says);
                }
                self.doubt_token_if(failure.is_of_aged_token());
                self.views_follow_ears();
            }
        }
    }

    /// A subscription to an audience has begun.
    pub(super) fn hearing_began(&mut self, from: ConnectionId, at: usize) {
        if self.ear_of(from, at, Hearing::Subscribing).is_some() {
            self.hears(at);
        }
    }

    fn hears(&mut self, at: usize) {
        let ear = &mut self.ears.ears[at];
        (ear.hearing, ear.refusal_told) = (Hearing::Listening, false);
        self.commands.extend(ear.says(Heard::Listening));
        self.views_follow_ears();
    }

    /// SpacetimeDB ended a subscription to an audience, or never began it.
    pub(super) fn hearing_failed(&mut self, from: ConnectionId, at: usize, detail: &str) {
        let ask_at = Some(self.now + self.settings.limits.ask_again_after);
        if self.serving() != Some(from) {
            return;
        }
        let Some(ear) = self.ears.ears.get_mut(at) else { return };
        tracing::warn!(audience = ?ear.audience, purpose = ?ear.purpose, detail, "cannot hear an audience");
        ear.key = None;
        self.commands.extend(ear.falls_silent(ask_at));
        self.views_follow_ears();
    }

    /// The module took the right to this key away: nothing more is heard of it.
    pub(super) fn ears_lost(&mut self, key: u64) {
        let lost = |ear: &&mut Ear| ear.key == Some(key) && ear.hearing == Hearing::Listening;
        for ear in self.ears.ears.iter_mut().filter(lost) {
            self.commands.extend(ear.falls_silent(None));
        }
        self.listen();
        self.views_follow_ears();
    }

    /// The module gave the session another right: perhaps one that was refused before.
    pub(super) fn ask_for_keys_again(&mut self) {
        for ear in &mut self.ears.ears {
            if let Hearing::Nothing { ask_at } = &mut ear.hearing {
                *ask_at = None;
            }
        }
        self.listen();
    }

    /// Something was told to an audience.
    pub(super) fn told(&mut self, from: ConnectionId, heard: Heard) {
        if self.serving() == Some(from) {
            self.commands.push(Command::Tell(heard));
        }
    }

    /// An ear, if this is the connection that serves and it is in this state.
    fn ear_of(&mut self, from: ConnectionId, at: usize, hearing: Hearing) -> Option<&mut Ear> {
        let serves = self.serving() == Some(from);
        self.ears
            .ears
            .get_mut(at)
            .filter(|ear| serves && ear.hearing == hearing)
    }
}

impl Ear {
    /// Nothing is heard any more. The order to say so, if something was.
    fn falls_silent(&mut self, ask_at: Option<Instant>) -> Option<Command> {
        let before = std::mem::replace(&mut self.hearing, Hearing::Nothing { ask_at });
        self.says(Heard::Interrupted).filter(|_| before == Hearing::Listening)
    }

    /// The order to tell whoever listens to signals.
    fn says(&self, heard: impl FnOnce(Audience) -> Heard) -> Option<Command> {
        match self.purpose {
            Purpose::Signals => Some(Command::Tell(heard(self.audience.clone()))),
            Purpose::Presences | Purpose::Assignments => None,
        }
    }
}

impl Ears {
    /// Whether everything that there is for this purpose is heard. The session sees nothing of audiences that it does not
    /// belong to.
    pub(super) fn hear_all(&self, purpose: Purpose) -> bool {
        let mut of = self.ears.iter().filter(|ear| ear.purpose == purpose).peekable();
        of.peek().is_some() && of.all(|ear| ear.hearing == Hearing::Listening || ear.is_foreign)
    }
}
