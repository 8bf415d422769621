//! What the lane is told, and what it has the runner do.
//!
//! The runner carries out every command, in order, and answers each question with the event that the command names. It
//! decides nothing: a failure is reported as what it is, and what to do about it is decided here.

use std::time::Duration;

use spacetime_sync_proto::epoch::AuthorityEpoch;
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::retention::RetentionClass;
use spacetime_sync_proto::{ChainHash, FrameRow, Position, Refusal, Seq, StreamId, StreamProgress};

use crate::notice::Notice;
use crate::streams::{HaltReason, ReadyFrame};
use crate::{CallId, LinkId, RequestId};

/// Why something that was asked for did not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What to do about it.
    pub class: RefusalClass,
    /// The refusal, if the module refused.
    pub refusal: Option<Refusal>,
    /// The error and its sources, for a person.
    pub text: String,
}

/// What the authority says of a stream at a position, both read at the same moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// How far the stream has come; nothing if it was never appended to.
    pub progress: StreamProgress,
    /// The chain hash at the position that was asked for, if the authority holds it.
    pub chain: Option<ChainHash>,
}

/// A page of the authority's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Page {
    /// Frames in order; none at the end of the log.
    Frames(Vec<ReadyFrame>),
    /// What was asked for is no part of a sound log.
    Broken(HaltReason),
    /// Another bridge published these events, and they were purged since: the next look says how far.
    Purged,
}

/// What is to be recorded about a stream in the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The stream.
    pub stream_id: StreamId,
    /// Up to where SpacetimeDB durably holds it.
    pub published: Seq,
}

/// What became of records. A stream in neither list is recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// A writer holds the row: to be tried again.
    pub locked: Vec<StreamId>,
    /// The authority's log ends before: the authority has lost events that SpacetimeDB holds.
    pub above_head: Vec<StreamId>,
}

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// The process is asked to stop.
    Stop,
    /// Answers [`Command::OpenAuthority`].
    Opened(RequestId, Result<(), Failure>),
    /// Answers [`Command::AskForLead`]: whether this bridge leads.
    Lead(RequestId, Result<bool, Failure>),
    /// The connection that held the lead is gone.
    LeadLost,
    /// Answers [`Command::Listen`]: wake-ups arrive from here on, or do not any more.
    Listening(RequestId, Result<(), Failure>),
    /// A writer woke the bridge.
    Woken,
    /// Answers [`Command::SetSleeping`].
    SleepingSet(RequestId, Result<(), Failure>),
    /// Answers [`Command::Look`].
    Looked {
        /// The question.
        request: RequestId,
        /// The dirty streams, in the order of their ids.
        found: Result<Vec<StreamProgress>, Failure>,
        /// How long the authority took.
        took: Duration,
    },
    /// Answers [`Command::ListStreams`].
    Listed(RequestId, Result<Vec<StreamId>, Failure>),
    /// Answers [`Command::ReadStandings`], one for each stream in the order asked for. A row that holds what the contract
    /// does not allow is told in its place.
    Standings(RequestId, Result<Vec<Result<Standing, String>>, Failure>),
    /// Answers [`Command::ReadPage`].
    Page {
        /// The link that the page is for.
        link: LinkId,
        /// The stream.
        stream_id: StreamId,
        /// The page.
        page: Result<Page, Failure>,
    },
    /// Answers [`Command::Record`] and [`Command::RecordExactly`].
    Recorded(RequestId, Result<Recorded, Failure>),
    /// Answers [`Command::ReadPolicy`].
    Policy(RequestId, Result<Vec<RetentionClass>, Failure>),
    /// Answers [`Command::ReadEpoch`].
    Epoch(RequestId, Result<AuthorityEpoch, Failure>),
    /// Answers [`Command::AdvanceBeat`].
    BeatAdvanced(RequestId, Result<(), Failure>),
    /// Answers [`Command::Dial`].
    Dialed(LinkId, Result<(), Failure>),
    /// A connection to SpacetimeDB has ended.
    LinkClosed(LinkId, String),
    /// Answers [`Command::Append`].
    Answered(LinkId, CallId, Answer),
    /// Answers [`Command::ReadHeads`], in the order asked for.
    Heads(LinkId, RequestId, Result<Vec<Position>, Failure>),
    /// Answers [`Command::Rewind`].
    Rewound(LinkId, RequestId, Result<(), Failure>),
    /// Answers [`Command::SetRetention`].
    RetentionSet(LinkId, RequestId, Result<(), Failure>),
    /// Answers [`Command::MarkEpoch`]. A refusal says why the authority cannot be the one that was carried before.
    EpochMarked(LinkId, RequestId, Result<Result<(), Refusal>, Failure>),
    /// Events were purged from the authority's log.
    Purged(u64),
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Committed, and durable.
    Acked,
    /// Refused by the module.
    Refused(Refusal),
    /// Failed without a refusal: whether it was done is unknown.
    Lost(String),
}

/// Something to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Connect to the authority and check its schema: [`Event::Opened`].
    OpenAuthority(RequestId),
    /// Take the lead if no other bridge has it: [`Event::Lead`]. All attempts use one connection, as long as it lives.
    AskForLead(RequestId),
    /// This bridge leads from here on: begin the work that only a leader does.
    BeginLead,
    /// The lead is gone: end that work and whatever is under way, and give up every connection.
    EndLead,
    /// Listen for wake-ups: [`Event::Listening`], then [`Event::Woken`] for each.
    Listen(RequestId),
    /// Say whether writers are to wake the bridge: [`Event::SleepingSet`].
    SetSleeping(RequestId, bool),
    /// Read a page of dirty streams: [`Event::Looked`].
    Look {
        /// The question.
        request: RequestId,
        /// Only streams with a later id.
        after: Option<StreamId>,
        /// At most so many.
        limit: usize,
    },
    /// Read a page of all streams' ids: [`Event::Listed`].
    ListStreams {
        /// The question.
        request: RequestId,
        /// Only streams with a later id.
        after: Option<StreamId>,
        /// At most so many.
        limit: usize,
    },
    /// Ask the authority about streams at positions: [`Event::Standings`].
    ReadStandings(RequestId, Vec<(StreamId, Seq)>),
    /// Read a page of the authority's log and check it: [`Event::Page`].
    ReadPage {
        /// The link that the page is for.
        link: LinkId,
        /// The stream.
        stream_id: StreamId,
        /// Events after this seq.
        after: Seq,
        /// The chain hash at `after`, where it is known.
        base_chain: Option<ChainHash>,
    },
    /// Record how far streams are published, never backwards, and without waiting for writers: [`Event::Recorded`].
    Record(RequestId, Vec<Record>),
    /// Record that streams are published just so far, be that less or more than the authority says, and without waiting
    /// for writers: [`Event::Recorded`].
    RecordExactly(RequestId, Vec<Record>),
    /// Read the policy of retention: [`Event::Policy`].
    ReadPolicy(RequestId),
    /// Read which history the authority holds: [`Event::Epoch`].
    ReadEpoch(RequestId),
    /// Let the authority's history go one beat further: [`Event::BeatAdvanced`].
    AdvanceBeat(RequestId),
    /// Connect to SpacetimeDB: [`Event::Dialed`], and [`Event::LinkClosed`] whenever that connection ends.
    Dial(LinkId),
    /// Give up a connection, or the attempt to make it.
    HangUp(LinkId),
    /// A link is up. What SpacetimeDB had not made durable may be gone.
    Relinked,
    /// Call `append_sync_events`: [`Event::Answered`].
    Append {
        /// The link.
        link: LinkId,
        /// The call.
        call: CallId,
        /// The stream.
        stream_id: StreamId,
        /// The frame.
        frame: FrameRow,
    },
    /// Read the heads of streams as SpacetimeDB durably holds them: [`Event::Heads`].
    ReadHeads(LinkId, RequestId, Vec<StreamId>),
    /// Take one step towards a log that ends at `to`: [`Event::Rewound`].
    Rewind {
        /// The link.
        link: LinkId,
        /// The question.
        request: RequestId,
        /// The stream.
        stream_id: StreamId,
        /// The head as it was seen; the module refuses if it is another one.
        seen: Seq,
        /// Where the log is to end.
        to: Position,
    },
    /// Hand the policy of retention to the module: [`Event::RetentionSet`].
    SetRetention(LinkId, RequestId, Vec<RetentionClass>),
    /// Tell the module which history the authority holds: [`Event::EpochMarked`].
    MarkEpoch(LinkId, RequestId, AuthorityEpoch),
    /// Tell a person.
    Tell(Notice),
    /// Everything is done: give the lead back if it is held, and end.
    End(Result<(), Failure>),
}
