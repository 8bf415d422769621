//! What is behind the admin credential: everything below `/internal/`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::json;
use spacetime_sync_proto::{Label, RefusalCode};
use subtle::ConstantTimeEq as _;

use super::Side;
use super::refusal::refuse;
use crate::auth::denial::Denial;
use crate::auth::json::object;
use crate::auth::revocation::{REASON_BYTES, SESSIONS};
use spacetime_sync_proto::Secret;

pub(super) const METRICS_PATH: &str = "/internal/v1/spacetime/sync/metrics";
const GUARDED: &str = "/internal";

/// The credential of an admin, as a hash: of one length, whatever is compared with it.
#[derive(Clone)]
pub struct AdminToken([u8; 32]);

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminToken(secret)")
    }
}

impl AdminToken {
    /// Of a text.
    pub fn new(token: &Secret) -> Self {
        Self(hash(token.expose().as_bytes()))
    }

    /// Whether the value of a header `Authorization` is this one. Takes as long for one as for another.
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

/// Lets only an admin in. Without a credential in the configuration nobody is one, and the metrics are open.
pub(super) async fn guard(State(side): State<Arc<Side>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let guarded = path == GUARDED || path.strip_prefix(GUARDED).is_some_and(|rest| rest.starts_with('/'));
    let open = !guarded || (path == METRICS_PATH && side.admin.is_none());
    let authorization = request.headers().get(header::AUTHORIZATION);
    let admin = match (&side.admin, authorization) {
        (Some(admin), Some(value)) => admin.is(value.as_bytes()),
        _ => false,
    };
    if open || admin {
        return next.run(request).await;
    }
    let denial = Denial::new(
        RefusalCode::Unauthorized,
        "expected the admin credential as a bearer token",
    );
    refuse(&match &side.issuer {
        Some(issuer) => issuer.counted(denial),
        None => denial,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revocation {
    session_id: Option<Label>,
    #[serde(default)]
    session_ids: Vec<Label>,
    #[serde(default)]
    reason: String,
}

/// Revokes sessions. Answers when the authority has it, and says whether the module has it, too.
pub(super) async fn revoke(State(side): State<Arc<Side>>, body: Bytes) -> Response {
    let (Some(issuer), Some(messenger)) = (&side.issuer, &side.messenger) else {
        return refuse(&Denial::unavailable("this bridge issues no tokens"));
    };
    let (session_ids, reason) = match read(&body) {
        Ok(revocation) => revocation,
        Err(denial) => return refuse(&denial),
    };
    // On its own: once it is begun it is carried out, whether or not somebody waits for the answer.
    let revoked = tokio::spawn({
        let (issuer, messenger, ids) = (issuer.clone(), messenger.clone(), session_ids.clone());
        async move { issuer.revoke(&messenger, &ids, &reason).await }
    });
    let unknown = |_| Err(Denial::unavailable("the revocation broke off; ask again"));
    match revoked.await.unwrap_or_else(unknown) {
        Ok(delivered) => Json(json!({ "revoked": session_ids, "delivered": delivered })).into_response(),
        Err(denial) => refuse(&denial),
    }
}

fn read(body: &[u8]) -> Result<(Vec<Label>, String), Denial> {
    let invalid = |message: String| Denial::new(RefusalCode::InvalidRequest, message);
    let revocation: Revocation = object(body).map_err(|error| {
        invalid(format!(
            "the body is no revocation (line {}, column {}): expected an object with session_id or session_ids, and \
             reason",
            error.line(),
            error.column()
        ))
    })?;
    let mut session_ids = revocation.session_ids;
    session_ids.extend(revocation.session_id);
    if session_ids.is_empty() || session_ids.len() > SESSIONS {
        return Err(invalid(format!(
            "expected 1 to {SESSIONS} sessions, found {}",
            session_ids.len()
        )));
    }
    if revocation.reason.len() > REASON_BYTES || revocation.reason.contains('\0') {
        return Err(invalid(format!(
            "reason: expected at most {REASON_BYTES} bytes of text"
        )));
    }
    Ok((session_ids, revocation.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_credential_itself_is_the_credential() {
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

    #[test]
    fn what_is_no_revocation_is_refused() {
        assert_eq!(read(br#"{"session_id":"a","session_ids":["b"]}"#).unwrap().0.len(), 2);
        let many = format!(r#"{{"session_ids":{:?}}}"#, vec!["a"; SESSIONS + 1]);
        let long = format!(r#"{{"session_id":"a","reason":"{}"}}"#, "x".repeat(REASON_BYTES + 1));
        for body in [
            "",
            "{}",
            "[]",
            r#"{"session_id":"a b"}"#,
            r#"{"session_id":"a","x":1}"#,
            &many,
            &long,
        ] {
            assert_eq!(
                read(body.as_bytes()).unwrap_err().code,
                RefusalCode::InvalidRequest,
                "{body:.40}"
            );
        }
    }
}
