//! Keys of Nostr: when a challenge is made, and what it takes to bind a key to a node of a session.
//!
//! A challenge belongs to an identity and a node, is good for one attempt, and for a while. Its text is upstream's: it holds no
//! random number, and does not need one, because it names who may use it and is never the same twice.

use std::time::Duration;

use k256::schnorr::{Signature, VerifyingKey};
use spacetime_sync_proto::nostr::{challenge, signed};
use spacetime_sync_proto::{Label, NostrKey, NostrSignature, Refusal, RefusalCode, limit};

use crate::content::{invalid, name};

/// A challenge can be answered for this long.
pub const CHALLENGE_HOLDS: Duration = Duration::from_secs(300);

/// The newest challenge of a session for one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldChallenge {
    /// When it was made, in milliseconds. Its text says so.
    pub made_ms: u64,
    /// Whether somebody tried to answer it.
    pub is_spent: bool,
}

/// Makes a challenge. `held` is the newest one for the node, and `of_session` is how many the module holds for all nodes of the
/// session, each until it expires.
pub fn make(held: Option<HeldChallenge>, of_session: usize, now_ms: u64) -> Result<HeldChallenge, Refusal> {
    if held.is_none() && of_session >= limit::NOSTR_CHALLENGES {
        let message = format!(
            "the session has {of_session} challenges, the most allowed: try again when the first of them has expired, {} s \
             after it was made",
            CHALLENGE_HOLDS.as_secs()
        );
        return Err(Refusal::new(RefusalCode::RateLimited, message));
    }
    // Two challenges of one session and node never have the same text.
    let made_ms = held.map_or(now_ms, |held| now_ms.max(held.made_ms.saturating_add(1)));
    Ok(HeldChallenge {
        made_ms,
        is_spent: false,
    })
}

/// An attempt to bind a key to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The node.
    pub node_id: Label,
    /// The key.
    pub key: NostrKey,
    /// What is to show that the caller has the key.
    pub signature: NostrSignature,
}

/// Checks the form of an attempt.
pub fn proof(node_id: &str, key: &str, signature: &str) -> Result<Proof, Refusal> {
    Ok(Proof {
        node_id: name("node_id", node_id)?,
        key: key
            .parse::<NostrKey>()
            .map_err(|error| invalid(format!("nostr_pubkey: {error}")))?,
        signature: signature
            .parse::<NostrSignature>()
            .map_err(|error| invalid(format!("signature: {error}")))?,
    })
}

impl HeldChallenge {
    /// When it expires, in milliseconds.
    pub fn expires_ms(self) -> u64 {
        self.made_ms.saturating_add(CHALLENGE_HOLDS.as_millis() as u64)
    }

    /// Judges an attempt of its own session. One that states the challenge spends it, whatever comes of it, so a signature is
    /// verified once for each challenge that was made.
    pub fn attempt(&mut self, proof: &Proof, stated: &str, identity_hex: &str, now_ms: u64) -> Result<(), Refusal> {
        let refused = |message: &str| {
            let message = format!("{message}: ask for another challenge");
            Err(Refusal::new(RefusalCode::ChallengeRefused, message))
        };
        if stated != challenge(&proof.node_id, identity_hex, self.made_ms) {
            return refused("the challenge is not the newest one of this session for this node");
        }
        if self.is_spent {
            return refused("the challenge was used before");
        }
        if now_ms >= self.expires_ms() {
            return refused("the challenge has expired");
        }
        self.is_spent = true;
        if !verifies(&proof.key, &signed(&proof.node_id, stated), &proof.signature) {
            let message = "the signature is not the key's, or is not over sha256(domain:node_id:challenge): sign another \
                           challenge";
            return Err(Refusal::new(RefusalCode::SignatureRefused, message));
        }
        Ok(())
    }
}

/// The refusal where there is no challenge.
pub fn no_challenge() -> Refusal {
    let message = "the session has no challenge for this node, or it has expired: ask for one";
    Refusal::new(RefusalCode::ChallengeRefused, message)
}

/// Whether a signature of BIP-340 is the key's over these bytes.
fn verifies(key: &NostrKey, message: &[u8], signature: &NostrSignature) -> bool {
    let key = VerifyingKey::from_bytes(key.as_bytes());
    let signature = Signature::try_from(signature.as_bytes().as_slice());
    match (key, signature) {
        (Ok(key), Ok(signature)) => key.verify_raw(message, &signature).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
