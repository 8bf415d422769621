//! What a session wants done. Whoever carries it out decides nothing.

use spacetime_sync_proto::{Position, Seq};

use super::event::{ConnectionId, Question, QuestionId, ReadId};
use super::stream::{Batch, Beginning, SubscriptionId};
use super::token::Issued;
use crate::presence::Presence;

/// What is to be done.
#[derive(Debug)]
pub enum Command {
    /// Attempt a connection; answered by [`Event::Dialed`](super::Event::Dialed).
    Dial {
        /// What it is called from now on.
        connection: ConnectionId,
        /// The token to use; without one, ask the provider for one if there is a provider.
        token: Option<Issued>,
    },
    /// Give an attempt or a connection up. Nothing is heard of it any more, or is ignored.
    Close {
        /// Which one.
        connection: ConnectionId,
    },
    /// Ask the module for the frames after a position; answered by [`Inbound::Page`](super::Inbound::Page).
    Read {
        /// On this connection.
        connection: ConnectionId,
        /// What the read is called.
        read: ReadId,
        /// The stream.
        stream: usize,
        /// The position.
        after: Seq,
    },
    /// Subscribe to the frames that end after one position and begin no later than another.
    Subscribe {
        /// On this connection.
        connection: ConnectionId,
        /// The stream.
        stream: usize,
        /// What the subscription is called.
        id: SubscriptionId,
        /// The stream's key in the module.
        key: u64,
        /// The one position.
        after: Seq,
        /// The other.
        to: Seq,
    },
    /// Give a subscription up; answered by [`Inbound::Unsubscribed`](super::Inbound::Unsubscribed).
    Unsubscribe {
        /// On this connection.
        connection: ConnectionId,
        /// The stream.
        stream: usize,
        /// The subscription.
        id: SubscriptionId,
    },
    /// Tell the module how far a stream is applied; answered by [`Inbound::Acked`](super::Inbound::Acked).
    Acknowledge {
        /// On this connection.
        connection: ConnectionId,
        /// The stream.
        stream: usize,
        /// How far.
        position: Position,
    },
    /// Tell the module how this session is there; answered by [`Inbound::PresenceSaid`](super::Inbound::PresenceSaid).
    SayPresence {
        /// On this connection.
        connection: ConnectionId,
        /// The session.
        session_id: String,
        /// How it is there.
        presence: Presence,
    },
    /// Ask to be told who is there.
    WatchPresence {
        /// On this connection.
        connection: ConnectionId,
    },
    /// Show the application who is there.
    ShowPresences {
        /// As this connection says.
        connection: ConnectionId,
    },
    /// Ask the authority; answered by [`Event::Answered`](super::Event::Answered).
    Ask {
        /// What the question is called.
        question: QuestionId,
        /// The stream.
        stream: usize,
        /// The token to ask with.
        token: Option<String>,
        /// What is asked.
        about: Question,
    },
    /// Give a question up.
    Withdraw {
        /// Which one.
        question: QuestionId,
    },
    /// Hand work to the thread that applies; answered by [`Event::Applied`](super::Event::Applied).
    Apply {
        /// The stream.
        stream: usize,
        /// The work.
        work: Work,
    },
    /// Let the thread that applies finish the batch that it is at, and end; answered by
    /// [`Event::ApplierEnded`](super::Event::ApplierEnded).
    StopApplier,
}

/// What is to be applied.
#[derive(Debug)]
pub enum Work {
    /// A batch.
    Batch(Batch),
    /// The stream starts over.
    StartOver(Box<Beginning>),
}
