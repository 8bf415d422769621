//! What the lane tells people. The runner writes it to the log.

use std::fmt;
use std::time::Duration;

use spacetime_sync_proto::{Refusal, Seq, StreamId};

use crate::streams::HaltReason;

/// The level at which a notice is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Helps to find a cause.
    Debug,
    /// An operator may want to know.
    Info,
    /// A problem that passes by itself.
    Warn,
    /// A problem that a person must repair.
    Error,
}

/// Something to write to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The authority does not answer. Logged when that begins, and when the reason changes.
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
    /// This bridge has lost the lead.
    LeadLost,
    /// Wake-ups do not arrive, so the bridge finds new events a little later, by its looks.
    NotListening {
        /// The reason.
        why: String,
    },
    /// Wake-ups arrive again.
    Listening,
    /// The bridge could not tell writers whether to wake it.
    SleepingNotSet {
        /// The reason.
        why: String,
    },
    /// The link is up.
    LinkUp,
    /// The link is down.
    LinkDown {
        /// The reason.
        why: String,
        /// Until the next attempt.
        wait: Duration,
    },
    /// An attempt to connect to SpacetimeDB has failed.
    NoLink {
        /// The reason.
        why: String,
        /// Until the next attempt.
        wait: Duration,
        /// Whether a person must repair something.
        for_a_person: bool,
    },
    /// A stream is halted.
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
        /// SpacetimeDB's head.
        to: Seq,
    },
    /// The refill of a stream's window begins.
    WindowBegun {
        /// The stream.
        stream_id: StreamId,
        /// The window begins after this seq.
        after: Seq,
    },
    /// SpacetimeDB holds events that no bridge has sealed.
    Forged {
        /// The stream.
        stream_id: StreamId,
        /// Seq of the last of them.
        to: Seq,
        /// The bridge publishes again after this seq.
        after: Seq,
    },
    /// A stream could not be compared or refilled. The bridge tries again.
    NotCompared {
        /// The stream.
        stream_id: StreamId,
        /// The reason.
        why: String,
    },
    /// A page of the log could not be read. The bridge tries again.
    NotRead {
        /// The stream.
        stream_id: StreamId,
        /// The reason.
        why: String,
    },
    /// The sweep could not list streams. It tries again.
    NotListed {
        /// The reason.
        why: String,
        /// Until the next attempt.
        wait: Duration,
    },
    /// The bridge has compared every stream with SpacetimeDB.
    AllCompared {
        /// How many streams.
        streams: u64,
        /// How long that took.
        took: Duration,
    },
    /// Published seqs could not be recorded. The bridge tries again.
    NotRecorded {
        /// Of how many streams.
        streams: usize,
        /// The reason.
        why: String,
    },
    /// The authority refuses to record the published seq of a stream.
    CannotRecord {
        /// The stream.
        stream_id: StreamId,
        /// The reason.
        why: String,
    },
    /// The bridge stops before everything is recorded. The next start finds it out by comparing.
    LeftUnrecorded {
        /// How many streams are not recorded.
        streams: usize,
    },
    /// The module took a retention policy that differs from the last one.
    PolicyTaken {
        /// How many classes it has.
        classes: usize,
    },
    /// The module refuses the retention policy, and keeps the one that it has.
    PolicyRefused {
        /// What the module says.
        refusal: Refusal,
    },
    /// The retention policy could not be read or given to the module. The bridge tries again.
    PolicyNotHandedOn {
        /// The reason.
        why: String,
    },
    /// A beat failed. The bridge tries again.
    NoBeat {
        /// The reason.
        why: String,
    },
    /// The authority was restored to an earlier time.
    Restored {
        /// What the module says.
        refusal: Refusal,
    },
    /// The module has lost what the authority keeps, and refuses changes until that is brought back.
    JournalClosed,
    /// The module accepts changes of what the journal covers.
    JournalOpened {
        /// How many entries the bridge gave it before.
        brought_back: u64,
    },
    /// The journal could not be kept or brought back. The bridge tries again.
    JournalFails {
        /// The reason.
        why: String,
        /// Whether a person must repair something.
        for_a_person: bool,
    },
    /// An operator began a new epoch, so the bridge compares every stream again.
    EpochBegun,
    /// The bridge stops.
    Stopping,
}

impl Notice {
    /// The level at which to log this.
    pub fn level(&self) -> Level {
        match self {
            Self::SleepingNotSet { .. } | Self::AllCompared { .. } => Level::Debug,
            Self::AuthorityBack
            | Self::Leading
            | Self::StandingBy
            | Self::Listening
            | Self::LinkUp
            | Self::PolicyTaken { .. }
            | Self::JournalOpened { .. }
            | Self::EpochBegun
            | Self::Stopping => Level::Info,
            Self::NoLink { for_a_person: true, .. }
            | Self::Halted { .. }
            | Self::Forged { .. }
            | Self::CannotRecord { .. }
            | Self::JournalFails { for_a_person: true, .. }
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
            | Self::JournalClosed
            | Self::JournalFails {
                for_a_person: false, ..
            }
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
                "wake-ups do not arrive, so the bridge finds new events a little later: {why}"
            ),
            Self::Listening => f.write_str("wake-ups arrive again"),
            Self::SleepingNotSet { why } => write!(f, "cannot tell writers whether to wake the bridge: {why}"),
            Self::LinkUp => f.write_str("the link to SpacetimeDB is up"),
            Self::LinkDown { why, wait } => {
                write!(
                    f,
                    "the link to SpacetimeDB is down; the bridge connects again in {wait:.0?}: {why}"
                )
            }
            Self::NoLink {
                why,
                wait,
                for_a_person: false,
            } => write!(
                f,
                "cannot connect to SpacetimeDB; the bridge tries again in {wait:.0?}: {why}"
            ),
            Self::NoLink {
                why,
                for_a_person: true,
                ..
            } => write!(f, "cannot connect to SpacetimeDB until somebody repairs this: {why}"),
            Self::Halted { stream_id, reason } => {
                write!(f, "stream {stream_id} is halted ({}): {reason}", reason.code())
            }
            Self::SetBack { stream_id, to } => write!(
                f,
                "SpacetimeDB holds stream {stream_id} only up to seq {to}, which is less than was published; the bridge \
                 publishes the rest again"
            ),
            Self::WindowBegun { stream_id, after } => write!(
                f,
                "SpacetimeDB holds too little of stream {stream_id}; the bridge refills its window after seq {after}"
            ),
            Self::Forged { stream_id, to, after } => write!(
                f,
                "somebody else than the bridge wrote events of stream {stream_id} into SpacetimeDB, up to seq {to}: they are not \
                 sealed; no client applies them, and the bridge removes them and publishes the authority's events after \
                 seq {after} again; find out who holds the bridge's token or the database"
            ),
            Self::NotCompared { stream_id, why } => {
                write!(
                    f,
                    "cannot compare stream {stream_id} with SpacetimeDB; the bridge tries again: {why}"
                )
            }
            Self::NotRead { stream_id, why } => write!(
                f,
                "cannot read a page of stream {stream_id}; the bridge tries again: {why}"
            ),
            Self::NotListed { why, wait } => {
                write!(
                    f,
                    "cannot list the streams; the bridge tries again in {wait:.0?}: {why}"
                )
            }
            Self::AllCompared { streams, took } => {
                write!(f, "compared {streams} streams with SpacetimeDB in {took:.0?}")
            }
            Self::NotRecorded { streams, why } => {
                write!(
                    f,
                    "cannot record how far {streams} streams are published; the bridge tries again: {why}"
                )
            }
            Self::CannotRecord { stream_id, why } => {
                write!(f, "cannot record how far stream {stream_id} is published: {why}")
            }
            Self::LeftUnrecorded { streams } => write!(
                f,
                "stopped before recording how far {streams} streams are published; the next start finds out"
            ),
            Self::PolicyTaken { classes } => {
                write!(f, "the module took a new retention policy with {classes} classes")
            }
            Self::PolicyRefused { refusal } => {
                write!(
                    f,
                    "the module refuses the retention policy and keeps the one it has: {refusal}"
                )
            }
            Self::PolicyNotHandedOn { why } => write!(
                f,
                "cannot give the module the retention policy; the bridge tries again: {why}"
            ),
            Self::NoBeat { why } => write!(
                f,
                "a beat failed, so a restore may be noticed later; the bridge tries again: {why}"
            ),
            Self::Restored { refusal } => write!(f, "the authority was restored: {refusal}"),
            Self::JournalClosed => f.write_str(
                "SpacetimeDB has lost assignments or the names of providers; the module refuses to change any until the bridge has \
                 brought them back",
            ),
            Self::JournalOpened { brought_back } => write!(
                f,
                "assignments and the names of providers can be changed; the bridge has brought back {brought_back}"
            ),
            Self::JournalFails {
                why,
                for_a_person: false,
            } => write!(
                f,
                "cannot keep or bring back assignments and the names of providers; the bridge tries again: {why}"
            ),
            Self::JournalFails {
                why,
                for_a_person: true,
            } => write!(
                f,
                "cannot keep or bring back assignments and the names of providers until somebody repairs this: {why}"
            ),
            Self::EpochBegun => {
                f.write_str("an operator began a new epoch of the authority; the bridge compares every stream again")
            }
            Self::Stopping => f.write_str("stopping: the bridge finishes what is in flight"),
        }
    }
}
