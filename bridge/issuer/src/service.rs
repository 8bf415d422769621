//! The bridge's own credential: tokens that it signs for itself, which allow appending and nothing else.

use std::sync::Arc;
use std::time::Duration;

use spacetime_sync_proto::Label;
use spacetime_sync_proto::Secret;
use spacetime_sync_proto::access::{CLAIMS_VERSION, Compatibility, SERVICE_NAME, SERVICE_SUBJECT, Scope, SyncClaims};
use spacetime_sync_proto::contract::{PROTOCOL, SCHEMA_VERSION};
use spacetime_sync_stdb::tokens::Signer;

use super::issue::{Names, token_id};
use super::jws::Kind;
use super::keys::{KeyFolder, now_us};

/// Signs the bridge's own tokens.
#[derive(Debug)]
pub struct ServiceTokens {
    keys: Arc<KeyFolder>,
    names: Names,
    build_id: String,
    schema_version: u32,
    ttl_seconds: u64,
}

impl ServiceTokens {
    /// Its tokens name a build and a schema that `compatibility` serves: the bridge is no client, so it is never outdated.
    pub fn new(keys: Arc<KeyFolder>, names: &Names, compatibility: &Compatibility, ttl_seconds: u64) -> Self {
        Self {
            keys,
            names: names.clone(),
            build_id: compatibility.min_client_build_id.clone(),
            schema_version: SCHEMA_VERSION.clamp(compatibility.min_schema_version, compatibility.max_schema_version),
            ttl_seconds,
        }
    }
}

impl Signer for ServiceTokens {
    fn token(&self) -> Option<Secret> {
        let now_us = now_us();
        let now = now_us / 1_000_000;
        let name = Label::new(SERVICE_NAME).ok()?;
        let claims = SyncClaims {
            iss: self.names.issuer.clone(),
            aud: self.names.audience.clone(),
            sub: SERVICE_SUBJECT.to_owned(),
            iat: now,
            oa_iat_us: Some(now_us),
            nbf: now,
            exp: now + self.ttl_seconds,
            jti: token_id(),
            oa_user_id: name.clone(),
            oa_org_id: None,
            oa_session_id: name.clone(),
            oa_device_id: name.clone(),
            oa_sync_scopes: vec![Scope::Append],
            oa_sync_topics: Vec::new(),
            oa_sync_streams: Vec::new(),
            oa_claims_version: CLAIMS_VERSION.to_owned(),
            oa_client_surface: name,
            oa_client_build_id: self.build_id.clone(),
            oa_protocol_version: PROTOCOL.to_owned(),
            oa_schema_version: self.schema_version,
            oa_oldest_schema_version: None,
        };
        self.keys.ring().signer(now)?.sign(Kind::Sync, &claims).ok()
    }

    fn renew_after(&self) -> Duration {
        Duration::from_secs(self.ttl_seconds) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jws::Jws;
    use crate::keys::SigningKey;

    #[test]
    fn its_tokens_append_for_the_identity_that_is_configured() {
        let pem = SigningKey::generate().unwrap();
        let key = SigningKey::from_pem(&pem, 0, "test").unwrap();
        let public = key.public();
        let names = Names {
            issuer: "https://lane.example".to_owned(),
            audience: "openagents-sync".to_owned(),
        };
        let compatibility = Compatibility {
            min_client_build_id: "20260101T000000Z".to_owned(),
            min_schema_version: 7,
            max_schema_version: 9,
            ..Compatibility::default()
        };
        let service = ServiceTokens::new(Arc::new(KeyFolder::single(key)), &names, &compatibility, 900);
        let token = service.token().unwrap();
        let jws = Jws::parse(token.expose(), Kind::Sync).unwrap();
        let claims: SyncClaims = serde_json::from_str(jws.claims(&public).unwrap().get()).unwrap();
        assert_eq!(
            (claims.sub.as_str(), &claims.oa_sync_scopes[..]),
            ("service:bridge", &[Scope::Append][..])
        );
        assert_eq!(claims.exp - claims.iat, 900);
        assert_eq!(compatibility.check(&claims.client()), Ok(()));
        assert!(!format!("{service:?}").contains("PRIVATE"));
    }
}
