//! The pure core of one stream: what happens to it, step by step.
//!
//! [`Stream::step`] takes an input and answers with effects. It does no IO, reads no clock and never waits, so the
//! simulation runs the code that we ship. Whatever the inputs, it guarantees: the events it hands out are consecutive,
//! each follows the chain, and the cursor only moves back to what is saved, or to a new beginning that the store has
//! saved.

mod core;
mod counters;
mod intake;

#[cfg(test)]
mod ladder;
#[cfg(test)]
mod property;
#[cfg(test)]
pub(crate) mod tests;

pub use core::{Mode, Rung, Stream};
pub use counters::Counters;

use spacetime_sync_proto::document::{Document, DocumentPage};
use spacetime_sync_proto::page::Snapshot;
use spacetime_sync_proto::{
    ChainHash, Event, FrameError, FrameRow, PayloadHash, Position, Refusal, RefusalCode, Seal, Seq, StaleCursor,
};

use crate::seal::Unproven;

/// A part of a stream's log, as the module or the authority answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The stream's head when the page was made.
    pub head: Position,
    /// The first event that the answering side still holds.
    pub oldest_seq: Seq,
    /// Whether the stream's class allows only confirmed reads.
    pub durable_reads: bool,
    /// Consecutive frames. The first may begin before the requested position.
    pub frames: Vec<FrameRow>,
}

/// Names a subscription of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(pub u32);

/// Something that happens to a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A connection exists, to a module that this release works with.
    Connected,
    /// The connection is gone, and with it every read and subscription.
    Disconnected,
    /// The answer to [`Effect::Read`].
    Page(Page),
    /// The module refused [`Effect::Read`].
    ReadRefused(Refusal),
    /// [`Effect::Read`] failed for another reason than a refusal.
    ReadFailed,
    /// The pause after [`Effect::AskLater`] or [`Effect::RetryLater`] is over, or a grant came.
    AskAgain,
    /// A row of the subscription.
    Frame(FrameRow),
    /// All rows that the subscription begins with have arrived.
    Subscribed(SubscriptionId),
    /// SpacetimeDB ended a subscription, or never began it.
    SubscriptionFailed(SubscriptionId),
    /// The session lost the grant for this stream.
    GrantLost,
    /// The client as a whole holds too much that is not applied yet.
    Overrun,
    /// The subscription has brought so much that its cache is worth dropping.
    Renew,
    /// Nothing was heard for a while: ask where the head is.
    Verify,
    /// A row of a subscription is gone.
    Gone {
        /// The seq of its last event.
        last_seq: Seq,
    },
    /// The stream has been live for a while.
    Stable,
    /// SpacetimeDB has not brought in time what the authority has.
    Overdue {
        /// Seq of the authority's last event.
        head: Seq,
    },
    /// The answer to [`Effect::ReadHistory`].
    HistoryPage(Page),
    /// The bridge refused [`Effect::ReadHistory`], [`Effect::ReadDocument`] or [`Effect::ReadDocuments`].
    HistoryRefused(Refusal),
    /// One of these failed for another reason than a refusal.
    HistoryFailed,
    /// The authority does not continue from the position that [`Effect::ReadHistory`] or [`Effect::ReadDocuments`] named.
    Stale(Box<StaleCursor>),
    /// The answer to [`Effect::ReadDocument`]: the document, if the stream has one.
    Document(Option<Box<Snapshot>>),
    /// The answer to [`Effect::ReadDocuments`].
    Documents(Box<DocumentPage>),
    /// [`Effect::Stage`] is saved. A failure to save it comes as [`Input::ApplyFailed`].
    Staged {
        /// The fetch that it belongs to.
        fetch: FetchId,
        /// How many bytes the applier no longer holds.
        released: usize,
    },
    /// [`Effect::StartOver`] or [`Effect::Adopt`] is saved. A failure to save it comes as [`Input::ApplyFailed`].
    StartedOver(Position),
    /// A batch and its checkpoint are saved.
    Applied {
        /// The checkpoint.
        to: Position,
        /// How many bytes of frames the applier no longer holds.
        released: usize,
    },
    /// The applier threw away batches that followed a failed one.
    Dropped {
        /// How many bytes of frames the applier no longer holds.
        released: usize,
    },
    /// Applying a batch failed; nothing of it is saved.
    ApplyFailed {
        /// Why.
        failure: ApplyFailure,
        /// How many bytes of frames the applier no longer holds.
        released: usize,
    },
}

/// Why applying a batch failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApplyFailure {
    /// It may succeed later.
    Retry {
        /// What went wrong, in words for a person.
        message: String,
    },
    /// There is no room to save it. However long that lasts, it does not stop the stream.
    Full {
        /// What went wrong, in words for a person.
        message: String,
    },
    /// The handler stops the stream.
    Stop {
        /// What went wrong, in words for a person.
        message: String,
    },
    /// A payload does not have the hash that the log says.
    Payload {
        /// The event.
        seq: Seq,
        /// The hash in the log.
        expected: PayloadHash,
        /// The hash of the payload.
        found: PayloadHash,
        /// Whether the authority itself sent it.
        from_authority: bool,
    },
    /// The bridge has not sealed these events.
    Unproven {
        /// The last of them.
        to: Seq,
        /// What is wrong with their seal.
        why: Unproven,
    },
}

/// Something that the caller is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask the module for the frames after a position.
    Read {
        /// The position.
        after: Seq,
    },
    /// Subscribe to the frames after a position.
    Subscribe {
        /// The id of the subscription.
        id: SubscriptionId,
        /// The position.
        after: Seq,
        /// The last position it brings. This bounds how far SpacetimeDB may run ahead.
        to: Seq,
    },
    /// Give up a subscription.
    Unsubscribe {
        /// The id of the subscription.
        id: SubscriptionId,
    },
    /// Apply these events and save the checkpoint with them.
    Apply(Batch),
    /// Ask the authority for the events after a position, and whether its log contains that position.
    ReadHistory {
        /// The position, and the chain hash there.
        after: Position,
    },
    /// Ask the authority for the document that stands for the purged events.
    ReadDocument,
    /// Ask the authority for a part of the stream's documents.
    ReadDocuments {
        /// The position as of which to read. `None` at the first part, which says it.
        at: Option<Position>,
        /// The key after which the part begins.
        after: Option<String>,
    },
    /// Have the store keep these documents aside, until all of them are there.
    Stage(Staging),
    /// Have the store go on from the documents that it has kept aside, and show them in the place of those that it shows.
    Adopt(Adoption),
    /// Tell the bridge that SpacetimeDB contradicts the authority, so that it looks at what SpacetimeDB holds.
    Report,
    /// Have store and handler start over.
    StartOver(Box<Beginning>),
    /// Send [`Input::AskAgain`] after a pause that grows with the attempt.
    RecoverLater {
        /// How many pauses in a row this is.
        attempt: u32,
    },
    /// Send [`Input::AskAgain`] in a while: the refusal may pass.
    AskLater,
    /// Send [`Input::AskAgain`] after a pause that grows with the attempt: applying failed.
    RetryLater {
        /// How many failures in a row this is.
        attempt: u32,
    },
}

/// What proves that events are the authority's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The bridge's seal of the last one, if there is one. Nobody has verified it.
    Seal(Option<Seal>),
    /// The authority itself answered.
    Authority,
}

impl Proof {
    /// Whether the authority itself answered.
    pub(crate) fn is_authority(&self) -> bool {
        matches!(self, Self::Authority)
    }
}

/// Consecutive events that follow the chain. Their payloads are not yet hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The position before them.
    pub from: Position,
    /// The position after them.
    pub to: Position,
    /// The events, at least one.
    pub events: Vec<Event>,
    /// Roughly how much memory they take.
    pub bytes: usize,
    /// What proves them.
    pub proof: Proof,
}

/// Names an attempt of a stream to fetch its documents. A stream never reuses an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchId(pub u32);

/// A part of the documents with which a stream begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staging {
    /// The fetch that it belongs to.
    pub fetch: FetchId,
    /// Whether it is the first part: whatever an earlier fetch has left is cleared away.
    pub is_first: bool,
    /// The documents. Their contents are not yet hashed.
    pub documents: Vec<Document>,
    /// Roughly how much memory they take.
    pub bytes: usize,
}

/// Where a stream of documents begins, or begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adoption {
    /// The fetch whose documents are all there.
    pub fetch: FetchId,
    /// The saved position.
    pub from: Position,
    /// The position as of which the documents are.
    pub at: Position,
    /// Once the events up to here are applied, none of them is missing: until then the store shows what it showed before.
    pub whole_at: Seq,
}

/// Where a stream starts over, because what was applied cannot be continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// The saved position.
    pub from: Position,
    /// Where the stream goes on. What came before is in the document, or is gone.
    pub at: Position,
    /// The document that stands for the events up to there. Its hash is not yet checked.
    pub document: Option<Snapshot>,
    /// Why.
    pub stale: StaleCursor,
}

/// Why a stream goes no further until a person has looked at it. Other streams are not affected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamStop {
    /// The log does not continue what was applied.
    #[error(
        "the chain hash at seq {seq} is {expected} in the log that was applied and {found} in the log that arrived: \
         one of them is not this stream's log; compare both with the authority before using this store again"
    )]
    ChainMismatch {
        /// Where they differ.
        seq: Seq,
        /// What was applied.
        expected: ChainHash,
        /// What arrived.
        found: ChainHash,
    },
    /// A payload does not have the hash that the log says.
    #[error("the payload of event {seq} has hash {found}, its log says {expected}: it was altered on its way")]
    PayloadMismatch {
        /// The event.
        seq: Seq,
        /// What the log says.
        expected: PayloadHash,
        /// What arrived.
        found: PayloadHash,
    },
    /// SpacetimeDB delivered events that the bridge has not sealed, so none of them was applied. The stream never stops
    /// because of it: it reads from the authority if it may, and asks SpacetimeDB again.
    #[error("SpacetimeDB delivered events up to seq {to} that are not proven to be the authority's: {why}")]
    Unproven {
        /// The last of them.
        to: Seq,
        /// What is wrong with their seal.
        why: Unproven,
    },
    /// The authority has events that SpacetimeDB has not brought in time. The stream never stops because of it: it reads
    /// them from the authority.
    #[error(
        "SpacetimeDB has brought the events up to seq {cursor}, and the authority has had events up to seq {head} for a while"
    )]
    Withheld {
        /// Up to where SpacetimeDB has brought the stream.
        cursor: Seq,
        /// Seq of the authority's last event.
        head: Seq,
    },
    /// A row of the log does not hold a valid frame.
    #[error("the frame at seq {seq} is invalid: {error}")]
    BadFrame {
        /// Where it begins.
        seq: Seq,
        /// What is wrong with it.
        error: FrameError,
    },
    /// A row of the log states another last seq than its frame has.
    #[error("the row at seq {seq} says that its frame ends at {expected}, but the frame ends at {found}")]
    FrameExtent {
        /// Where it begins.
        seq: Seq,
        /// Where the row says that it ends.
        expected: Seq,
        /// Where it ends.
        found: Seq,
    },
    /// More is applied than SpacetimeDB has.
    #[error(
        "seq {applied} is applied, but SpacetimeDB's head is {head}: it lost the difference or never had it; set \
         `history` so that the client can ask the authority, or have the bridge publish the stream again"
    )]
    AheadOfLane {
        /// The client's checkpoint.
        applied: Seq,
        /// SpacetimeDB's head.
        head: Seq,
    },
    /// SpacetimeDB no longer holds the next event.
    #[error(
        "seq {applied} is applied, but SpacetimeDB holds events only from {oldest} on: the events between must come \
         from the authority; set `history` to the address of the bridge"
    )]
    BelowWindow {
        /// The client's checkpoint.
        applied: Seq,
        /// The first event that SpacetimeDB holds.
        oldest: Seq,
    },
    /// The authority calls the cursor stale, and the configured answer is to stop, or has not helped.
    #[error(transparent)]
    StaleCursor(Box<StaleCursor>),
    /// The stream's class allows only confirmed reads, and this client reads early. Nothing that came with this answer
    /// was applied.
    #[error(
        "the stream's class allows only confirmed reads, but this client reads early: follow the stream with \
         `Reads::Confirmed`, in a client of its own if other streams should stay early"
    )]
    DurableReads,
    /// The handler stopped the stream, or applying failed too often in a row, in the handler or in the store.
    #[error("applying failed after {attempts} attempts: {message}")]
    Handler {
        /// How often it was tried.
        attempts: u32,
        /// What went wrong last.
        message: String,
    },
    /// The module or the bridge refused in a way that no retry changes.
    #[error("reading the stream was refused: {0}")]
    Refused(Refusal),
}

impl StreamStop {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::ChainMismatch { .. } => "chain_mismatch",
            Self::PayloadMismatch { .. } => "payload_mismatch",
            Self::Unproven { .. } => "unproven",
            Self::Withheld { .. } => "withheld",
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

/// Whether a refused read may succeed later.
fn may_be_granted_later(code: RefusalCode) -> bool {
    match code {
        RefusalCode::ForbiddenStream
        | RefusalCode::Unauthorized
        | RefusalCode::NotConfigured
        // The next token may allow it.
        | RefusalCode::MissingScope
        | RefusalCode::TokenExpired
        | RefusalCode::TokenNotYetValid
        | RefusalCode::TokenTooOld
        | RefusalCode::RateLimited
        | RefusalCode::SyncTokenUnavailable => true,
        RefusalCode::InvalidArgument
        | RefusalCode::WrongDatabase
        | RefusalCode::InvalidFrame
        | RefusalCode::SeqGap
        | RefusalCode::ChainMismatch
        | RefusalCode::EventConflict
        | RefusalCode::BelowWindow
        | RefusalCode::CheckpointBehind
        | RefusalCode::CheckpointAhead
        | RefusalCode::CapabilityConflict
        | RefusalCode::AssignmentConflict
        | RefusalCode::ForbiddenAssignment
        | RefusalCode::OutboxConflict
        | RefusalCode::OutboxFull
        | RefusalCode::BeingBroughtBack
        | RefusalCode::Lacking
        | RefusalCode::ChallengeRefused
        | RefusalCode::SignatureRefused
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
