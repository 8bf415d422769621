//! The commands of a session. The code that carries them out decides nothing.

use std::ops::Range;

use bytes::Bytes;
use spacetime_sync_proto::{Position, SealKey, Seq, StreamId};

use super::calls::{Call, CallId, Called};
use super::event::{ConnectionId, Content, Question, QuestionId, ReadId};
use super::stream::{Adoption, Batch, Beginning, Staging, SubscriptionId};
use super::token::Issued;
use crate::config::Carries;
use crate::error::{CallError, FollowError};
use crate::presence::Presence;
use crate::readable::ReadableStreams;
use crate::signal::{Audience, Heard, Purpose};
use crate::watched::{Freshness, Watchable};

/// An order of the session.
#[derive(Debug)]
pub enum Command {
    /// Attempt a connection; answered by [`Event::Dialed`](super::Event::Dialed).
    Dial {
        /// The id of the new connection.
        connection: ConnectionId,
        /// The token to use. Without one, ask the provider, if there is one.
        token: Option<Issued>,
        /// The streams to ask it for.
        streams: Vec<StreamId>,
    },
    /// Give up an attempt or a connection. The session ignores anything that still comes from it.
    Close {
        /// The connection or attempt.
        connection: ConnectionId,
    },
    /// Ask the module for the frames after a position; answered by [`Inbound::Page`](super::Inbound::Page).
    Read {
        /// The connection to ask on.
        connection: ConnectionId,
        /// The id of the read.
        read: ReadId,
        /// The stream.
        stream: usize,
        /// The position.
        after: Seq,
    },
    /// Subscribe to the frames that end after `after` and begin no later than `to`.
    Subscribe {
        /// The connection to subscribe on.
        connection: ConnectionId,
        /// The stream.
        stream: usize,
        /// The id of the subscription.
        id: SubscriptionId,
        /// The stream's key in the module.
        key: u64,
        /// The frames end after this position.
        after: Seq,
        /// They begin no later than this one.
        to: Seq,
    },
    /// Give up a subscription; answered by [`Inbound::Unsubscribed`](super::Inbound::Unsubscribed).
    Unsubscribe {
        /// The connection that it is on.
        connection: ConnectionId,
        /// The stream.
        stream: usize,
        /// The subscription.
        id: SubscriptionId,
    },
    /// Tell the module how far a stream is applied; answered by [`Inbound::Acked`](super::Inbound::Acked).
    Acknowledge {
        /// The connection to tell it on.
        connection: ConnectionId,
        /// The stream.
        stream: usize,
        /// The checkpoint.
        position: Position,
    },
    /// Tell the module this session's presence; answered by [`Inbound::PresenceSaid`](super::Inbound::PresenceSaid).
    SayPresence {
        /// The connection to tell it on.
        connection: ConnectionId,
        /// The session.
        session_id: String,
        /// Its presence.
        presence: Presence,
    },
    /// Subscribe to the whole of something that the application watches; answered by
    /// [`Inbound::ViewBegan`](super::Inbound::ViewBegan).
    Watch {
        /// The connection to subscribe on.
        connection: ConnectionId,
        /// What it is.
        watchable: Watchable,
    },
    /// Show the application something that it watches.
    Show {
        /// What it is.
        watchable: Watchable,
        /// The connection whose rows to show. `None` to leave the rows that are shown.
        rows_of: Option<ConnectionId>,
        /// How fresh they are.
        freshness: Freshness,
    },
    /// Make a call of the application; answered by [`Inbound::Called`](super::Inbound::Called).
    Call {
        /// The connection to call on.
        connection: ConnectionId,
        /// The id of the call.
        id: CallId,
        /// The call.
        call: Call,
    },
    /// Tell the application what came of a call.
    Reply {
        /// The id of the call.
        id: CallId,
        /// The answer.
        reply: Called<CallError>,
    },
    /// Ask for the key of an audience; answered by [`Inbound::AudienceTold`](super::Inbound::AudienceTold).
    AskAudience {
        /// The connection to ask on.
        connection: ConnectionId,
        /// The session's number for the audience.
        ear: usize,
        /// The audience.
        audience: Audience,
    },
    /// Subscribe to what is wanted of an audience; answered by [`Inbound::HearingBegan`](super::Inbound::HearingBegan).
    Hear {
        /// The connection to subscribe on.
        connection: ConnectionId,
        /// The session's number for the audience.
        ear: usize,
        /// What is wanted of it.
        purpose: Purpose,
        /// The audience's key in the module.
        key: u64,
    },
    /// Find out from the store where a stream is, and give it this place; answered by [`Applied::Opened`](super::Applied::Opened).
    Open {
        /// The place.
        stream: usize,
        /// The stream.
        stream_id: StreamId,
        /// What it carries.
        carries: Carries,
    },
    /// Tell the application what came of its wish to follow a stream, or to follow it no longer.
    Followed {
        /// The id of the call.
        call: CallId,
        /// Whether that is so.
        result: Result<(), FollowError>,
    },
    /// Tell the application what was heard.
    Tell(Heard),
    /// Ask the module which streams the session may read; answered by [`Inbound::Readable`](super::Inbound::Readable).
    AskReadable {
        /// The connection to ask on.
        connection: ConnectionId,
        /// The id of the question.
        question: QuestionId,
        /// Their names come after this text.
        after: String,
    },
    /// Tell the application which streams the session may read.
    ShowReadable {
        /// The streams. `None` to leave those that are shown.
        readable: Option<ReadableStreams>,
        /// How fresh they are.
        freshness: Freshness,
    },
    /// Ask the authority; answered by [`Event::Answered`](super::Event::Answered).
    Ask {
        /// The id of the question.
        question: QuestionId,
        /// The stream.
        stream: usize,
        /// The token to ask with.
        token: Option<String>,
        /// The question.
        about: Question,
    },
    /// Ask the authority where streams end; answered by [`Event::Heads`](super::Event::Heads).
    AskHeads {
        /// The id of the question.
        question: QuestionId,
        /// The streams.
        streams: Range<usize>,
        /// The streams about which SpacetimeDB contradicts the authority.
        reported: Vec<usize>,
        /// The token to ask with.
        token: Option<String>,
    },
    /// Withdraw a question.
    Withdraw {
        /// The question.
        question: QuestionId,
    },
    /// Hand work to the apply thread; answered by [`Event::Applied`](super::Event::Applied).
    Apply {
        /// The stream.
        stream: usize,
        /// The work.
        work: Work,
    },
    /// From here on the seals of these keys count, and no others.
    Trust(Vec<SealKey>),
    /// Have the apply thread finish its current batch and end; answered by
    /// [`Event::ApplierEnded`](super::Event::ApplierEnded).
    StopApplier,
}

/// Work for the apply thread.
#[derive(Debug)]
pub enum Work {
    /// A batch.
    Batch(Batch),
    /// Start the stream over.
    StartOver(Box<Beginning>),
    /// Keep documents aside.
    Stage(Staging),
    /// Show the documents that were kept aside.
    Adopt(Adoption),
    /// Look for a document whose content is not here; answered by [`Applied::Pointer`](super::Applied::Pointer).
    NextPointer {
        /// Its key comes after this one.
        after: Option<String>,
    },
    /// Put a content in the place of a pointer; answered by [`Applied::Filled`](super::Applied::Filled).
    Fill {
        /// Which one.
        content: Content,
        /// Its bytes, not yet hashed.
        bytes: Bytes,
    },
}
