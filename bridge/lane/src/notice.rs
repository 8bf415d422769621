//! What the lane has to say to a person. The runner writes it to the log.

use std::fmt;
use std::time::Duration;

use spacetime_sync_proto::{Refusal, Seq, StreamId};

use crate::streams::HaltReason;

/// How loud a notice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For whoever looks for a cause.
    Debug,
    /// What an operator may want to know.
    Info,
    /// What passes by itself.
    Warn,
    /// What a person must mend.
    Error,
}

/// Something that a person may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The authority does not answer. Told when it begins and whenever the reason changes.
    AuthorityAway {
        /// The reason.
        why: String,
    },
    /// The authority answers again.
    AuthorityBack,
    /// This bridge leads.
    Leading,
    /// Another bridge leads.
    StandingBy,
    /// The lead is gone.
    LeadLost,
    /// No wake-ups arrive: the bridge finds new events by looking, a little later.
    NotListening {
        /// The reason.
        why: String,
    },
    /// Wake-ups arrive again.
    Listening,
    /// The authority could not be told whether to wake the bridge.
    SleepingNotSet {
        /// The reason.
        why: String,
    },
    /// The link is up.
    LinkUp,
    /// The link is gone.
    LinkDown {
        /// The reason.
        why: String,
        /// Until the next attempt.
        wait: Duration,
    },
    /// No link could be made. What a person must mend is told as an error.
    NoLink {
        /// The reason.
        why: String,
        /// Until the next attempt.
        wait: Duration,
        /// Whether a person must mend it.
        for_a_person: bool,
    },
    /// A stream goes no further.
    Halted {
        /// The stream.
        stream_id: StreamId,
        /// The reason.
        reason: HaltReason,
    },
    /// SpacetimeDB holds less than was published: the bridge publishes the rest again.
    SetBack {
        /// The stream.
        stream_id: StreamId,
        /// Up to where SpacetimeDB holds it.
        to: Seq,
    },
    /// SpacetimeDB holds so much less that its window begins anew.
    WindowBegun {
        /// The stream.
        stream_id: StreamId,
        /// The window begins after this seq.
        after: Seq,
    },
    /// A stream could not be compared, and will be again.
    NotCompared {
        /// The stream.
        stream_id: StreamId,
        /// The reason.
        why: String,
    },
    /// A page of the log could not be read, and will be again.
    NotRead {
        /// The stream.
        stream_id: StreamId,
        /// The reason.
        why: String,
    },
    /// Streams could not be listed in order to compare them, and will be again.
    NotListed {
        /// The reason.
        why: String,
        /// Until the next attempt.
        wait: Duration,
    },
    /// Every stream was compared with SpacetimeDB.
    AllCompared {
        /// How many.
        streams: u64,
        /// How long that took.
        took: Duration,
    },
    /// How far streams are published could not be recorded, and will be again.
    NotRecorded {
        /// How many.
        streams: usize,
        /// The reason.
        why: String,
    },
    /// How far one stream is published cannot be recorded, for a reason that does not pass by itself.
    CannotRecord {
        /// The stream.
        stream_id: StreamId,
        /// The reason.
        why: String,
    },
    /// The bridge stops before all is recorded. The next start finds out by comparing.
    LeftUnrecorded {
        /// How many.
        streams: usize,
    },
    /// The module took a policy of retention that differs from the last one.
    PolicyTaken {
        /// How many classes it has.
        classes: usize,
    },
    /// The module does not take the policy of retention, and keeps the one it has.
    PolicyRefused {
        /// What the module says.
        refusal: Refusal,
    },
    /// The policy of retention could not be read or handed on, and will be again.
    PolicyNotHandedOn {
        /// The reason.
        why: String,
    },
    /// The authority's progress could not be written down, and will be again.
    NoBeat {
        /// The reason.
        why: String,
    },
    /// The authority is behind what was carried before.
    Restored {
        /// What the module says.
        refusal: Refusal,
    },
    /// An operator began a new history: every stream is compared again.
    EpochBegun,
    /// The bridge was asked to stop.
    Stopping,
}

impl Notice {
    /// How loud it is.
    pub fn level(&self) -> Level {
        match self {
            Self::SleepingNotSet { .. } | Self::AllCompared { .. } => Level::Debug,
            Self::AuthorityBack
            | Self::Leading
            | Self::StandingBy
            | Self::Listening
            | Self::LinkUp
            | Self::PolicyTaken { .. }
            | Self::EpochBegun
            | Self::Stopping => Level::Info,
            Self::NoLink { for_a_person: true, .. }
            | Self::Halted { .. }
            | Self::CannotRecord { .. }
            | Self::Restored { .. } => Level::Error,
            Self::AuthorityAway { .. }
            | Self::LeadLost
            | Self::NotListening { .. }
            | Self::LinkDown { .. }
            | Self::NoLink {
                for_a_person: false, ..
            }
            | Self::SetBack { .. }
            | Self::WindowBegun { .. }
            | Self::NotCompared { .. }
            | Self::NotRead { .. }
            | Self::NotListed { .. }
            | Self::NotRecorded { .. }
            | Self::LeftUnrecorded { .. }
            | Self::PolicyRefused { .. }
            | Self::PolicyNotHandedOn { .. }
            | Self::NoBeat { .. } => Level::Warn,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AuthorityAway { why } => write!(f, "the authority does not answer: {why}"),
            Self::AuthorityBack => f.write_str("the authority answers again"),
            Self::Leading => f.write_str("this bridge leads"),
            Self::StandingBy => f.write_str("another bridge leads; this one stands by"),
            Self::LeadLost => f.write_str("the lead is lost; this bridge stands by"),
            Self::NotListening { why } => write!(
                f,
                "no wake-ups arrive, so new events are found up to a moment later: {why}"
            ),
            Self::Listening => f.write_str("wake-ups arrive again"),
            Self::SleepingNotSet { why } => write!(f, "the wake-up flag could not be set: {why}"),
            Self::LinkUp => f.write_str("the link to SpacetimeDB is up"),
            Self::LinkDown { why, wait } => {
                write!(f, "the link to SpacetimeDB is down, next attempt in {wait:.0?}: {why}")
            }
            Self::NoLink {
                why,
                wait,
                for_a_person: false,
            } => write!(f, "no link to SpacetimeDB, next attempt in {wait:.0?}: {why}"),
            Self::NoLink {
                why,
                for_a_person: true,
                ..
            } => write!(f, "no link to SpacetimeDB until this is mended: {why}"),
            Self::Halted { stream_id, reason } => {
                write!(f, "stream {stream_id} is halted ({}): {reason}", reason.code())
            }
            Self::SetBack { stream_id, to } => write!(
                f,
                "SpacetimeDB holds stream {stream_id} up to seq {to} only, which is less than was published; the bridge \
                 publishes the rest again"
            ),
            Self::WindowBegun { stream_id, after } => write!(
                f,
                "SpacetimeDB holds less of stream {stream_id} than its window; the window begins anew after seq {after}"
            ),
            Self::NotCompared { stream_id, why } => {
                write!(f, "stream {stream_id} could not be compared with SpacetimeDB: {why}")
            }
            Self::NotRead { stream_id, why } => write!(f, "a page of stream {stream_id} could not be read: {why}"),
            Self::NotListed { why, wait } => {
                write!(f, "the streams could not be listed, next attempt in {wait:.0?}: {why}")
            }
            Self::AllCompared { streams, took } => {
                write!(f, "{streams} streams were compared with SpacetimeDB in {took:.0?}")
            }
            Self::NotRecorded { streams, why } => {
                write!(
                    f,
                    "how far {streams} streams are published could not be recorded: {why}"
                )
            }
            Self::CannotRecord { stream_id, why } => {
                write!(f, "how far stream {stream_id} is published cannot be recorded: {why}")
            }
            Self::LeftUnrecorded { streams } => write!(
                f,
                "how far {streams} streams are published is not recorded; the next start finds out by comparing"
            ),
            Self::PolicyTaken { classes } => {
                write!(f, "the module took a new policy of retention with {classes} classes")
            }
            Self::PolicyRefused { refusal } => {
                write!(
                    f,
                    "the module refuses the policy of retention and keeps the one it has: {refusal}"
                )
            }
            Self::PolicyNotHandedOn { why } => write!(f, "the policy of retention could not be handed on: {why}"),
            Self::NoBeat { why } => write!(f, "the authority's progress could not be written down: {why}"),
            Self::Restored { refusal } => write!(f, "the authority was restored: {refusal}"),
            Self::EpochBegun => {
                f.write_str("an operator began a new epoch of the authority; every stream is compared again")
            }
            Self::Stopping => f.write_str("stopping: the bridge finishes what is in flight"),
        }
    }
}
