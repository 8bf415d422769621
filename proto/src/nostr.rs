//! Keys of Nostr, and how a session proves that it has one: it signs a challenge of the module.
//!
//! ```text
//! challenge = domain ":" node_id ":" identity ":" made_ms
//! signed    = sha256(domain ":" node_id ":" challenge)
//! ```
//! The identity is that of the session, in hex, and the time that of SpacetimeDB. The signature is one of BIP-340.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::hex;
use crate::id::Label;

/// Stands before everything that is signed here, so that no such signature means anything elsewhere.
pub const BIND_DOMAIN: &str = "openagents:nostr-presence-bind:v1";

/// A text that is not a public key or a signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {digits} lower-case hexadecimal digits, found {found} bytes")]
pub struct NotHex {
    digits: usize,
    found: usize,
}

macro_rules! bytes_in_hex {
    ($(#[$doc:meta])* $type:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type([u8; $bytes]);

        impl $type {
            /// Makes it of its bytes, whatever they are.
            pub fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            /// The bytes.
            pub fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NotHex;

            fn from_str(text: &str) -> Result<Self, NotHex> {
                let wrong = || NotHex {
                    digits: 2 * $bytes,
                    found: text.len(),
                };
                hex::decode(text).map(Self).ok_or_else(wrong)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

bytes_in_hex!(
    /// A public key of Nostr: the x coordinate of a point of secp256k1. Not every value is one.
    NostrKey,
    32
);
bytes_in_hex!(
    /// A signature of BIP-340. Not every value can be one.
    NostrSignature,
    64
);

/// The challenge that the module made for a node of a session at a time.
pub fn challenge(node_id: &Label, identity_hex: &str, made_ms: u64) -> String {
    format!("{BIND_DOMAIN}:{}:{identity_hex}:{made_ms}", node_id.as_str())
}

/// What is signed to bind a key to a node.
pub fn signed(node_id: &Label, challenge: &str) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in [BIND_DOMAIN, ":", node_id.as_str(), ":", challenge] {
        hasher.update(part);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenge_and_what_is_signed_are_pinned() {
        let node = Label::new("node-1").unwrap();
        let text = challenge(&node, &"c2".repeat(32), 1_700_000_000_123);
        let identity = "c2".repeat(32);
        assert_eq!(
            text,
            format!("openagents:nostr-presence-bind:v1:node-1:{identity}:1700000000123")
        );
        let whole = format!("openagents:nostr-presence-bind:v1:node-1:{text}");
        let expected: [u8; 32] = Sha256::digest(whole).into();
        assert_eq!(signed(&node, &text), expected);
        let pinned = NostrKey::from_bytes(signed(&node, &text)).to_string();
        assert_eq!(
            pinned,
            "6a7ec153f0227436814e382eae723fd39b7b8da6887c582a82a6f4b59c112f76"
        );
    }

    #[test]
    fn a_key_has_one_form() {
        let text = "0a".repeat(32);
        let key: NostrKey = text.parse().unwrap();
        assert_eq!((key.to_string(), key.as_bytes()), (text.clone(), &[10; 32]));
        for wrong in [
            "",
            "npub1",
            &text[1..],
            &format!("{text}0a"),
            &text.to_uppercase(),
            &format!("0x{}", &text[2..]),
            &format!("{}\u{fc}", &text[2..]),
        ] {
            assert!(wrong.parse::<NostrKey>().is_err(), "{wrong:?}");
            assert!(wrong.parse::<NostrSignature>().is_err(), "{wrong:?}");
        }
        assert_eq!(
            "ff".repeat(64).parse::<NostrSignature>().unwrap().as_bytes(),
            &[255; 64]
        );
    }
}
