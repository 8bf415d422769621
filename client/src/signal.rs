//! Signals: what sessions tell one another in passing. Nobody keeps a signal. What was said while a client did not listen it never
//! hears, and it says when that was.

use std::time::SystemTime;

use spacetime_sync_proto::{NostrKey, Refusal, SignalKind, StreamId, SubjectKind, limit};
use tokio::sync::broadcast;

use crate::error::CallError;
use crate::presence::{OfflineReason, PresenceKey, PresenceStatus};

/// How many of the newest things a slow listener can still hear.
pub(crate) const HEARD_QUEUE: usize = 1_024;

/// What a signal is about, which determines who hears it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// Something of the session's own user: the user's other sessions hear it. The name may be empty, and means something to
    /// the user's applications alone.
    User(String),
    /// A stream: whoever may read it hears it. Needs [`ClientConfig::serves`](crate::ClientConfig::serves).
    Stream(StreamId),
    /// An assignment: the sessions of its requester and of its provider hear it.
    Assignment(String),
}

/// What a signal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Says {
    /// How far something is.
    Progress {
        /// Steps that are done.
        done: u64,
        /// All steps; 0 if that is unknown.
        total: u64,
        /// For a person; may be empty.
        note: String,
    },
    /// Somebody is typing. Say it again every few seconds: nobody says that it has ended.
    Typing {
        /// For a person; may be empty.
        note: String,
    },
    /// Two changes do not go together, or somebody came too late.
    Conflict {
        /// For a person; may be empty.
        note: String,
    },
}

/// A signal to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    /// The node that it comes from.
    pub node_id: String,
    /// What it is about.
    pub subject: Subject,
    /// What it says.
    pub says: Says,
}

/// A signal that was heard. A session hears its own, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeardSignal {
    /// Whose it is. `None` if it is the other party's of an assignment, which stays unknown.
    pub from: Option<PresenceKey>,
    /// What it is about.
    pub subject: Subject,
    /// What it says.
    pub says: Says,
    /// When it was sent, by SpacetimeDB's clock.
    pub said_at: SystemTime,
}

/// How a node changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceChange {
    /// The session and the node.
    pub key: PresenceKey,
    /// Its status.
    pub status: PresenceStatus,
    /// Why it is offline, if it is.
    pub reason: Option<OfflineReason>,
    /// The region of the node; may be empty.
    pub region: String,
    /// What kind of application or machine it is; may be empty.
    pub surface: String,
    /// The Nostr key that is bound to the node.
    pub nostr_key: Option<NostrKey>,
    /// When it changed, by SpacetimeDB's clock.
    pub changed_at: SystemTime,
}

/// Those to whom something is told in passing, or shown.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Audience {
    /// The sessions of this session's user. They hear what is about the user and about its assignments, and see both.
    OwnUser,
    /// The readers of a stream.
    Stream(StreamId),
    /// All who may provide. They see the assignments that are open to all, and nothing is told to them in passing.
    Providers,
}

/// What a client wants of an audience.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// To hear what is told to it in passing.
    Signals,
    /// To see its nodes.
    Presences,
    /// To see its assignments.
    Assignments,
}

/// The audiences that the application ever named, and what for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audiences {
    /// Each once.
    pub wanted: Vec<(Purpose, Audience)>,
    /// How many listeners there have been. A new one does not know what is heard already.
    pub listeners: u64,
}

impl Audiences {
    /// Adds what is not there yet, if no more streams are named than [`limit::HEARD_STREAMS`] for one purpose. Whether it added
    /// anything.
    pub(crate) fn want(&mut self, purpose: Purpose, audiences: Vec<Audience>) -> Result<bool, CallError> {
        let mut wanted = self.wanted.clone();
        for audience in audiences {
            let one = (purpose, audience);
            if !wanted.contains(&one) {
                wanted.push(one);
            }
        }
        let is_stream = |one: &&(Purpose, Audience)| one.0 == purpose && matches!(one.1, Audience::Stream(_));
        let (found, most) = (wanted.iter().filter(is_stream).count(), limit::HEARD_STREAMS);
        if found > most {
            let message = format!("{found} streams, at most {most} are heard or seen");
            return Err(CallError::Invalid(message));
        }
        let adds = wanted.len() > self.wanted.len();
        self.wanted = wanted;
        Ok(adds)
    }
}

/// One thing that a listener hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// From here on the client hears what is told to this audience.
    Listening(Audience),
    /// The client hears nothing more of this audience: its connection was lost or replaced, or the module took the right
    /// away. Whatever is said before the audience's next [`Listening`](Self::Listening) is missed.
    Interrupted(Audience),
    /// The module does not let the session belong to this audience. The client asks again by itself.
    Refused {
        /// The audience.
        audience: Audience,
        /// Why.
        refusal: Refusal,
    },
    /// This listener was too slow, and at least so many things were dropped.
    Missed(u64),
    /// A node changed.
    Presence(PresenceChange),
    /// A session said something.
    Signal(HeardSignal),
}

/// Hears what the client hears, from the moment on at which it was made.
#[derive(Debug)]
pub struct Signals {
    pub(crate) heard: broadcast::Receiver<Heard>,
}

impl Signals {
    /// Waits for the next thing. `None` once the client has stopped. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Heard> {
        match self.heard.recv().await {
            Ok(heard) => Some(heard),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Heard::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Subject {
    /// Kind and name, as the module has them.
    pub(crate) fn parts(&self) -> (SubjectKind, &str) {
        match self {
            Self::User(name) => (SubjectKind::User, name),
            Self::Stream(stream_id) => (SubjectKind::Stream, stream_id.as_str()),
            Self::Assignment(request_id) => (SubjectKind::Assignment, request_id),
        }
    }

    /// `None` if the parts are none of a subject.
    pub(crate) fn read(kind: &str, name: &str) -> Option<Self> {
        Some(match kind.parse().ok()? {
            SubjectKind::User => Self::User(name.to_owned()),
            SubjectKind::Stream => Self::Stream(StreamId::new(name).ok()?),
            SubjectKind::Assignment => Self::Assignment(name.to_owned()),
        })
    }
}

impl Says {
    /// Kind, steps and note, as the module has them.
    pub(crate) fn parts(&self) -> (SignalKind, [u64; 2], &str) {
        match self {
            Self::Progress { done, total, note } => (SignalKind::Progress, [*done, *total], note),
            Self::Typing { note } => (SignalKind::Typing, [0, 0], note),
            Self::Conflict { note } => (SignalKind::Conflict, [0, 0], note),
        }
    }

    /// `None` if the kind is unknown.
    pub(crate) fn read(kind: &str, [done, total]: [u64; 2], note: String) -> Option<Self> {
        Some(match kind.parse().ok()? {
            SignalKind::Progress => Self::Progress { done, total, note },
            SignalKind::Typing => Self::Typing { note },
            SignalKind::Conflict => Self::Conflict { note },
        })
    }
}

impl Signal {
    pub(crate) fn check(&self) -> Result<(), CallError> {
        CallError::check_name("node_id", &self.node_id)?;
        match &self.subject {
            Subject::User(name) if name.is_empty() => {}
            Subject::User(name) => {
                StreamId::check(name).map_err(|error| CallError::Invalid(format!("subject: {error}")))?
            }
            Subject::Stream(_) => {}
            Subject::Assignment(request_id) => CallError::check_name("subject", request_id)?,
        }
        let (_, [done, total], note) = self.says.parts();
        if total > 0 && done > total {
            return Err(CallError::Invalid(format!("done: {done} steps of {total}")));
        }
        CallError::check_length("note", note, limit::SIGNAL_NOTE_BYTES)?;
        if note.chars().any(char::is_control) {
            return Err(CallError::Invalid(
                "note: control characters are not allowed".to_owned(),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_and_what_is_said_cross_the_wire() {
        let stream = StreamId::new("a").unwrap();
        for subject in [
            Subject::User(String::new()),
            Subject::Stream(stream),
            Subject::Assignment("r1".to_owned()),
        ] {
            let (kind, name) = subject.parts();
            assert_eq!(Subject::read(kind.as_str(), name), Some(subject.clone()));
        }
        let note = "n".to_owned();
        for says in [
            Says::Progress {
                done: 1,
                total: 2,
                note: note.clone(),
            },
            Says::Typing { note: note.clone() },
            Says::Conflict { note: note.clone() },
        ] {
            let (kind, steps, note) = says.parts();
            assert_eq!(Says::read(kind.as_str(), steps, note.to_owned()), Some(says.clone()));
        }
        assert_eq!(Says::read("presence", [0, 0], note.clone()), None);
        assert_eq!(Subject::read("stream", "a b"), None);
        assert_eq!(Subject::read("everybody", "a"), None);
    }

    #[test]
    fn a_signal_that_the_module_would_refuse_is_refused_here() {
        let signal = |node: &str, subject: Subject, done, total, note: &str| {
            let (node_id, note) = (node.to_owned(), note.to_owned());
            let says = Says::Progress { done, total, note };
            Signal { node_id, subject, says }.check()
        };
        let user = |name: &str| Subject::User(name.to_owned());
        let full = "x".repeat(limit::SIGNAL_NOTE_BYTES);
        assert_eq!(signal("n", user(""), 2, 2, &full), Ok(()));
        assert_eq!(signal("n", user("notes/1"), 2, 0, ""), Ok(()));
        let assignment = |name: &str| Subject::Assignment(name.to_owned());
        assert_eq!(signal("n", assignment("r1"), 0, 0, ""), Ok(()));
        for (node, subject, done, note) in [
            ("", user(""), 0, ""),
            ("n", user(""), 3, ""),
            ("n", user(""), 0, &*format!("{full}x")),
            ("n", user(""), 0, "a\nb"),
            ("n", user("a b"), 0, ""),
            ("n", user(&full), 0, ""),
            ("n", assignment(""), 0, ""),
            ("n", assignment(&full), 0, ""),
        ] {
            let refused = signal(node, subject, done, 2, note);
            assert!(matches!(refused, Err(CallError::Invalid(_))), "{refused:?}");
        }
    }

    #[tokio::test]
    async fn a_slow_listener_is_told_how_much_it_missed() {
        let (tell, heard) = broadcast::channel(2);
        let mut signals = Signals { heard };
        for _ in 0..5 {
            tell.send(Heard::Missed(0)).unwrap();
        }
        assert_eq!(signals.next().await, Some(Heard::Missed(3)));
        assert_eq!(signals.next().await, Some(Heard::Missed(0)));
        drop(tell);
        assert_eq!(signals.next().await, Some(Heard::Missed(0)));
        assert_eq!(signals.next().await, None);
    }
}
