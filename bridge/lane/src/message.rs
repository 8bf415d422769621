//! The events that the lane takes, and the commands that it answers with.
//!
//! The runner carries out every command in order, and answers each question with the event that the command names. It
//! decides nothing: it reports each failure as it is, and the lane decides what to do about it.

use std::collections::BTreeMap;
use std::time::Duration;

use spacetime_sync_proto::epoch::AuthorityEpoch;
use spacetime_sync_proto::journal::{JournalEntry, JournalPage, JournalTurn};
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::retention::RetentionClass;
use spacetime_sync_proto::{ChainHash, Label, Position, Refusal, Seq, StreamId, StreamProgress};

use crate::notice::Notice;
use crate::streams::{HaltReason, ReadyFrame};
use crate::{CallId, LinkId, RequestId};

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Decides what to do about it.
    pub class: RefusalClass,
    /// The refusal, if the module refused.
    pub refusal: Option<Refusal>,
    /// The error with its sources, for people.
    pub text: String,
}

/// What the authority says about a stream and one seq in it, read in one statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// How far the stream has come; all zero if nothing was ever appended to it.
    pub progress: StreamProgress,
    /// The chain hash at the seq, if the authority holds it.
    pub chain: Option<ChainHash>,
}

/// A page of the authority's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Page {
    /// Frames in order. Empty at the end of the log.
    Frames(Vec<ReadyFrame>),
    /// The log is broken here.
    Broken(HaltReason),
    /// The events are purged. A comparison says where the stream continues.
    Purged,
}

/// Up to where a log is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The last event that is checked.
    pub seq: Seq,
    /// The chain hash there. `None` before the first frame: nothing says what it must continue.
    pub chain: Option<ChainHash>,
}

/// Whether the bridge sealed the next frames that SpacetimeDB holds, and nobody altered them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// It did.
    Sound {
        /// The last event of these frames.
        to: Position,
        /// Whether the log ends there.
        is_end: bool,
    },
    /// The window begins after this seq by now, and nothing was checked.
    Swept {
        /// The seq before the window.
        to: Seq,
    },
    /// Something else follows this seq.
    Unsound {
        /// The last event that is sound.
        after: Reached,
    },
}

/// Whether the bridge sealed the head of a log in SpacetimeDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadSeal {
    /// Its last frame carries the bridge's seal.
    Good,
    /// It carries none, or one that is not good.
    Missing,
    /// SpacetimeDB holds no frame, or one that was sealed by a key that this bridge does not have.
    Unknown,
    /// The log ends elsewhere by now.
    Moved,
}

/// A published seq to record in the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The stream.
    pub stream_id: StreamId,
    /// The seq up to which SpacetimeDB durably holds the stream.
    pub published: Seq,
}

/// The streams that a statement could not record. It recorded all others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// A writer holds the row: try again.
    pub locked: Vec<StreamId>,
    /// The authority's log ends before this seq: the authority has lost events that SpacetimeDB holds.
    pub above_head: Vec<StreamId>,
}

/// A client's report that SpacetimeDB contradicts the authority about a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The stream. The client may read it.
    pub stream_id: StreamId,
    /// The client's session.
    pub session_id: Label,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Somebody asks the process to stop.
    Stop,
    /// Answers [`Command::OpenAuthority`].
    Opened(RequestId, Result<(), Failure>),
    /// Answers [`Command::AskForLead`]: whether this bridge leads.
    Lead(RequestId, Result<bool, Failure>),
    /// The connection that held the lead is lost.
    LeadLost,
    /// Answers [`Command::Listen`]: `Ok` when wake-ups begin to arrive, `Err` when they no longer do.
    Listening(RequestId, Result<(), Failure>),
    /// A writer woke the bridge.
    Woken,
    /// Answers [`Command::SetSleeping`].
    SleepingSet(RequestId, Result<(), Failure>),
    /// Answers [`Command::Look`].
    Looked {
        /// The question.
        request: RequestId,
        /// What the authority has.
        found: Result<Looked, Failure>,
        /// How long the authority took to answer.
        took: Duration,
    },
    /// Answers [`Command::ListStreams`].
    Listed(RequestId, Result<Vec<StreamId>, Failure>),
    /// Answers [`Command::ReadStandings`] with one result for each stream, in the same order. A row that breaks the contract
    /// has an error in its place.
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
    /// Answers [`Command::ReadHeads`], in the same order.
    Heads(LinkId, RequestId, Result<Vec<Position>, Failure>),
    /// Answers [`Command::CheckSeal`].
    SealChecked(LinkId, RequestId, Result<HeadSeal, Failure>),
    /// Answers [`Command::CheckFrames`].
    FramesChecked(LinkId, RequestId, Result<Checked, Failure>),
    /// A client that may read the stream reports that SpacetimeDB contradicts the authority.
    Reported(Report),
    /// Answers [`Command::Rewind`] with the head that the step left.
    Rewound(LinkId, RequestId, Result<Position, Failure>),
    /// Answers [`Command::SetRetention`].
    RetentionSet(LinkId, RequestId, Result<(), Failure>),
    /// Answers [`Command::MarkEpoch`]. The refusal says that this is not the history that the bridge carried before.
    EpochMarked(LinkId, RequestId, Result<Result<(), Refusal>, Failure>),
    /// Answers [`Command::ReadJournal`].
    Journal(LinkId, RequestId, Result<JournalPage, Failure>),
    /// Answers [`Command::SettleJournal`], [`Command::CloseJournal`], [`Command::BringBack`] and [`Command::OpenJournal`].
    JournalTold(LinkId, RequestId, Result<(), Failure>),
    /// Answers [`Command::BeginJournal`].
    JournalBegun(RequestId, Result<JournalTurn, Failure>),
    /// Answers [`Command::FetchJournal`] with entries in the order of their marks. Empty at the end.
    JournalFetched(RequestId, Result<Vec<JournalEntry>, Failure>),
    /// Answers [`Command::KeepJournal`].
    JournalKept(RequestId, Result<(), Failure>),
    /// Answers [`Command::ForgetJournal`] with the number of entries that are gone. 0 at the end.
    JournalForgotten(RequestId, Result<u64, Failure>),
    /// The bridge has purged so many events from the authority's log.
    Purged(u64),
    /// The authority keeps about so many keys of purged events.
    KeptKeys(u64),
}

/// What a look finds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Looked {
    /// The dirty streams, in the order of their ids.
    pub progress: Vec<StreamProgress>,
    /// The next events of some of them, checked and cut into frames.
    pub frames: BTreeMap<StreamId, Vec<ReadyFrame>>,
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// SpacetimeDB has committed the call and made it durable.
    Acked,
    /// The module refused the call.
    Refused(Refusal),
    /// The call failed without a refusal. SpacetimeDB may or may not have done it.
    Lost(String),
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Connect to the authority and check its schema: [`Event::Opened`].
    OpenAuthority(RequestId),
    /// Take the lead if no other bridge has it: [`Event::Lead`]. All attempts use one connection while it lives.
    AskForLead(RequestId),
    /// This bridge leads: start the work that only a leader does.
    BeginLead,
    /// The lead is lost: end that work and everything under way, and give up every connection.
    EndLead,
    /// Listen for wake-ups: [`Event::Listening`], then [`Event::Woken`] for each wake-up.
    Listen(RequestId),
    /// Tell writers whether to wake the bridge: [`Event::SleepingSet`].
    SetSleeping(RequestId, bool),
    /// Read a page of dirty streams: [`Event::Looked`].
    Look {
        /// The question.
        request: RequestId,
        /// Only streams with a later id.
        after: Option<StreamId>,
        /// At most so many.
        limit: usize,
        /// Streams, each with the position up to which the bridge has read it. The answer brings the next few events of those
        /// that are dirty, and none of a stream whose next event is large.
        read: Vec<(StreamId, Position)>,
    },
    /// Read a page of the ids of all streams: [`Event::Listed`].
    ListStreams {
        /// The question.
        request: RequestId,
        /// Only streams with a later id.
        after: Option<StreamId>,
        /// At most so many.
        limit: usize,
    },
    /// Ask the authority about each stream and a seq in it: [`Event::Standings`].
    ReadStandings(RequestId, Vec<(StreamId, Seq)>),
    /// Read a page of the authority's log and check it: [`Event::Page`].
    ReadPage {
        /// The link that the page is for.
        link: LinkId,
        /// The stream.
        stream_id: StreamId,
        /// The page begins after this seq.
        after: Seq,
        /// The chain hash at `after`, if it is known.
        base_chain: Option<ChainHash>,
    },
    /// Move published seqs forwards, never backwards, without waiting for writers: [`Event::Recorded`].
    Record(RequestId, Vec<Record>),
    /// Set published seqs to these, forwards or backwards, without waiting for writers: [`Event::Recorded`].
    RecordExactly(RequestId, Vec<Record>),
    /// Read the retention policy: [`Event::Policy`].
    ReadPolicy(RequestId),
    /// Read which history the authority holds: [`Event::Epoch`].
    ReadEpoch(RequestId),
    /// Count the authority's beat up by one: [`Event::BeatAdvanced`].
    AdvanceBeat(RequestId),
    /// Connect to SpacetimeDB: [`Event::Dialed`], and [`Event::LinkClosed`] when that connection ends.
    Dial(LinkId),
    /// Give up a link, or the attempt to connect.
    HangUp(LinkId),
    /// A new link is up. SpacetimeDB may have lost what was not durable.
    Relinked,
    /// Tell whoever issues tokens whether SpacetimeDB leads to another database.
    Strayed(bool),
    /// Call `append_sync_events`: [`Event::Answered`].
    Append {
        /// The link.
        link: LinkId,
        /// The call.
        call: CallId,
        /// The stream.
        stream_id: StreamId,
        /// The frame.
        frame: ReadyFrame,
    },
    /// Read the heads of streams in SpacetimeDB, as far as they are durable: [`Event::Heads`].
    ReadHeads(LinkId, RequestId, Vec<StreamId>),
    /// Find out whether the last frame that SpacetimeDB holds carries the bridge's seal of this head:
    /// [`Event::SealChecked`].
    CheckSeal {
        /// The link.
        link: LinkId,
        /// The question.
        request: RequestId,
        /// The stream.
        stream_id: StreamId,
        /// SpacetimeDB's head.
        head: Position,
    },
    /// Check the next frames that SpacetimeDB holds of a stream: [`Event::FramesChecked`].
    CheckFrames {
        /// The link.
        link: LinkId,
        /// The question.
        request: RequestId,
        /// The stream.
        stream_id: StreamId,
        /// Up to where the log is checked.
        after: Reached,
    },
    /// Take one step of a rewind to `to`: [`Event::Rewound`].
    Rewind {
        /// The link.
        link: LinkId,
        /// The question.
        request: RequestId,
        /// The stream.
        stream_id: StreamId,
        /// The head at the last look, or after the last step. If the log ends with another event by now, the module
        /// refuses.
        seen: Position,
        /// Where the log is to end.
        to: Position,
    },
    /// Give the module the retention policy: [`Event::RetentionSet`].
    SetRetention(LinkId, RequestId, Vec<RetentionClass>),
    /// Tell the module which history the authority holds: [`Event::EpochMarked`].
    MarkEpoch(LinkId, RequestId, AuthorityEpoch),
    /// Read how it is with the journal in the module, and what the authority does not keep yet: [`Event::Journal`].
    ReadJournal(LinkId, RequestId),
    /// Tell the module that the authority keeps everything up to this mark: [`Event::JournalTold`].
    SettleJournal(LinkId, RequestId, u64),
    /// Have the module refuse changes, if the journal is settled up to this mark: [`Event::JournalTold`].
    CloseJournal(LinkId, RequestId, u64),
    /// Give the module what it has lost: [`Event::JournalTold`].
    BringBack(LinkId, RequestId, Vec<JournalEntry>),
    /// Have the module accept changes: [`Event::JournalTold`].
    OpenJournal {
        /// The link.
        link: LinkId,
        /// The question.
        request: RequestId,
        /// The authority's epoch.
        epoch: String,
        /// The newest mark that the authority was ever given.
        newest: u64,
    },
    /// Begin to keep the journal in the authority: [`Event::JournalBegun`].
    BeginJournal(RequestId),
    /// Read a page of what the authority keeps after this mark: [`Event::JournalFetched`].
    FetchJournal(RequestId, u64),
    /// Have the authority keep a page: [`Event::JournalKept`].
    KeepJournal {
        /// The question.
        request: RequestId,
        /// The turn that the authority has named.
        turn: u64,
        /// The entries, in the order of their marks.
        entries: Vec<JournalEntry>,
        /// They are all up to this mark.
        to: u64,
    },
    /// Have the authority forget a page of what it keeps of another history than the one in which this turn began:
    /// [`Event::JournalForgotten`].
    ForgetJournal(RequestId, u64),
    /// Write this to the log.
    Tell(Notice),
    /// Release the lead if this bridge has it, and end.
    End(Result<(), Failure>),
}
