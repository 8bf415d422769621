//! Who may do what. SpacetimeDB tells which identity the caller has; to this module an identity is opaque.

use spacetime_sync_proto::{Refusal, RefusalCode};

/// Whom the module trusts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trust<I> {
    /// The identity that published the module.
    pub owner: I,
    /// The identity that appends, once the owner has named it.
    pub bridge: Option<I>,
}

impl<I: Copy + Eq> Trust<I> {
    /// Allows only the owner. For configuration.
    pub fn owner_only(&self, caller: I) -> Result<(), Refusal> {
        if caller == self.owner {
            Ok(())
        } else {
            Err(unauthorized("only the owner of this database may do this"))
        }
    }

    /// Allows only the bridge. For appending: the owner may not, because appended events must come from the authority.
    pub fn bridge_only(&self, caller: I) -> Result<(), Refusal> {
        match self.bridge {
            None => Err(not_configured()),
            Some(bridge) if bridge == caller => Ok(()),
            Some(_) => Err(unauthorized("only the bridge may do this")),
        }
    }

    /// Admits a caller while no issuer of tokens is trusted. Until the owner has said who the bridge is, the database
    /// serves nobody else: strangers would come between a publish and its configuration. A bridge without an issuer
    /// means that anybody may connect, and sees what an operator has granted.
    pub fn admit_without_issuer(&self, caller: I) -> Result<(), Refusal> {
        if self.bridge.is_some() || caller == self.owner {
            Ok(())
        } else {
            Err(not_configured())
        }
    }

    /// Allows the owner and the bridge. For grants and for reading heads.
    pub fn operator(&self, caller: I) -> Result<(), Refusal> {
        if caller == self.owner || self.bridge == Some(caller) {
            Ok(())
        } else {
            Err(unauthorized("only the owner or the bridge may do this"))
        }
    }
}

/// The refusal of a call that needs the owner's configuration before there is one.
pub fn not_configured() -> Refusal {
    Refusal::new(
        RefusalCode::NotConfigured,
        "the owner has not configured this database yet: run `spacetime-sync publish`, or call `configure`",
    )
}

fn unauthorized(message: &str) -> Refusal {
    Refusal::new(RefusalCode::Unauthorized, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_and_bridge_have_only_their_own_rights() {
        let trust = Trust {
            owner: 1,
            bridge: Some(2),
        };
        let code = |answer: Result<(), Refusal>| answer.err().map(|refusal| refusal.code);
        let unauthorized = Some(RefusalCode::Unauthorized);
        assert_eq!(
            [1, 2, 3].map(|who| code(trust.owner_only(who))),
            [None, unauthorized, unauthorized]
        );
        assert_eq!(
            [1, 2, 3].map(|who| code(trust.bridge_only(who))),
            [unauthorized, None, unauthorized]
        );
        assert_eq!(
            [1, 2, 3].map(|who| code(trust.operator(who))),
            [None, None, unauthorized]
        );
        let unset = Trust { owner: 1, bridge: None };
        assert_eq!(code(unset.bridge_only(1)), Some(RefusalCode::NotConfigured));
        assert_eq!([1, 3].map(|who| code(unset.operator(who))), [None, unauthorized]);
    }

    #[test]
    fn nobody_but_the_owner_is_admitted_before_the_bridge_is_named() {
        let code = |bridge| {
            let trust = Trust { owner: 1, bridge };
            [1, 2, 3].map(|who| trust.admit_without_issuer(who).err().map(|refusal| refusal.code))
        };
        let unset = Some(RefusalCode::NotConfigured);
        assert_eq!(code(None), [None, unset, unset]);
        assert_eq!(code(Some(2)), [None; 3]);
    }
}
