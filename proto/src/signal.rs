//! Signals: what sessions tell one another in passing. Nobody keeps them, and whoever is not listening misses them.

use std::fmt;
use std::str::FromStr;

macro_rules! names {
    ($(#[$doc:meta])* $type:ident, $what:literal, $($(#[$of:meta])* $name:ident = $text:literal,)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type {
            $($(#[$of])* $name,)*
        }

        impl $type {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name in the module.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                let found = Self::ALL.iter().copied().find(|known| known.as_str() == text);
                found.ok_or(UnknownName { what: $what, expected: &[$($text),*] })
            }
        }
    };
}

/// A name that is none of a closed set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected one of {}", expected.join(", "))]
pub struct UnknownName {
    what: &'static str,
    expected: &'static [&'static str],
}

names!(
    /// What a signal says.
    SignalKind,
    "kind",
    /// How far something is.
    Progress = "progress",
    /// Somebody is typing. It holds for a few seconds, and is said again.
    Typing = "typing",
    /// Two changes do not go together, or somebody came too late.
    Conflict = "conflict",
);

names!(
    /// What a signal is about, which determines who hears it.
    SubjectKind,
    "subject_kind",
    /// Something of the sender's own user: its other sessions hear it.
    User = "user",
    /// A stream: whoever may read it hears it.
    Stream = "stream",
    /// An assignment: its two parties hear it.
    Assignment = "assignment",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_cross_the_wire_by_their_names() {
        for kind in SignalKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        for kind in SubjectKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        let unknown = "Typing".parse::<SignalKind>().unwrap_err().to_string();
        assert_eq!(unknown, "kind: expected one of progress, typing, conflict");
        assert!("".parse::<SubjectKind>().is_err());
    }
}
