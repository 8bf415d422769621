//! What a session hears: of its connections, of the authority, of the thread that applies, of the application.

use std::time::Duration;

use spacetime_sync_proto::contract::Contract;
use spacetime_sync_proto::page::Snapshot;
use spacetime_sync_proto::{FrameRow, Position, Refusal, Seq, StaleCursor};

use super::status::{Disconnect, StopReason};
use super::stream::{ApplyFailure, Page, SubscriptionId};
use super::token::Issued;
use crate::credential::TokenError;
use crate::error::StoreError;
use crate::presence::Presence;

/// Which connection, from the attempt to make it on. A session never uses one twice, and ignores whatever comes from one
/// that it has given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Which read. A session never uses one twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadId(pub u64);

/// Which question to the authority. A session never uses one twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuestionId(pub u64);

/// What a session hears.
#[derive(Debug)]
pub enum Event {
    /// Time has passed: at [`Session::due`](super::Session::due) this must come, and may come at any other time.
    Woken,
    /// An attempt to connect is over.
    Dialed {
        /// The connection that was attempted.
        connection: ConnectionId,
        /// The token that it was made with, if a provider gave one: the next attempt may use it again.
        token: Option<Issued>,
        /// What the first messages brought beside the contract, which is ours.
        result: Result<Vec<Inbound>, DialFailure>,
    },
    /// A message came.
    Message {
        /// On this connection.
        connection: ConnectionId,
        /// What it brought, frames first and in order. Nothing, if the SDK woke for what goes out.
        inbound: Vec<Inbound>,
    },
    /// A connection has ended.
    Closed {
        /// This one.
        connection: ConnectionId,
        /// Why.
        reason: Disconnect,
    },
    /// The authority has answered, or nobody has.
    Answered {
        /// Which question.
        question: QuestionId,
        /// The stream that it was about.
        stream: usize,
        /// What was answered.
        answer: Answer,
    },
    /// The thread that applies is done with some work.
    Applied(Outcome),
    /// The thread that applies has ended.
    ApplierEnded,
    /// What the application says of this session's presence, and whether it wants to know who else is there.
    Presence {
        /// How the session is there; nothing, if nothing is to be said.
        said: Option<Presence>,
        /// Whether others are to be watched.
        watch: bool,
    },
    /// The application wants the client to stop, or has dropped it.
    Stop,
}

/// What a message of a connection brought.
#[derive(Debug)]
pub enum Inbound {
    /// The module says what it speaks.
    Contract(Contract),
    /// The module knows no contract, or no grants.
    NoModule {
        /// The host's words.
        detail: String,
    },
    /// One more stream may be read. Only the module knows which.
    GrantCame,
    /// The stream with this key may be read no longer.
    GrantLost {
        /// The key.
        stream_key: u64,
    },
    /// A row of a subscription.
    Frame {
        /// The key of its stream.
        stream_key: u64,
        /// The row.
        frame: FrameRow,
    },
    /// A row of a subscription is gone: the host has deleted it, or the subscription has ended.
    Gone {
        /// The key of its stream.
        stream_key: u64,
        /// Position of its last event.
        last_seq: Seq,
    },
    /// The rows that a subscription began with have all been seen.
    Subscribed {
        /// The stream.
        stream: usize,
        /// The subscription.
        id: SubscriptionId,
    },
    /// A subscription that was given up has ended, and its rows are dropped.
    Unsubscribed {
        /// The stream.
        stream: usize,
        /// The subscription.
        id: SubscriptionId,
    },
    /// The host ended a subscription, or never began it.
    SubscriptionFailed {
        /// The stream.
        stream: usize,
        /// The subscription.
        id: SubscriptionId,
        /// The host's words.
        detail: String,
    },
    /// The answer to a read.
    Page {
        /// The stream.
        stream: usize,
        /// The read.
        read: ReadId,
        /// The stream's key and the page.
        answer: Result<(u64, Page), CallFailure>,
    },
    /// The answer to an acknowledgement.
    Acked {
        /// The stream.
        stream: usize,
        /// Up to where it was acknowledged.
        seq: Seq,
        /// Whether the module took it.
        answer: Result<(), CallFailure>,
    },
    /// The answer to what was said of this session's presence.
    PresenceSaid {
        /// Whether the module took it.
        answer: Result<(), CallFailure>,
    },
    /// Who is there has changed, or is known for the first time.
    PresenceChanged,
}

/// Why there is no connection.
#[derive(Debug, PartialEq)]
pub enum DialFailure {
    /// Only a person can mend it.
    Stop(StopReason),
    /// There is no token.
    NoToken(TokenError),
    /// The host does not accept the token.
    Unauthorized,
    /// The module does not let the client in.
    Refused(Refusal),
    /// It may work later.
    Later(Disconnect),
}

/// Why a call was not answered as hoped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallFailure {
    /// The module said no.
    Refused(Refusal),
    /// What the module or the host said in place of an answer.
    Failed(String),
}

/// What is asked of the authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// What follows a position.
    Events(Position),
    /// The document that stands for the events that are gone.
    Document,
}

/// What the authority answers.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// What follows the position.
    Page(Page),
    /// The position leads nowhere.
    Stale(Box<StaleCursor>),
    /// The document, if there is one.
    Document(Option<Box<Snapshot>>),
    /// The token is not accepted.
    Unauthorized(Refusal),
    /// The answer is no.
    Refused(Refusal),
    /// There is no answer.
    Failed {
        /// What went wrong, for a person.
        message: String,
        /// How long to wait at least.
        retry_after: Option<Duration>,
    },
}

/// What became of work for one stream.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    /// The stream.
    pub stream: usize,
    /// How many bytes of frames are done with.
    pub released: usize,
    /// What became of it.
    pub result: Applied,
}

/// What became of a batch, or of starting over.
#[derive(Debug, PartialEq)]
pub enum Applied {
    /// It is saved, up to here.
    To(Position),
    /// Store and handler have started over from here.
    StartedOver(Position),
    /// It followed work that failed, and was thrown away.
    Dropped,
    /// Nothing of it is saved.
    Failed(ApplyFailure),
    /// Nothing of it is saved, and the store is of no use any more.
    StoreFailed(StoreError),
}
