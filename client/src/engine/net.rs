//! Where the connection stands, and waiting for what it brings next.

use std::future::pending;

use tokio::time::{Instant, sleep_until};

use super::access::Tenure;
use crate::link::{Dial, DialAnswer, Inbound, Link};
use crate::status::Disconnect;

pub(super) enum Net {
    /// Waiting before the next attempt.
    Waiting { until: Instant },
    /// An attempt is under way.
    Dialing(Dial),
    /// There is a connection, and its contract is ours.
    Up(Box<Up>),
}

pub(super) struct Up {
    pub(super) link: Link,
    pub(super) generation: Generation,
    pub(super) heard_at: Instant,
    /// Since when the client is live or idle.
    pub(super) stable_since: Option<Instant>,
    /// How long its token is good for, if it came from a provider.
    pub(super) tenure: Option<Tenure>,
    /// The connection that is to take over.
    pub(super) next: Option<Dial>,
    /// The one that this one took over from, while streams still hang on it.
    pub(super) old: Option<Old>,
    /// Whether it was asked who is there.
    pub(super) watches_presence: bool,
    /// Whether who is there may have changed since it was told.
    pub(super) presence_changed: bool,
}

pub(super) struct Old {
    pub(super) link: Link,
    pub(super) generation: Generation,
    /// When it is given up, whatever still hangs on it.
    pub(super) until: Instant,
}

/// Which connection: subscriptions and reads end with theirs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Generation(pub(super) u64);

pub(super) enum NetEvent {
    /// It is time to try.
    Due,
    /// An attempt is over.
    Dialed(DialAnswer),
    /// An attempt is over that was made while a connection serves.
    Refreshed(DialAnswer),
    /// A message.
    Message(Result<Vec<Inbound>, Disconnect>),
    /// A message of the connection that was taken over from.
    OldMessage(Result<Vec<Inbound>, Disconnect>),
}

impl Net {
    /// What comes next. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> NetEvent {
        match self {
            Self::Waiting { until } => {
                sleep_until(*until).await;
                NetEvent::Due
            }
            Self::Dialing(dial) => NetEvent::Dialed(dial.answer().await),
            Self::Up(up) => {
                let Up { link, next, old, .. } = &mut **up;
                tokio::select! {
                    message = link.next() => NetEvent::Message(message),
                    message = old_message(old.as_ref()) => NetEvent::OldMessage(message),
                    answer = answer(next.as_mut()) => NetEvent::Refreshed(answer),
                }
            }
        }
    }
}

async fn old_message(old: Option<&Old>) -> Result<Vec<Inbound>, Disconnect> {
    match old {
        Some(old) => old.link.next().await,
        None => pending().await,
    }
}

async fn answer(dial: Option<&mut Dial>) -> DialAnswer {
    match dial {
        Some(dial) => dial.answer().await,
        None => pending().await,
    }
}
