//! Whose token is good. The same rule that the module applies ([`spacetime_sync_rules::session`]), applied before a
//! connection reaches SpacetimeDB.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

use spacetime_sync_proto::access::{Compatibility, Scope, SyncClaims};
use spacetime_sync_proto::{Label, Refusal, RefusalCode};
use spacetime_sync_rules::session::{self, Claims, Policy};
use spacetimedb_lib::Identity;

/// What a [`Verifier`] answers.
pub type Verified<'a> = Pin<Box<dyn Future<Output = Result<String, Unverified>> + Send + 'a>>;

/// Checks signatures. Whoever has the issuer's keys hands one in.
pub trait Verifier: Debug + Send + Sync {
    /// Returns the claims of a token, as JSON, if the issuer has signed it.
    fn claims<'a>(&'a self, token: &'a str) -> Verified<'a>;
}

/// Why a token has no claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unverified {
    /// The issuer has not signed it.
    Invalid,
    /// The issuer's keys are not known at the moment.
    Unavailable,
}

/// A caller with a good token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The session.
    pub session_id: Label,
    /// The identity that SpacetimeDB gives the session, in hex.
    pub identity: String,
    /// When the token expires, in Unix seconds.
    pub expires_at: u64,
}

/// The rule for tokens of this issuer. Which clients are served, the module says.
pub fn policy(issuer: &str, audience: &str) -> Policy {
    Policy {
        issuer: issuer.to_owned(),
        audience: audience.to_owned(),
        compatibility: Compatibility {
            min_schema_version: 0,
            max_schema_version: u32::MAX,
            ..Compatibility::default()
        },
    }
}

/// Judges claims whose signature is good.
pub fn judge(claims: &str, policy: &Policy, now: u64) -> Result<Caller, Refusal> {
    let session = session::admit(Claims::read(claims)?, policy, now, |_| false)?;
    if session.scopes.contains(&Scope::Append) {
        let message = "the gate is for clients: the bridge connects to SpacetimeDB itself";
        return Err(Refusal::new(RefusalCode::Forbidden, message));
    }
    let subject = SyncClaims::subject(&session.user_id, &session.session_id);
    Ok(Caller {
        identity: Identity::from_claims(&policy.issuer, &subject).to_hex().to_string(),
        session_id: session.session_id,
        expires_at: session.expires_at,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};
    use spacetime_sync_proto::access::{AUDIENCE, CLAIMS_VERSION, SERVICE_SUBJECT};
    use spacetime_sync_proto::contract::PROTOCOL;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    pub(crate) const ISSUER: &str = "https://lane.example";

    /// The claims of a good token that was signed just now, with changes.
    pub(crate) fn claims(now: u64, changes: &[(&str, Value)]) -> String {
        let mut claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "user:7/session:s1",
            "iat": now - 10, "nbf": now - 10, "exp": now + 290, "jti": "sync_1",
            "oa_user_id": "7", "oa_session_id": "s1", "oa_device_id": "d1",
            "oa_sync_scopes": ["sync.subscribe"], "oa_sync_topics": [], "oa_sync_streams": ["user:7:*"],
            "oa_claims_version": CLAIMS_VERSION, "oa_client_surface": "desktop",
            "oa_client_build_id": "20261101T000000Z", "oa_protocol_version": PROTOCOL, "oa_schema_version": 1,
        });
        for (field, value) in changes {
            claims[*field] = value.clone();
        }
        claims.to_string()
    }

    fn judged(changes: &[(&str, Value)]) -> Result<Caller, RefusalCode> {
        judge(&claims(NOW, changes), &policy(ISSUER, AUDIENCE), NOW).map_err(|refusal| refusal.code)
    }

    #[test]
    fn a_sessions_token_is_good_until_it_expires() {
        let caller = judged(&[]).unwrap();
        assert_eq!((caller.session_id.as_str(), caller.expires_at), ("s1", NOW + 290));
        assert_eq!(
            caller.identity,
            Identity::from_claims(ISSUER, "user:7/session:s1").to_hex().to_string()
        );
        assert_eq!(judged(&[("exp", json!(NOW))]), Err(RefusalCode::TokenExpired));
    }

    #[test]
    fn a_token_for_anything_else_is_refused() {
        let of_the_bridge = [
            ("sub", json!(SERVICE_SUBJECT)),
            ("oa_sync_scopes", json!([Scope::Append.as_str()])),
            ("oa_sync_streams", json!([])),
        ];
        assert_eq!(judged(&of_the_bridge), Err(RefusalCode::Forbidden));
        for (field, value, code) in [
            ("iss", json!("https://other.example"), RefusalCode::InvalidToken),
            ("aud", json!([AUDIENCE]), RefusalCode::InvalidToken),
            ("sub", json!("user:8/session:s1"), RefusalCode::InvalidToken),
            ("exp", json!(NOW + 10_000), RefusalCode::TokenTooOld),
        ] {
            assert_eq!(judged(&[(field, value)]), Err(code), "{field}");
        }
    }
}
