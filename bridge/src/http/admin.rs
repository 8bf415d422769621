//! Guards everything below `/internal/` with the admin credential.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use spacetime_sync_issuer::denial::Denial;
use spacetime_sync_issuer::http::refusal::refuse;
use spacetime_sync_proto::access::REVOKED_PATH;
use spacetime_sync_proto::{RefusalCode, Secret};
use subtle::ConstantTimeEq as _;

use super::Side;

pub(super) const METRICS_PATH: &str = "/internal/v1/spacetime/sync/metrics";
const GUARDED: &str = "/internal";

/// The hash of the admin credential. Hashes have one length, so that comparing them reveals nothing.
#[derive(Clone)]
pub struct AdminToken([u8; 32]);

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminToken(secret)")
    }
}

impl AdminToken {
    /// Hashes a credential.
    pub fn new(token: &Secret) -> Self {
        Self(hash(token.expose().as_bytes()))
    }

    /// Whether the value of an `Authorization` header is this credential. The comparison takes constant time.
    fn is(&self, authorization: &[u8]) -> bool {
        let (scheme, token) = authorization.split_at_checked(7).unwrap_or((b"", b""));
        let right = self.0.ct_eq(&hash(token));
        scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(right)
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    hash.copy_from_slice(digest.as_ref());
    hash
}

/// Lets only an admin in, and a gate to the one route that is for gates. If the configuration has no admin credential,
/// nobody is an admin, but the metrics are open.
pub(super) async fn guard(State(side): State<Arc<Side>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let guarded = path == GUARDED || path.strip_prefix(GUARDED).is_some_and(|rest| rest.starts_with('/'));
    let open = !guarded || (path == METRICS_PATH && side.admin.is_none());
    let authorization = request.headers().get(header::AUTHORIZATION);
    let is = |known: &Option<AdminToken>| match (known, authorization) {
        (Some(known), Some(value)) => known.is(value.as_bytes()),
        _ => false,
    };
    let gate = path == REVOKED_PATH && is(&side.gate);
    if open || is(&side.admin) || gate {
        return next.run(request).await;
    }
    let denial = Denial::new(
        RefusalCode::Unauthorized,
        "expected the admin credential as a bearer token",
    );
    refuse(&match &side.desk {
        Some(desk) => desk.issuer.counted(denial),
        None => denial,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_credential_is_accepted() {
        let admin = AdminToken::new(&Secret::from("0123456789abcdef".to_owned()));
        for (value, expected) in [
            ("Bearer 0123456789abcdef", true),
            ("bearer 0123456789abcdef", true),
            ("Bearer 0123456789abcde", false),
            ("Bearer 0123456789abcdef0", false),
            ("Bearer  0123456789abcdef", false),
            ("Basic 0123456789abcdef", false),
            ("0123456789abcdef", false),
            ("Bearer ", false),
            ("", false),
        ] {
            assert_eq!(admin.is(value.as_bytes()), expected, "{value:?}");
        }
        assert!(!format!("{admin:?}").contains("0123"));
    }
}
