//! Closed sets of names that cross the wire as text.

/// A name that is none of a closed set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected one of {}", expected.join(", "))]
pub struct UnknownName {
    pub(crate) what: &'static str,
    pub(crate) expected: &'static [&'static str],
}

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
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::names::UnknownName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let found = Self::ALL.iter().copied().find(|known| known.as_str() == text);
                found.ok_or($crate::names::UnknownName { what: $what, expected: &[$($text),*] })
            }
        }
    };
}

pub(crate) use names;

#[cfg(test)]
mod tests {
    use crate::{AssignmentSide, AssignmentState, OutboxStatus, SignalKind, SubjectKind};

    #[test]
    fn a_name_crosses_the_wire_and_no_other_is_taken_for_it() {
        for kind in SignalKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        for kind in SubjectKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        for state in AssignmentState::ALL {
            assert_eq!(state.as_str().parse(), Ok(*state));
        }
        for side in AssignmentSide::ALL {
            assert_eq!(side.as_str().parse(), Ok(*side));
        }
        for status in OutboxStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(*status));
        }
        let unknown = "Typing".parse::<SignalKind>().unwrap_err().to_string();
        assert_eq!(unknown, "kind: expected one of progress, typing, conflict");
        assert!("".parse::<SubjectKind>().is_err());
    }
}
