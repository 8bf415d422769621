//! Identities: SpacetimeDB derives one from the issuer and the subject of a token.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use spacetime_sync_proto::Secret;
use spacetime_sync_proto::access::SERVICE_SUBJECT;
use spacetimedb_sdk::Identity;

/// Why a text is not a token. It never shows the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAToken(&'static str);

/// The identity, in hex, of a token's bearer. Does not check the signature.
pub fn of_token(token: &Secret) -> Result<String, NotAToken> {
    let payload = token.expose().split('.').nth(1).ok_or(NotAToken("expected a JWT"))?;
    let payload = URL_SAFE_NO_PAD
        .decode(payload)
        .map_err(|_| NotAToken("expected a JWT with a payload in base64url"))?;
    let claims: Value = serde_json::from_slice(&payload).map_err(|_| NotAToken("expected claims in JSON"))?;
    match (claims["iss"].as_str(), claims["sub"].as_str()) {
        (Some(issuer), Some(subject)) => Ok(Identity::from_claims(issuer, subject).to_hex().to_string()),
        _ => Err(NotAToken("expected the claims iss and sub")),
    }
}

/// The identity, in hex, of the bridge whose tokens this issuer signs.
pub fn of_bridge(issuer: &str) -> String {
    Identity::from_claims(issuer, SERVICE_SUBJECT).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridges_token_leads_to_the_bridges_identity() {
        let claims = format!(r#"{{"iss":"https://lane.example","sub":"{SERVICE_SUBJECT}"}}"#);
        let token = Secret::from(format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims)));
        let identity = of_token(&token).unwrap();
        assert_eq!(identity, of_bridge("https://lane.example"));
        assert_eq!(identity.len(), 64);
    }

    #[test]
    fn a_text_that_is_not_a_token_is_refused_without_showing_it() {
        for text in ["", "abc", "a.!.c", "a.e30.c"] {
            let error = of_token(&Secret::from(text.to_owned())).unwrap_err().to_string();
            assert!(error.starts_with("expected "), "{error}");
        }
    }
}
