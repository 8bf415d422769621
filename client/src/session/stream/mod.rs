//! The pure core: what becomes of one stream, step by step.
//!
//! [`Stream::step`] takes what happened and answers with what is to be done. It never does IO, never looks at a clock
//! and never waits, so that the simulation runs the very code that is shipped. What it guarantees, whatever the
//! inputs: the events it hands out are consecutive, each follows the chain, and the cursor only ever moves back to
//! what is saved, or to a new beginning that the store has saved.

mod core;
mod intake;

#[cfg(test)]
mod ladder;
#[cfg(test)]
mod property;
#[cfg(test)]
pub(crate) mod tests;

pub use core::{Mode, Rung, Stream};

use spacetime_sync_proto::page::Snapshot;
use spacetime_sync_proto::{
    ChainHash, Event, FrameError, FrameRow, PayloadHash, Position, Refusal, RefusalCode, Seq, StaleCursor,
};

/// A part of a stream's log, as the module answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The stream's head when the page was made.
    pub head: Position,
    /// Position of the first event the lane still holds.
    pub oldest_seq: Seq,
    /// Whether the stream's class lets it be delivered only over a connection that brings what is durable.
    pub durable_reads: bool,
    /// Consecutive frames; the first may begin before what was asked for.
    pub frames: Vec<FrameRow>,
}

/// Which subscription of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(pub u32);

/// What can happen to a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// There is a connection and its contract is ours.
    Connected,
    /// The connection is gone, and every read and subscription with it.
    Disconnected,
    /// The answer to [`Effect::Read`].
    Page(Page),
    /// The module said no to [`Effect::Read`].
    ReadRefused(Refusal),
    /// [`Effect::Read`] failed, and not because the module refused.
    ReadFailed,
    /// The pause after [`Effect::AskLater`] or [`Effect::RetryLater`] is over, or a grant came.
    AskAgain,
    /// A row of the subscription.
    Frame(FrameRow),
    /// The rows that the subscription began with have all been seen.
    Subscribed(SubscriptionId),
    /// The host ended a subscription, or never began it.
    SubscriptionFailed(SubscriptionId),
    /// The grant for this stream was taken away.
    GrantLost,
    /// The client as a whole holds too much that is not applied yet.
    Overrun,
    /// The subscription has brought so much that its cache is worth dropping.
    Renew,
    /// Nothing was heard for a while: ask where the head is.
    Verify,
    /// The host took a row of a subscription away.
    Gone {
        /// Position of its last event.
        last_seq: Seq,
    },
    /// The stream has been live for a while.
    Stable,
    /// The answer to [`Effect::ReadHistory`].
    HistoryPage(Page),
    /// The authority's side said no to [`Effect::ReadHistory`] or [`Effect::ReadDocument`].
    HistoryRefused(Refusal),
    /// One of these failed, and not because the bridge refused.
    HistoryFailed,
    /// The authority says that the position which [`Effect::ReadHistory`] named leads nowhere.
    Stale(Box<StaleCursor>),
    /// The answer to [`Effect::ReadDocument`]: the document, if the stream has one.
    Document(Option<Box<Snapshot>>),
    /// [`Effect::StartOver`] is saved. If it is not, that is an [`Input::ApplyFailed`].
    StartedOver(Position),
    /// A batch and its checkpoint are saved.
    Applied {
        /// The checkpoint.
        to: Position,
        /// How many bytes of frames are done with.
        released: usize,
    },
    /// Batches that followed a failed one were thrown away.
    Dropped {
        /// How many bytes of frames are done with.
        released: usize,
    },
    /// A batch was not applied; nothing of it is saved.
    ApplyFailed {
        /// Why.
        failure: ApplyFailure,
        /// How many bytes of frames are done with.
        released: usize,
    },
}

/// Why a batch was not applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApplyFailure {
    /// It may succeed later.
    Retry {
        /// What went wrong, for a person.
        message: String,
    },
    /// There is no room to save it. However long that lasts, the stream does not stop for it.
    Full {
        /// What went wrong, for a person.
        message: String,
    },
    /// The handler stops the stream.
    Stop {
        /// What went wrong, for a person.
        message: String,
    },
    /// A payload is not what its hash says.
    Payload {
        /// The event.
        seq: Seq,
        /// The hash in the log.
        expected: PayloadHash,
        /// The payload's own.
        found: PayloadHash,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask the module for the frames after a position.
    Read {
        /// The position.
        after: Seq,
    },
    /// Subscribe to the frames after a position.
    Subscribe {
        /// What the subscription is called.
        id: SubscriptionId,
        /// The position.
        after: Seq,
        /// The last position it brings: what bounds how far the host may run ahead.
        to: Seq,
    },
    /// Give up a subscription.
    Unsubscribe {
        /// What it is called.
        id: SubscriptionId,
    },
    /// Apply these events and save the checkpoint with them.
    Apply(Batch),
    /// Ask the authority for what follows a position, and whether it is one of its log.
    ReadHistory {
        /// The position, and the chain hash there.
        after: Position,
    },
    /// Ask the authority for the document that stands for the events that are gone.
    ReadDocument,
    /// Have store and handler start over.
    StartOver(Box<Beginning>),
    /// Send [`Input::AskAgain`] after a pause that grows with the attempt.
    RecoverLater {
        /// How many pauses there were in a row.
        attempt: u32,
    },
    /// Send [`Input::AskAgain`] in a while: a refusal may not last.
    AskLater,
    /// Send [`Input::AskAgain`] after a pause that grows with the attempt: applying failed.
    RetryLater {
        /// How many failures there were in a row.
        attempt: u32,
    },
}

/// Consecutive events that follow the chain. Their payloads are not yet hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Where the log stands before them.
    pub from: Position,
    /// Where it stands after them.
    pub to: Position,
    /// The events, at least one.
    pub events: Vec<Event>,
    /// What they cost in memory, about.
    pub bytes: usize,
}

/// Where a stream starts over, because what was applied cannot be continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// What is saved.
    pub from: Position,
    /// Where it goes on: what came before is in the document, or is gone.
    pub at: Position,
    /// What stands for the events up to there. Its hash is not yet compared.
    pub document: Option<Snapshot>,
    /// Why.
    pub stale: StaleCursor,
}

/// Why a stream goes no further until a person has looked at it. Other streams are not touched by it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamStop {
    /// The log does not continue what was applied.
    #[error(
        "the log that was applied up to seq {seq} ends with {expected}, the lane holds {found} there: one of them is \
         not this stream's log; compare both with the authority before this store is used again"
    )]
    ChainMismatch {
        /// Where they differ.
        seq: Seq,
        /// What was applied.
        expected: ChainHash,
        /// What the lane holds.
        found: ChainHash,
    },
    /// A payload is not the one that was hashed.
    #[error("the payload of event {seq} hashes to {found}, its log says {expected}: it was altered on its way")]
    PayloadMismatch {
        /// The event.
        seq: Seq,
        /// What the log says.
        expected: PayloadHash,
        /// What came.
        found: PayloadHash,
    },
    /// A row of the log cannot be read as a frame.
    #[error("the frame at seq {seq} cannot be read: {error}")]
    BadFrame {
        /// Where it begins.
        seq: Seq,
        /// What is wrong with it.
        error: FrameError,
    },
    /// A row of the log says another extent than its frame has.
    #[error("the frame at seq {seq} was said to end at {expected} and ends at {found}")]
    FrameExtent {
        /// Where it begins.
        seq: Seq,
        /// Where its row says that it ends.
        expected: Seq,
        /// Where it ends.
        found: Seq,
    },
    /// More was applied than the lane has.
    #[error(
        "seq {applied} was applied, the lane's head is {head}: the lane lost or never had the difference; configure \
         `history`, so that the authority can be asked, or let the bridge publish the stream anew"
    )]
    AheadOfLane {
        /// The client's position.
        applied: Seq,
        /// The lane's.
        head: Seq,
    },
    /// The lane no longer holds what comes next.
    #[error(
        "seq {applied} was applied, the lane holds events from {oldest} on: what lies between must come from the \
         authority; configure `history` with the address of the bridge"
    )]
    BelowWindow {
        /// The client's position.
        applied: Seq,
        /// The first event held.
        oldest: Seq,
    },
    /// What was applied cannot be continued, and the configured answer is to stop, or has not helped.
    #[error(transparent)]
    StaleCursor(Box<StaleCursor>),
    /// The stream is of a class that is delivered only when it is durable, and this client reads early. Nothing that came
    /// with this answer was applied.
    #[error(
        "the stream's class allows only reads of what is durable, and this client reads early: follow the stream with \
         `Reads::Confirmed`, in a client of its own if others are to stay early"
    )]
    DurableReads,
    /// The handler stopped the stream, or applying has failed too often in a row, in the handler or in the store.
    #[error("applying was given up after {attempts} attempts: {message}")]
    Handler {
        /// How often it was tried.
        attempts: u32,
        /// What went wrong last.
        message: String,
    },
    /// The module refused in a way that no retry changes.
    #[error("the module refuses to read the stream: {0}")]
    Refused(Refusal),
}

impl StreamStop {
    /// A word for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::ChainMismatch { .. } => "chain_mismatch",
            Self::PayloadMismatch { .. } => "payload_mismatch",
            Self::BadFrame { .. } => "bad_frame",
            Self::FrameExtent { .. } => "frame_extent",
            Self::AheadOfLane { .. } => "ahead_of_lane",
            Self::BelowWindow { .. } => "below_window",
            Self::StaleCursor(_) => "stale_cursor",
            Self::DurableReads => "durable_reads",
            Self::Handler { .. } => "handler",
            Self::Refused(_) => "refused",
        }
    }
}

/// What was seen so far that a person may want to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events applied and saved.
    pub events_applied: u64,
    /// Frames that came, by page or subscription.
    pub frames: u64,
    /// Events that came again and were dropped.
    pub duplicates_dropped: u64,
    /// Times that a live stream missed something and paged it.
    pub holes_paged: u64,
    /// Pages read.
    pub pages: u64,
    /// Pages read from the authority.
    pub history_pages: u64,
    /// Requests to the authority that were refused or came to nothing.
    pub history_failures: u64,
    /// Times that the authority said that what was applied cannot be continued.
    pub stale_cursors: u64,
    /// Times that a stream began anew from a document.
    pub rebootstraps: u64,
    /// Times that it began anew without one.
    pub restarts: u64,
    /// Times that a subscription was replaced by one from a later position.
    pub resubscriptions: u64,
    /// Times that a stream went back to paging because applying lagged.
    pub overruns: u64,
    /// Batches that failed to apply.
    pub apply_failures: u64,
    /// Reads that the module refused or that came to nothing.
    pub reads_refused: u64,
    /// Connections made after the first.
    pub reconnects: u64,
    /// Connections given up because the host was too far behind with sending.
    pub connections_overfull: u64,
    /// Connections that took over from one whose token was about to end.
    pub refreshes: u64,
    /// Times that no token could be had, or one was not accepted.
    pub token_failures: u64,
    /// Checkpoints that the module took down.
    pub acks: u64,
    /// Checkpoints that the module refused.
    pub acks_refused: u64,
    /// Times that the module took down that this session is there, or is not.
    pub heartbeats: u64,
    /// Times that it refused to.
    pub heartbeats_refused: u64,
}

/// How a read that was refused goes on.
fn may_be_granted_later(code: RefusalCode) -> bool {
    match code {
        RefusalCode::ForbiddenStream
        | RefusalCode::Unauthorized
        | RefusalCode::NotConfigured
        // The next token may be another one.
        | RefusalCode::MissingScope
        | RefusalCode::TokenExpired
        | RefusalCode::TokenNotYetValid
        | RefusalCode::TokenTooOld
        | RefusalCode::RateLimited
        | RefusalCode::SyncTokenUnavailable => true,
        RefusalCode::InvalidArgument
        | RefusalCode::InvalidFrame
        | RefusalCode::SeqGap
        | RefusalCode::ChainMismatch
        | RefusalCode::EventConflict
        | RefusalCode::BelowWindow
        | RefusalCode::CheckpointBehind
        | RefusalCode::CheckpointAhead
        | RefusalCode::KeySecretFixed
        | RefusalCode::EpochBehind
        | RefusalCode::MissingAuthorization
        | RefusalCode::InvalidAuthorizationScheme
        | RefusalCode::InvalidToken
        | RefusalCode::MissingJti
        | RefusalCode::MissingIat
        | RefusalCode::TokenRevoked
        | RefusalCode::SessionBound
        | RefusalCode::InvalidScope
        | RefusalCode::Forbidden
        | RefusalCode::SurfacePolicyDenied
        | RefusalCode::InvalidRequest
        | RefusalCode::TooManyGrants
        | RefusalCode::NotFound
        | RefusalCode::InvalidClientBuild
        | RefusalCode::UnsupportedProtocolVersion
        | RefusalCode::UnsupportedSchemaVersion
        | RefusalCode::UpgradeRequired
        | RefusalCode::UnsupportedClientBuild => false,
    }
}
