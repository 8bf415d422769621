//! The discovery document of OpenID Connect and the key set, for all who verify the issuer's tokens.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Json, Response};
use serde_json::json;

use super::Desk;
use super::refusal::not_found;
use crate::keys::now;

pub(super) const DOCUMENT_PATH: &str = "/.well-known/openid-configuration";
pub(super) const KEYS_PATH: &str = "/.well-known/jwks.json";
/// How long caches may keep both: much shorter than a new key waits before it signs.
const CACHE: &str = "public, max-age=300";

pub(super) async fn document(State(desk): State<Option<Arc<Desk>>>) -> Response {
    let Some(desk) = desk else {
        return not_found().await;
    };
    let url = &desk.issuer.names().issuer;
    let document = json!({
        "issuer": url,
        "jwks_uri": format!("{url}{KEYS_PATH}"),
        "id_token_signing_alg_values_supported": ["ES256"],
        "response_types_supported": ["token"],
        "subject_types_supported": ["public"],
        "token_endpoint": format!("{url}{}", spacetime_sync_proto::access::TOKEN_PATH),
        "scopes_supported": spacetime_sync_proto::access::Scope::ALL,
    });
    ([(header::CACHE_CONTROL, CACHE)], Json(document)).into_response()
}

pub(super) async fn keys(State(desk): State<Option<Arc<Desk>>>) -> Response {
    let Some(desk) = desk else {
        return not_found().await;
    };
    (
        [(header::CACHE_CONTROL, CACHE)],
        Json(desk.issuer.keys().ring().jwks(now())),
    )
        .into_response()
}
