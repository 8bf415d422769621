//! Where the connection stands, and waiting for what it brings next.

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::link::{ConnectFailure, Inbound, Link};
use crate::status::Disconnect;

pub(super) enum Net {
    /// Waiting before the next attempt.
    Waiting { until: Instant },
    /// An attempt is under way.
    Connecting {
        answer: oneshot::Receiver<Result<Link, ConnectFailure>>,
        deadline: Instant,
    },
    /// There is a connection.
    Up(Up),
}

pub(super) struct Up {
    pub(super) link: Link,
    /// Until when the contract has to be seen.
    pub(super) deadline: Instant,
    /// Whether the contract was seen, and is ours.
    pub(super) serving: bool,
    pub(super) heard_at: Instant,
    /// Since when the client is live or idle on this connection.
    pub(super) stable_since: Option<Instant>,
}

pub(super) enum NetEvent {
    /// It is time to try.
    Due,
    /// An attempt is over.
    Connected(Result<Link, ConnectFailure>),
    /// It took too long.
    TimedOut,
    /// A message.
    Message(Result<Vec<Inbound>, Disconnect>),
}

impl Net {
    /// What comes next. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> NetEvent {
        match self {
            Self::Waiting { until } => {
                sleep_until(*until).await;
                NetEvent::Due
            }
            Self::Connecting { answer, deadline } => match timeout_at(*deadline, answer).await {
                Ok(Ok(result)) => NetEvent::Connected(result),
                // The thread ended without an answer: the SDK panicked, or there was no thread.
                Ok(Err(_)) => {
                    let failed = Disconnect::Failed("the attempt ended without an answer".to_owned());
                    NetEvent::Connected(Err(ConnectFailure::Later(failed)))
                }
                Err(_) => NetEvent::TimedOut,
            },
            Self::Up(up) if up.serving => NetEvent::Message(up.link.next().await),
            Self::Up(up) => match timeout_at(up.deadline, up.link.next()).await {
                Ok(message) => NetEvent::Message(message),
                Err(_) => NetEvent::TimedOut,
            },
        }
    }
}
