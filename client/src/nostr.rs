//! How an application binds a key of Nostr to a node of its session. The key stays with the application.

use spacetime_sync_proto::nostr::{challenge, signed};
use spacetime_sync_proto::{IdentityHex, Label};

/// A challenge of the module. It holds for 300 s, for one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NostrChallenge {
    pub(crate) node_id: Label,
    pub(crate) text: String,
}

impl NostrChallenge {
    /// Takes what the module answered. `None` unless it is a challenge for this node and this session: nothing else is signed.
    pub(crate) fn of(node_id: Label, identity: &IdentityHex, text: String) -> Option<Self> {
        let (_, made_ms) = text.rsplit_once(':')?;
        let made_ms = made_ms.parse().ok()?;
        let is_ours = text == challenge(&node_id, identity.as_str(), made_ms);
        is_ours.then_some(Self { node_id, text })
    }

    /// The node.
    pub fn node_id(&self) -> &str {
        self.node_id.as_str()
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What to sign with the key, by BIP-340.
    pub fn to_sign(&self) -> [u8; 32] {
        signed(&self.node_id, &self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_challenge_for_this_node_and_session_is_signed() {
        let node = |name: &str| Label::new(name).unwrap();
        let identity = |of: &str| of.repeat(32).parse::<IdentityHex>().unwrap();
        let of = |text: &str| NostrChallenge::of(node("n1"), &identity("c2"), text.to_owned());
        let good = challenge(&node("n1"), identity("c2").as_str(), 17);
        assert_eq!(of(&good).unwrap().to_sign(), signed(&node("n1"), &good));
        for other in [
            challenge(&node("n2"), identity("c2").as_str(), 17),
            challenge(&node("n1"), identity("c3").as_str(), 17),
            format!("{good}0x"),
            good.replace(":17", ":017"),
            good.replace("v1", "v2"),
            "17".to_owned(),
            String::new(),
        ] {
            assert_eq!(of(&other), None, "{other}");
        }
    }
}
