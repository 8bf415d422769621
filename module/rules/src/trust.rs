//! Who may do what. Identities are opaque here: whatever the host says the caller is.

use spacetime_sync_proto::{Refusal, RefusalCode};

/// Whom the module trusts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trust<I> {
    /// Who published the module.
    pub owner: I,
    /// Who appends, once the owner has said so.
    pub bridge: Option<I>,
}

impl<I: Copy + Eq> Trust<I> {
    /// Only the owner: configuration.
    pub fn owner_only(&self, caller: I) -> Result<(), Refusal> {
        if caller == self.owner {
            Ok(())
        } else {
            Err(unauthorized("only the owner of this database may do this"))
        }
    }

    /// Only the bridge: appending. The owner may not: what is appended comes from the authority or not at all.
    pub fn bridge_only(&self, caller: I) -> Result<(), Refusal> {
        match self.bridge {
            None => Err(not_configured()),
            Some(bridge) if bridge == caller => Ok(()),
            Some(_) => Err(unauthorized("only the bridge may do this")),
        }
    }

    /// The owner or the bridge: grants, and looking at heads.
    pub fn operator(&self, caller: I) -> Result<(), Refusal> {
        if caller == self.owner || self.bridge == Some(caller) {
            Ok(())
        } else {
            Err(unauthorized("only the owner or the bridge may do this"))
        }
    }
}

/// What a call is told that needs the configuration while there is none.
pub fn not_configured() -> Refusal {
    Refusal::new(
        RefusalCode::NotConfigured,
        "the owner has not configured this database: run `spacetime-sync publish`, or call `configure`",
    )
}

fn unauthorized(message: &str) -> Refusal {
    Refusal::new(RefusalCode::Unauthorized, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_right_belongs_to_who_holds_it() {
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
}
