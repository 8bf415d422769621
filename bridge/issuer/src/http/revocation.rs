//! The routes on which an admin revokes sessions and a gate hears of it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::json;
use spacetime_sync_authority::Actor;
use spacetime_sync_proto::access::SyncClaims;
use spacetime_sync_proto::{Label, RefusalCode};

use super::Desk;
use super::refusal::refuse;
use super::token::asker;
use crate::denial::Denial;
use crate::json::object;
use crate::revocation::{REASON_BYTES, Revoked, SESSIONS};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revocation {
    session_id: Option<Label>,
    #[serde(default)]
    session_ids: Vec<Label>,
    #[serde(default)]
    reason: String,
}

/// Revokes sessions. Answers when the authority has recorded it, and says whether the module has taken it, too, and
/// which of the sessions never had a token.
pub(super) async fn revoke(
    State(desk): State<Option<Arc<Desk>>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    sent: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(desk) = desk else {
        return refuse(&Denial::unavailable("this bridge issues no tokens"));
    };
    let (session_ids, reason) = match read(&body) {
        Ok(revocation) => revocation,
        Err(denial) => return refuse(&denial),
    };
    let admin = Actor::admin(asker(&sent, peer.ip(), desk.behind_proxy));
    // Runs in a task of its own, so that a revocation that has begun is carried out even if the admin hangs up.
    let revoked = tokio::spawn({
        let ids = session_ids.clone();
        async move { desk.issuer.revoke(&desk.messenger, &ids, &reason, &admin).await }
    });
    let unknown = |_| Err(Denial::unavailable("the revocation was interrupted; ask again"));
    match revoked.await.unwrap_or_else(unknown) {
        Ok(Revoked { delivered, unknown }) => {
            Json(json!({ "revoked": session_ids, "delivered": delivered, "unknown": unknown })).into_response()
        }
        Err(denial) => refuse(&denial),
    }
}

/// The sessions that were revoked lately, for a gate: the whole list each time.
pub(super) async fn revoked(State(desk): State<Option<Arc<Desk>>>) -> Response {
    let Some(desk) = desk else {
        return refuse(&Denial::unavailable("this bridge issues no tokens"));
    };
    match desk.issuer.recently_revoked().await {
        Ok(revoked) => Json(json!({ "revoked": revoked })).into_response(),
        Err(denial) => refuse(&denial),
    }
}

fn read(body: &[u8]) -> Result<(Vec<Label>, String), Denial> {
    let invalid = |message: String| Denial::new(RefusalCode::InvalidRequest, message);
    let revocation: Revocation = object(body).map_err(|error| {
        invalid(format!(
            "the body is not a revocation (line {}, column {}): expected an object with session_id or session_ids, and \
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
    for session_id in &session_ids {
        SyncClaims::check_session_name(session_id).map_err(|unusable| invalid(unusable.to_string()))?;
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
    fn an_invalid_revocation_is_refused() {
        assert_eq!(read(br#"{"session_id":"a","session_ids":["b"]}"#).unwrap().0.len(), 2);
        let many = format!(r#"{{"session_ids":{:?}}}"#, vec!["a"; SESSIONS + 1]);
        let long = format!(r#"{{"session_id":"a","reason":"{}"}}"#, "x".repeat(REASON_BYTES + 1));
        let nobodys = format!(r#"{{"session_ids":["a","{}"]}}"#, "s".repeat(114));
        for body in [
            "",
            r#"{"session_id":"bridge"}"#,
            &nobodys,
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
