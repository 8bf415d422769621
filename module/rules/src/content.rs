//! What the calls of collaboration carry: documents, and a digest by which a repeated call is told from another one.

use std::time::Duration;

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use spacetime_sync_proto::{Label, Refusal, RefusalCode};

/// sha256 over everything that a call says.
pub type Digest = [u8; 32];

/// The digest of these parts. Each is counted with its length, so two lists of parts never run into each other.
pub(crate) fn digest(parts: &[&[u8]]) -> Digest {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Checks that a text is a JSON object of a bounded size.
pub(crate) fn check_document(what: &str, text: &str, most: usize) -> Result<(), Refusal> {
    if text.len() > most {
        return Err(invalid(format!(
            "{what}: {} bytes, at most {most} are allowed",
            text.len()
        )));
    }
    match serde_json::from_str::<Map<String, Value>>(text) {
        Ok(_) => Ok(()),
        Err(error) => Err(invalid(format!("{what}: expected a JSON object: {error}"))),
    }
}

/// A name that must be there.
pub(crate) fn name(what: &str, text: &str) -> Result<Label, Refusal> {
    Label::new(text).map_err(|error| invalid(format!("{what}: {error}")))
}

/// A name that may be empty.
pub(crate) fn optional_name(what: &str, text: &str) -> Result<Option<Label>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    name(what, text).map(Some)
}

/// A time as the tables have it: whole microseconds.
pub(crate) fn later(now_us: i64, by: Duration) -> i64 {
    now_us.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX))
}

/// A refusal of an argument.
pub fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_eq!(digest(&[b"a", b"b"]), digest(&[b"a", b"b"]));
        assert_ne!(digest(&[b"ab", b""]), digest(&[b"a", b"b"]));
        assert_ne!(digest(&[b"a"]), digest(&[b"a", b""]));
    }

    #[test]
    fn only_a_bounded_json_object_is_a_document() {
        let said = |text: &str| check_document("document", text, 64).map_err(|refusal| refusal.code);
        for good in ["{}", r#" {"a": [1, {"b": null}]} "#, r#"{"ü":"\u0000"}"#] {
            assert_eq!(said(good), Ok(()), "{good}");
        }
        let filled = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
        assert_eq!(said(&filled(64)), Ok(()));
        for bad in [
            "",
            "null",
            "[]",
            "1",
            "\"a\"",
            "{",
            "{} {}",
            "{'a':1}",
            "{\"a\":NaN}",
            &filled(65),
        ] {
            assert_eq!(said(bad), Err(RefusalCode::InvalidArgument), "{bad}");
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(5_000), "]".repeat(5_000));
        let refused = check_document("document", &deep, 1 << 20).unwrap_err();
        assert!(refused.message.contains("recursion"), "{refused}");
    }
}
