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
use spacetime_sync_doors::asker::asker;
use spacetime_sync_proto::access::SyncClaims;
use spacetime_sync_proto::{Label, RefusalCode};

use super::Desk;
use super::refusal::refuse;
use crate::denial::Denial;
use crate::json::object;
use crate::revocation::{AT_MOST, REASON_BYTES, Revoked, Whom};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revocation {
    session_id: Option<Label>,
    #[serde(default)]
    session_ids: Vec<Label>,
    #[serde(default)]
    user_ids: Vec<Label>,
    #[serde(default)]
    device_ids: Vec<Label>,
    #[serde(default)]
    reason: String,
}

/// Revokes sessions, and all those of users and devices. Answers when the authority has recorded it, and says which
/// sessions these are, whether the module has taken it, too, and which of the named sessions never had a token.
pub(super) async fn revoke(
    State(desk): State<Option<Arc<Desk>>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    sent: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(desk) = desk else {
        return refuse(&Denial::unavailable("this bridge issues no tokens"));
    };
    let (whom, reason) = match read(&body) {
        Ok(revocation) => revocation,
        Err(denial) => return refuse(&denial),
    };
    let admin = Actor::admin(asker(&sent, peer.ip(), desk.proxy).address);
    // Runs in a task of its own, so that a revocation that has begun is carried out even if the admin hangs up.
    let revoked = tokio::spawn(async move { desk.issuer.revoke(&desk.messenger, whom, &reason, &admin).await });
    let unknown = |_| Err(Denial::unavailable("the revocation was interrupted; ask again"));
    match revoked.await.unwrap_or_else(unknown) {
        Ok(Revoked {
            sessions,
            delivered,
            unknown,
        }) => Json(json!({ "revoked": sessions, "delivered": delivered, "unknown": unknown })).into_response(),
        Err(denial) => refuse(&denial),
    }
}

/// The sessions that were revoked lately, for a gate: the whole list each time, and the database that tokens are for.
pub(super) async fn revoked(State(desk): State<Option<Arc<Desk>>>) -> Response {
    let Some(desk) = desk else {
        return refuse(&Denial::unavailable("this bridge issues no tokens"));
    };
    match desk.issuer.recently_revoked().await {
        Ok(revoked) => Json(json!({ "revoked": revoked, "pin": desk.issuer.pin() })).into_response(),
        Err(denial) => refuse(&denial),
    }
}

fn read(body: &[u8]) -> Result<(Whom, String), Denial> {
    let invalid = |message: String| Denial::new(RefusalCode::InvalidRequest, message);
    let revocation: Revocation = object(body).map_err(|error| {
        invalid(format!(
            "the body is not a revocation (line {}, column {}): expected an object with session_id, session_ids, \
             user_ids or device_ids, and reason",
            error.line(),
            error.column()
        ))
    })?;
    let mut whom = Whom {
        sessions: revocation.session_ids,
        users: revocation.user_ids,
        devices: revocation.device_ids,
    };
    whom.sessions.extend(revocation.session_id);
    let named = whom.sessions.len() + whom.users.len() + whom.devices.len();
    if !(1..=AT_MOST).contains(&named) {
        return Err(invalid(format!(
            "expected 1 to {AT_MOST} sessions, users and devices, found {named}"
        )));
    }
    for session_id in &whom.sessions {
        SyncClaims::check_session_name(session_id).map_err(|unusable| invalid(unusable.to_string()))?;
    }
    if revocation.reason.len() > REASON_BYTES || revocation.reason.contains('\0') {
        return Err(invalid(format!(
            "reason: expected at most {REASON_BYTES} bytes of text"
        )));
    }
    Ok((whom, revocation.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_revocation_is_refused() {
        let named = |body: &str| read(body.as_bytes()).unwrap().0;
        assert_eq!(named(r#"{"session_id":"a","session_ids":["b"]}"#).sessions.len(), 2);
        let whom = named(r#"{"user_ids":["7"],"device_ids":["d"]}"#);
        assert_eq!((whom.users[0].as_str(), whom.devices[0].as_str()), ("7", "d"));
        let many = format!(r#"{{"session_ids":{:?},"user_ids":["7"]}}"#, vec!["a"; AT_MOST]);
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
