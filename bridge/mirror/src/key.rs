//! The key of the mirror. Nothing shows it.

use std::fmt;

use nostr::secp256k1::{Keypair, Message};
use nostr::{Event, Keys, SECP256K1, UnsignedEvent};
use spacetime_sync_proto::Secret;

/// A text that is not a private key. It is not repeated here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a private key of Nostr, as 64 hexadecimal digits or nsec1…, found something else; make one with `openssl rand -hex 32`"
)]
pub struct NotAKey;

/// What the mirror signs with.
pub struct MirrorKey(Keys);

impl MirrorKey {
    /// Reads a private key.
    pub fn read(secret: &Secret) -> Result<Self, NotAKey> {
        Keys::parse(secret.expose().trim()).map(Self).map_err(|_| NotAKey)
    }

    /// The public key, in hex.
    pub fn public(&self) -> String {
        self.0.public_key().to_hex()
    }

    /// Signs without chance, so that the same event has the same bytes each time. `None` if the event is another key's.
    pub fn sign(&self, mut unsigned: UnsignedEvent) -> Option<Event> {
        if unsigned.pubkey != self.0.public_key() {
            return None;
        }
        let message = Message::from_digest(unsigned.id().to_bytes());
        let pair = Keypair::from_secret_key(SECP256K1, self.0.secret_key());
        let signature = SECP256K1.sign_schnorr_no_aux_rand(&message, &pair);
        // It verifies what was just signed.
        unsigned.add_signature(signature).ok()
    }
}

impl fmt::Debug for MirrorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MirrorKey({})", self.public())
    }
}
