//! The two hashes of an event, and the chain that ties a log together.
//!
//! ```text
//! payload_hash = sha256(payload)
//! chain(0)     = sha256("spacetime.sync.v1/stream\0" ‖ stream_id)
//! chain(seq)   = sha256(chain(seq − 1) ‖ seq ‖ committed_at_us ‖ payload_hash ‖ len(key) ‖ key ‖ kind)
//! ```
//! Numbers are big-endian: `seq` and `committed_at_us` 8 bytes, `len(key)` 2 bytes. Two parties that hold the same
//! chain hash at the same seq hold the same events up to there, field by field. The stream's name is in chain(0), so
//! one stream's log cannot pass for another's.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::hex;
use crate::id::{IdempotencyKey, Kind, Seq, StreamId};

const GENESIS: &[u8] = b"spacetime.sync.v1/stream\0";

/// A text that is not a hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hash: expected sha256: and 64 lower-case hexadecimal digits")]
pub struct InvalidHash(String);

fn parse(text: &str) -> Option<[u8; 32]> {
    hex::decode(text.strip_prefix("sha256:")?)
}

macro_rules! hash {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $type([u8; 32]);

        impl $type {
            /// Makes a hash of its 32 bytes.
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Makes a hash of bytes from outside. `None` unless there are 32.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The 32 bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("sha256:")?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl std::str::FromStr for $type {
            type Err = InvalidHash;
            fn from_str(text: &str) -> Result<Self, InvalidHash> {
                parse(text).map(Self).ok_or_else(|| InvalidHash(text.to_owned()))
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

hash!(
    /// sha256 of an event's payload.
    PayloadHash
);
hash!(
    /// The hash of a stream's log up to and including one event.
    ChainHash
);

impl PayloadHash {
    /// Hashes a payload.
    pub fn of(payload: &[u8]) -> Self {
        Self(Sha256::digest(payload).into())
    }
}

impl ChainHash {
    /// chain(0), the hash of a stream's empty log.
    pub fn genesis(stream_id: &StreamId) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(GENESIS);
        hasher.update(stream_id.as_str());
        Self(hasher.finalize().into())
    }

    /// chain(seq), where `self` is chain(seq − 1).
    #[must_use]
    pub fn link(
        &self,
        seq: Seq,
        committed_at_us: i64,
        payload_hash: &PayloadHash,
        key: &IdempotencyKey,
        kind: &Kind,
    ) -> Self {
        self.link_text(seq, committed_at_us, payload_hash, key.as_str(), kind.as_str())
    }

    /// Like [`ChainHash::link`], for a key and a kind that were checked but are still plain text.
    pub(crate) fn link_text(
        &self,
        seq: Seq,
        committed_at_us: i64,
        payload_hash: &PayloadHash,
        key: &str,
        kind: &str,
    ) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(self.0);
        hasher.update(seq.get().to_be_bytes());
        hasher.update(committed_at_us.to_be_bytes());
        hasher.update(payload_hash.0);
        // The cast loses nothing, because a key has at most 512 bytes.
        hasher.update((key.len() as u16).to_be_bytes());
        hasher.update(key);
        hasher.update(kind);
        Self(hasher.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_only_in_the_form_in_which_it_is_written() {
        let hash = PayloadHash::of(b"x");
        let text = hash.to_string();
        assert_eq!(text.parse(), Ok(hash));
        let long = format!("{text}0");
        for bad in [
            "",
            "sha256:",
            &text[..70],
            &long,
            &text.to_uppercase(),
            &text.replace("sha256", "sha512"),
        ] {
            assert!(bad.parse::<PayloadHash>().is_err(), "{bad}");
        }
    }
}
