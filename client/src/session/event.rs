//! What a session is told about its connections, the authority, the apply thread and the application.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use spacetime_sync_proto::contract::Contract;
use spacetime_sync_proto::document::{DocumentPage, Pointer};
use spacetime_sync_proto::page::Snapshot;
use spacetime_sync_proto::{FrameRow, PayloadHash, Position, Refusal, Seq, StaleCursor, StreamId};

use super::calls::{Call, CallId, Called};
use super::status::{Disconnect, StopReason};
use super::stream::{ApplyFailure, FetchId, Page, SubscriptionId};
use super::token::Issued;
use crate::config::{Carries, StreamBounds};
use crate::credential::TokenError;
use crate::error::StoreError;
use crate::presence::Presence;
use crate::signal::{Audiences, Heard};
use crate::watched::Watchable;

/// Names a connection, from the attempt to make it on. A session never reuses an id, and ignores events of a connection
/// that it has given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Names a read. A session never reuses an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadId(pub u64);

/// Names a question to the authority, or one to the module about what the session may read. A session never reuses an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuestionId(pub u64);

/// Something that the session reacts to.
#[derive(Debug)]
pub enum Event {
    /// Time has passed. This event must come at [`Session::due`](super::Session::due) and may come at any other time.
    Woken,
    /// An attempt to connect has ended.
    Dialed {
        /// The connection that was attempted.
        connection: ConnectionId,
        /// The token it used, if a provider issued it: the next attempt may use it again.
        token: Option<Issued>,
        /// What the first messages brought: the contract, which this release works with, and the rest.
        result: Result<Vec<Inbound>, DialFailure>,
    },
    /// A message has arrived.
    Message {
        /// The connection it arrived on.
        connection: ConnectionId,
        /// What it brought, frames first and in order. Empty if the SDK woke only to send.
        inbound: Vec<Inbound>,
    },
    /// A connection has ended.
    Closed {
        /// The connection.
        connection: ConnectionId,
        /// Why.
        reason: Disconnect,
    },
    /// A question to the authority has an answer, or has failed.
    Answered {
        /// The question.
        question: QuestionId,
        /// The stream that it was about.
        stream: usize,
        /// The answer.
        answer: Answer,
    },
    /// The authority has said where streams end, or the question has failed.
    Heads {
        /// The question.
        question: QuestionId,
        /// Streams that the token covers and that have events, and up to where SpacetimeDB has acknowledged them to the
        /// bridge; or what went wrong.
        answer: Result<Vec<(usize, Seq)>, String>,
    },
    /// The apply thread has finished a piece of work.
    Applied(Outcome),
    /// The apply thread has ended.
    ApplierEnded,
    /// The presence that the application gave this session, and what it watches.
    Wishes {
        /// This session's presence, or `None` to say nothing.
        said: Option<Presence>,
        /// All that it ever wanted to watch.
        watches: BTreeSet<Watchable>,
        /// Whether it ever wanted to know which streams the session may read.
        readable: bool,
    },
    /// The application makes a call; answered by [`Command::Reply`](super::Command::Reply).
    Call {
        /// The id of the call.
        id: CallId,
        /// The call.
        call: Call,
        /// How long to repeat it until it has an answer. `None` to send it at once or not at all.
        within: Option<Duration>,
    },
    /// The application wants to follow one more stream; answered by [`Command::Followed`](super::Command::Followed).
    Follow {
        /// The id of the call.
        call: CallId,
        /// The stream.
        stream_id: StreamId,
        /// Its bounds.
        bounds: StreamBounds,
    },
    /// The application no longer wants to follow a stream; answered in the same way.
    Unfollow {
        /// The id of the call.
        call: CallId,
        /// The stream.
        stream_id: StreamId,
    },
    /// The audiences of which the application wants something.
    Hear(Audiences),
    /// The application wants the client to stop, or has dropped it.
    Stop,
}

/// One part of what a message brought.
#[derive(Debug)]
pub enum Inbound {
    /// What the module speaks.
    Contract(Contract),
    /// The database has no `sync_contract` or no `stream_grant` table.
    NoModule {
        /// What SpacetimeDB said.
        detail: String,
    },
    /// The session may read one more stream. Only the module knows which.
    GrantCame,
    /// The session may no longer read the stream with this key.
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
    /// A row of a subscription is gone: the module deleted it, or the subscription has ended.
    Gone {
        /// The key of its stream.
        stream_key: u64,
        /// The seq of its last event.
        last_seq: Seq,
    },
    /// All rows that a subscription begins with have arrived.
    Subscribed {
        /// The stream.
        stream: usize,
        /// The subscription.
        id: SubscriptionId,
    },
    /// A subscription that was given up has ended, and the SDK has dropped its rows.
    Unsubscribed {
        /// The stream.
        stream: usize,
        /// The subscription.
        id: SubscriptionId,
    },
    /// SpacetimeDB ended a subscription, or never began it.
    SubscriptionFailed {
        /// The stream.
        stream: usize,
        /// The subscription.
        id: SubscriptionId,
        /// What SpacetimeDB said.
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
        /// The seq that was acknowledged.
        seq: Seq,
        /// Whether the module took it.
        answer: Result<(), CallFailure>,
    },
    /// The answer to a presence call.
    PresenceSaid {
        /// Whether the module took it.
        answer: Result<(), CallFailure>,
    },
    /// A row of this has changed.
    Changed(Watchable),
    /// All rows of this have arrived.
    ViewBegan(Watchable),
    /// SpacetimeDB ended a subscription to this, or never began it.
    ViewFailed {
        /// What was watched.
        watchable: Watchable,
        /// What SpacetimeDB said.
        detail: String,
    },
    /// The answer to a call of the application.
    Called {
        /// The call.
        id: CallId,
        /// The answer.
        answer: Called<CallFailure>,
    },
    /// The key of an audience.
    AudienceTold {
        /// The session's number for the audience.
        ear: usize,
        /// The key, or why the session gets none.
        answer: Result<u64, CallFailure>,
    },
    /// A subscription to an audience has begun.
    HearingBegan {
        /// The session's number for the audience.
        ear: usize,
    },
    /// SpacetimeDB ended a subscription to an audience, or never began it.
    HearingFailed {
        /// The session's number for the audience.
        ear: usize,
        /// What SpacetimeDB said.
        detail: String,
    },
    /// Something was told to an audience.
    Told(Heard),
    /// A page of the names of the streams that the session may read.
    Readable {
        /// The question.
        question: QuestionId,
        /// The names, in order, or why there are none.
        answer: Result<Vec<String>, CallFailure>,
    },
}

/// Why an attempt to connect failed.
#[derive(Debug, PartialEq)]
pub enum DialFailure {
    /// Only a person can mend the cause.
    Stop(StopReason),
    /// The provider gave no token.
    NoToken(TokenError),
    /// SpacetimeDB does not accept the token.
    Unauthorized,
    /// The module refuses the client.
    Refused(Refusal),
    /// A later attempt may succeed.
    Later(Disconnect),
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallFailure {
    /// The module refused it.
    Refused(Refusal),
    /// What the module or SpacetimeDB said in place of an answer.
    Failed(String),
}

/// A question to the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// The events after a position.
    Events(Position),
    /// The document that stands for the purged events.
    Document,
    /// A part of a stream's documents.
    Documents {
        /// The position as of which to read. `None` at the first part.
        at: Option<Position>,
        /// The key after which the part begins.
        after: Option<String>,
    },
    /// The content of a document.
    Content(Content),
}

/// The content of a document, as a pointer names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The document's key.
    pub key: String,
    /// The hash of the content.
    pub hash: PayloadHash,
}

/// An answer of the authority.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// The events after the position.
    Page(Page),
    /// The authority does not continue from this position.
    Stale(Box<StaleCursor>),
    /// The document, if there is one.
    Document(Option<Box<Snapshot>>),
    /// The part of the documents.
    Documents(Box<DocumentPage>),
    /// The content, if the document still has it.
    Content(Option<Bytes>),
    /// The bridge does not accept the token.
    Unauthorized(Refusal),
    /// The bridge refuses to answer.
    Refused(Refusal),
    /// No answer came.
    Failed {
        /// What went wrong, in words for a person.
        message: String,
        /// The shortest wait before the next attempt.
        retry_after: Option<Duration>,
    },
}

/// The result of work for one stream.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    /// The stream.
    pub stream: usize,
    /// How many bytes of frames it no longer holds.
    pub released: usize,
    /// The result.
    pub result: Applied,
}

/// The result of applying a batch, or of starting over.
#[derive(Debug, PartialEq)]
pub enum Applied {
    /// Saved, up to this position.
    To(Position),
    /// Saved, up to this position. The events told of documents.
    DocumentsTo {
        /// The position.
        to: Position,
        /// Whether any of them is a pointer.
        have_pointers: bool,
        /// How many events told of none.
        refused: u64,
    },
    /// A part of this fetch's documents is kept aside.
    Staged(FetchId),
    /// The next document whose content is not here, if there is one; or the store cannot say now.
    Pointer(Result<Option<(String, Pointer)>, ApplyFailure>),
    /// What became of a content.
    Filled(Filled),
    /// Store and handler have started over from this position.
    StartedOver(Position),
    /// Thrown away, because earlier work failed.
    Dropped,
    /// Failed; nothing of it is saved.
    Failed(ApplyFailure),
    /// Failed; nothing of it is saved, and the store is no longer usable.
    StoreFailed(StoreError),
    /// A place is given to another stream, and this is where it is; or the store cannot say.
    Opened(Result<Opened, StoreError>),
}

/// Where a stream is, as the store says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// What is applied.
    pub at: Position,
    /// What it carries, and whether the store holds it.
    pub carries: Carries,
}

/// What became of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// It is saved, or no longer wanted.
    Saved,
    /// It does not have its hash.
    Altered,
    /// It cannot be saved now.
    NotSaved,
}
