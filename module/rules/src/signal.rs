//! Signals: what a session may tell others in passing.

use spacetime_sync_proto::{Label, Refusal, SignalKind, StreamId, SubjectKind, limit};

use crate::content::{invalid, name};

/// What a signal is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Something of the sender's own user. It may have a name, which means something to the user's applications alone.
    User,
    /// A stream.
    Stream(StreamId),
    /// An assignment.
    Assignment(Label),
}

/// A signal whose fields are valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    /// The sender's node.
    pub node_id: Label,
    /// What it is about.
    pub subject: Subject,
    /// What it says.
    pub kind: SignalKind,
}

/// Checks the fields of a signal. `[done, total]` are the steps of a progress; a total of 0 is unknown.
pub fn signal(
    node_id: &str,
    [subject_kind, subject]: [&str; 2],
    kind: &str,
    [done, total]: [u64; 2],
    note: &str,
) -> Result<Signal, Refusal> {
    let subject_kind = subject_kind
        .parse::<SubjectKind>()
        .map_err(|error| invalid(error.to_string()))?;
    let stream = |what: &str| StreamId::new(subject).map_err(|error| invalid(format!("{what}: {error}")));
    let subject = match subject_kind {
        SubjectKind::User => {
            if !subject.is_empty() {
                stream("subject")?;
            }
            Subject::User
        }
        SubjectKind::Stream => Subject::Stream(stream("subject")?),
        SubjectKind::Assignment => Subject::Assignment(name("subject", subject)?),
    };
    let kind = kind.parse::<SignalKind>().map_err(|error| invalid(error.to_string()))?;
    match kind {
        SignalKind::Progress if total > 0 && done > total => {
            return Err(invalid(format!("done: {done} steps of {total}")));
        }
        SignalKind::Progress => {}
        SignalKind::Typing | SignalKind::Conflict if done > 0 || total > 0 => {
            return Err(invalid(format!("done: only progress has steps, and this is {kind}")));
        }
        SignalKind::Typing | SignalKind::Conflict => {}
    }
    if note.len() > limit::SIGNAL_NOTE_BYTES {
        return Err(invalid(format!(
            "note: {} bytes, at most {} are allowed",
            note.len(),
            limit::SIGNAL_NOTE_BYTES
        )));
    }
    if note.chars().any(char::is_control) {
        return Err(invalid("note: control characters are not allowed"));
    }
    Ok(Signal {
        node_id: name("node_id", node_id)?,
        subject,
        kind,
    })
}

/// Who hears a signal about an assignment: its parties, each by its user, once. Only a party may send one. `None` if the sender is
/// none.
pub fn parties<'a>(sender: &str, requester: &'a str, provider: &'a str) -> Option<Vec<&'a str>> {
    let has_provider = !provider.is_empty();
    if sender != requester && !(has_provider && sender == provider) {
        return None;
    }
    let other = has_provider && provider != requester;
    Some([requester].into_iter().chain(other.then_some(provider)).collect())
}

#[cfg(test)]
mod tests {
    use spacetime_sync_proto::RefusalCode;

    use super::*;

    const STREAM: [&str; 2] = ["stream", "user:7:notes"];

    #[test]
    fn a_signal_with_an_invalid_field_is_refused() {
        let said = |node, subject, kind, steps, note: &str| {
            let said = signal(node, subject, kind, steps, note);
            said.map(|signal| signal.subject).map_err(|refusal| refusal.code)
        };
        let stream = Ok(Subject::Stream(StreamId::new("user:7:notes").unwrap()));
        let full = "x".repeat(limit::SIGNAL_NOTE_BYTES);
        assert_eq!(said("n", STREAM, "typing", [0, 0], ""), stream);
        assert_eq!(said("n", STREAM, "conflict", [0, 0], &full), stream);
        assert_eq!(said("n", STREAM, "progress", [3, 3], "ü"), stream);
        assert_eq!(said("n", STREAM, "progress", [u64::MAX, 0], ""), stream);
        assert_eq!(said("n", ["user", ""], "typing", [0, 0], ""), Ok(Subject::User));
        assert_eq!(said("n", ["user", "notes/1"], "typing", [0, 0], ""), Ok(Subject::User));
        let assignment = Ok(Subject::Assignment(Label::new("r1").unwrap()));
        assert_eq!(said("n", ["assignment", "r1"], "progress", [0, 9], ""), assignment);
        let long = format!("{full}x");
        for (node, subject, kind, steps, note) in [
            ("", STREAM, "typing", [0, 0], ""),
            ("n 1", STREAM, "typing", [0, 0], ""),
            ("n", ["stream", ""], "typing", [0, 0], ""),
            ("n", ["stream", "user:7:*"], "typing", [0, 0], ""),
            ("n", ["assignment", ""], "typing", [0, 0], ""),
            ("n", ["assignment", "a/b"], "typing", [0, 0], ""),
            ("n", ["user", "a b"], "typing", [0, 0], ""),
            ("n", ["everybody", "x"], "typing", [0, 0], ""),
            ("n", STREAM, "presence", [0, 0], ""),
            ("n", STREAM, "typing", [1, 0], ""),
            ("n", STREAM, "conflict", [0, 1], ""),
            ("n", STREAM, "progress", [4, 3], ""),
            ("n", STREAM, "typing", [0, 0], &long),
            ("n", STREAM, "typing", [0, 0], "a\nb"),
        ] {
            let refused = said(node, subject, kind, steps, note);
            assert_eq!(
                refused,
                Err(RefusalCode::InvalidArgument),
                "{node} {subject:?} {kind} {steps:?}"
            );
        }
    }

    #[test]
    fn only_the_parties_of_an_assignment_send_and_hear() {
        for (sender, provider, expected) in [
            ("7", "", Some(vec!["7"])),
            ("7", "8", Some(vec!["7", "8"])),
            ("8", "8", Some(vec!["7", "8"])),
            ("7", "7", Some(vec!["7"])),
            ("8", "", None),
            ("9", "8", None),
            ("", "", None),
        ] {
            assert_eq!(parties(sender, "7", provider), expected, "{sender} with {provider}");
        }
    }
}
