//! Names and seqs. Every constructor checks its input, so a value of these types is always valid.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limit;

/// Why a text is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// It is empty.
    #[error("{what} is empty")]
    Empty {
        /// Which name.
        what: &'static str,
    },
    /// It is longer than the contract allows.
    #[error("{what} has {found} bytes, at most {most} are allowed")]
    TooLong {
        /// Which name.
        what: &'static str,
        /// Its length in bytes.
        found: usize,
        /// The bound.
        most: usize,
    },
    /// It holds a character outside the allowed set.
    #[error("{what} holds {found:?} at byte {at}; allowed are {allowed}")]
    Character {
        /// Which name.
        what: &'static str,
        /// The first offending character.
        found: char,
        /// Its offset in bytes.
        at: usize,
        /// The allowed set, in words.
        allowed: &'static str,
    },
}

const NAME_CHARACTERS: &str = "ASCII letters and digits and . _ - : / @ + = ~ %";
const LABEL_CHARACTERS: &str = "ASCII letters and digits and . _ - : @ + = ~ %";
const KEY_CHARACTERS: &str = "all but control characters";

fn name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '/' | '@' | '+' | '=' | '~' | '%')
}

fn check(
    what: &'static str,
    text: &str,
    most: usize,
    allowed: &'static str,
    good: impl Fn(char) -> bool,
) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty { what });
    }
    if text.len() > most {
        return Err(InvalidId::TooLong {
            what,
            found: text.len(),
            most,
        });
    }
    // Nearly every name is plain ASCII, which needs no decoding to check.
    // To look at all bytes without a branch is faster than to stop at the first bad one.
    let is_good = |byte: u8| byte.is_ascii() & good(char::from(byte));
    if text.bytes().fold(true, |all, byte| all & is_good(byte)) {
        return Ok(());
    }
    match text.char_indices().find(|(_, c)| !good(*c)) {
        Some((at, found)) => Err(InvalidId::Character {
            what,
            found,
            at,
            allowed,
        }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $most:expr, $allowed:expr, $good:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks a text and makes it a name.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                Self::check(text)?;
                Ok(Self(text.into()))
            }

            /// Makes a text a name that was checked before.
            #[allow(dead_code, reason = "names of some kinds are not made from checked texts")]
            pub(crate) fn checked(text: &str) -> Self {
                debug_assert!(Self::check(text).is_ok(), "{text:?}");
                Self(text.into())
            }

            /// Checks a text without allocating a name.
            pub fn check(text: &str) -> Result<(), InvalidId> {
                check($what, text, $most, $allowed, $good)
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &self.0)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $type {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// The name of an ordered log, e.g. `runtime.run.42.events`.
    StreamId,
    "stream_id",
    limit::STREAM_ID_BYTES,
    NAME_CHARACTERS,
    name_character
);
name!(
    /// Makes a repeated append of an event harmless. Unique in its stream.
    IdempotencyKey,
    "idempotency_key",
    limit::IDEMPOTENCY_KEY_BYTES,
    KEY_CHARACTERS,
    |c| !c.is_control()
);
name!(
    /// What an event's payload is. The runtime chooses the word.
    Kind,
    "kind",
    limit::KIND_BYTES,
    NAME_CHARACTERS,
    name_character
);
name!(
    /// The name of a user, an organisation, a session, a device, a node or a region. It holds no `/`, because that
    /// separates names in a token's subject.
    Label,
    "name",
    limit::NAME_BYTES,
    LABEL_CHARACTERS,
    |c| name_character(c) && c != '/'
);

/// The number of an event in its stream: 1, 2, 3 … without gaps. [`Seq::ZERO`] stands before the first event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(u64);

impl Seq {
    /// Before the first event: the head of an empty stream.
    pub const ZERO: Self = Self(0);
    /// The largest seq, because Postgres counts in signed 64 bits.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// Makes a seq of a number. `None` if it is past [`Seq::MAX`].
    pub fn new(value: u64) -> Option<Self> {
        (value <= Self::MAX.0).then_some(Self(value))
    }

    /// From a `BIGINT` of the authority. `None` if it is negative.
    pub fn from_sql(value: i64) -> Option<Self> {
        u64::try_from(value).ok().map(Self)
    }

    /// As a `BIGINT` of the authority.
    pub fn to_sql(self) -> i64 {
        self.0 as i64
    }

    /// As the plain number that SpacetimeDB's columns and the wire hold.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The next seq. It saturates at [`Seq::MAX`], which no log reaches: a million events a second would take 290,000
    /// years.
    #[must_use]
    pub fn next(self) -> Self {
        self.plus(1)
    }

    /// The seq `count` events later. It saturates like [`Seq::next`].
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count).min(Self::MAX.0))
    }

    /// The seq `count` events earlier, but not before [`Seq::ZERO`].
    #[must_use]
    pub fn minus(self, count: u64) -> Self {
        Self(self.0.saturating_sub(count))
    }

    /// The seq before this one. [`Seq::ZERO`] stays as it is.
    #[must_use]
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// How many events this seq is past `earlier`; 0 if it is not past it.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The distance as an index into a list that begins at `earlier`. On wasm32 an index is narrower than a seq. There
    /// it saturates, so a distant seq is past every end and does not wrap to an earlier entry.
    pub(crate) fn offset_from(self, earlier: Self) -> usize {
        usize::try_from(self.since(earlier)).unwrap_or(usize::MAX)
    }
}

impl Serialize for Seq {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Seq {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = u64::deserialize(deserializer)?;
        Self::new(value).ok_or_else(|| {
            serde::de::Error::custom(format_args!("{value} is not a seq: expected at most {}", Self::MAX))
        })
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seq_so_many_events_earlier_never_lies_before_the_first() {
        let seq = |value| Seq::new(value).unwrap();
        assert_eq!(seq(9).minus(0), seq(9));
        assert_eq!(seq(9).minus(4), seq(5));
        for count in [9, 10, u64::MAX] {
            assert_eq!(seq(9).minus(count), Seq::ZERO);
        }
    }

    #[test]
    fn a_name_is_checked_when_it_is_made() {
        let long = "x".repeat(256);
        for (text, good) in [
            ("runtime.run.42.events", true),
            ("runtime.topic.a%3Ab", true),
            ("", false),
            (long.as_str(), false),
            ("a b", false),
            ("a'b", false),
            ("a*", false),
            ("stream\u{0430}", false),
            ("a\0b", false),
        ] {
            assert_eq!(StreamId::new(text).is_ok(), good, "{text:?}");
        }
    }

    #[test]
    fn a_label_with_a_slash_is_refused_because_two_sessions_could_share_a_subject() {
        assert!(Label::new("user@example.com").is_ok());
        for text in ["", "a/b", "a b", "\u{430}", "a'"] {
            assert!(Label::new(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_key_may_be_any_text_without_control_characters() {
        assert!(IdempotencyKey::new("topic:ü \"q\" 'x'").is_ok());
        assert_eq!(
            IdempotencyKey::new("a\nb"),
            Err(InvalidId::Character {
                what: "idempotency_key",
                found: '\n',
                at: 1,
                allowed: KEY_CHARACTERS
            })
        );
    }

    #[test]
    fn a_name_of_the_greatest_length_is_accepted() {
        assert!(StreamId::new(&"x".repeat(255)).is_ok());
    }

    #[test]
    fn seqs_count_on_and_back_and_know_their_distance() {
        let seq = |value| Seq::new(value).unwrap();
        assert_eq!((seq(7).get(), seq(7).to_string()), (7, "7".to_owned()));
        assert_eq!((seq(7).next(), seq(7).plus(5)), (seq(8), seq(12)));
        assert_eq!((seq(7).previous(), Seq::ZERO.previous()), (seq(6), Seq::ZERO));
        assert_eq!((seq(7).since(seq(3)), seq(3).since(seq(7))), (4, 0));
        assert_eq!(seq(7).offset_from(seq(3)), 4);
    }

    #[test]
    fn a_seq_never_leaves_the_range_of_the_authority() {
        assert_eq!(Seq::new(u64::MAX), None);
        assert_eq!(Seq::from_sql(-1), None);
        assert_eq!(Seq::MAX.next(), Seq::MAX);
        assert_eq!(Seq::from_sql(Seq::MAX.to_sql()), Some(Seq::MAX));
    }
}
