//! Seals: the bridge's signature over where a stream's log has come to.
//!
//! A seal covers the stream, the seq and the chain hash of a frame's last event. The chain hash covers every field of
//! every event up to there, so who trusts the key and checks the seal need not trust anything between the authority and
//! itself. This module has the form of a seal; who has keys signs and verifies.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::StreamId;
use crate::position::Position;

/// The length of an encoded seal.
pub const SEAL_BYTES: usize = KEY_BYTES + SIGNATURE_BYTES;
const KEY_BYTES: usize = 8;
const SIGNATURE_BYTES: usize = 64;

/// Names the key of a seal: the beginning of the key's thumbprint (RFC 7638). It only says which key to try.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SealKeyId([u8; KEY_BYTES]);

impl SealKeyId {
    /// The id of the key with this thumbprint.
    pub fn of_thumbprint(thumbprint: &[u8; 32]) -> Self {
        let mut id = [0; KEY_BYTES];
        id.copy_from_slice(&thumbprint[..KEY_BYTES]);
        Self(id)
    }
}

impl fmt::Display for SealKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SealKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKeyId({self})")
    }
}

/// A signature over a position of a stream, and the key that made it. Nobody has verified it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// The key.
    pub key: SealKeyId,
    /// The signature over [`sealed_text`].
    pub signature: [u8; SIGNATURE_BYTES],
}

impl Seal {
    /// Reads an encoded seal. `None` if it has not [`SEAL_BYTES`].
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let (key, signature) = bytes.split_first_chunk()?;
        Some(Self {
            key: SealKeyId(*key),
            signature: signature.try_into().ok()?,
        })
    }

    /// The encoded seal.
    pub fn to_bytes(&self) -> [u8; SEAL_BYTES] {
        let mut bytes = [0; SEAL_BYTES];
        bytes[..KEY_BYTES].copy_from_slice(&self.key.0);
        bytes[KEY_BYTES..].copy_from_slice(&self.signature);
        bytes
    }
}

/// Who has a key that seals.
pub trait Sealer: Send + Sync {
    /// Seals a position of a stream. `None` if no key seals at the moment.
    fn seal(&self, stream_id: &StreamId, at: &Position) -> Option<Seal>;

    /// Whether a seal of this position is one of its own. `None` if it does not know the key.
    fn check(&self, stream_id: &StreamId, at: &Position, seal: &Seal) -> Option<bool>;

    /// Whether a key seals at the moment.
    fn is_ready(&self) -> bool;
}

/// The public half of a key that seals, as a JWK of P-256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealKey {
    /// The thumbprint of RFC 7638, in base64url.
    pub kid: String,
    /// `EC`
    pub kty: String,
    /// `P-256`
    pub crv: String,
    /// The point's x, in base64url.
    pub x: String,
    /// The point's y, in base64url.
    pub y: String,
}

/// What a seal signs. No other signature of the lane begins like it, so none can be taken for another.
pub fn sealed_text(stream_id: &StreamId, at: &Position) -> Vec<u8> {
    let stream = stream_id.as_str().as_bytes();
    let mut text = Vec::with_capacity(SEALED.len() + 2 + stream.len() + 8 + 32);
    text.extend_from_slice(SEALED);
    // A stream's name is shorter than 64 KiB.
    text.extend_from_slice(&(stream.len() as u16).to_be_bytes());
    text.extend_from_slice(stream);
    text.extend_from_slice(&at.seq.get().to_be_bytes());
    text.extend_from_slice(at.chain.as_bytes());
    text
}

const SEALED: &[u8] = b"spacetime.sync.v1 seal\0";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::ChainHash;
    use crate::id::Seq;

    #[test]
    fn a_seal_crosses_the_wire() {
        let mut bytes = [0; SEAL_BYTES];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = at as u8;
        }
        let seal = Seal::from_slice(&bytes).unwrap();
        assert_eq!(seal.key.to_string(), "0001020304050607");
        assert_eq!(seal.signature[0], 8);
        assert_eq!(seal.to_bytes(), bytes);
        for length in [0, 7, 8, SEAL_BYTES - 1] {
            assert_eq!(Seal::from_slice(&bytes[..length]), None, "{length}");
        }
        assert_eq!(Seal::from_slice(&[0; SEAL_BYTES + 1]), None);
    }

    /// The text is part of the contract: these bytes never change.
    #[test]
    fn the_sealed_text_is_pinned_and_differs_in_every_part() {
        let stream = StreamId::new("a.b").unwrap();
        let at = Position {
            seq: Seq::new(258).unwrap(),
            chain: ChainHash::from_bytes([9; 32]),
        };
        let text = sealed_text(&stream, &at);
        let mut expected = b"spacetime.sync.v1 seal\0\0\x03a.b\0\0\0\0\0\0\x01\x02".to_vec();
        expected.extend([9; 32]);
        assert_eq!(text, expected);
        let other = Position {
            seq: at.seq.next(),
            ..at
        };
        assert_ne!(sealed_text(&stream, &other), text);
        let other = Position {
            chain: ChainHash::from_bytes([8; 32]),
            ..at
        };
        assert_ne!(sealed_text(&stream, &other), text);
        assert_ne!(sealed_text(&StreamId::new("a.c").unwrap(), &at), text);
    }
}
