//! `/v1/identity`: new identities, short-lived tokens, and the public key that verifies them.
//!
//! The host stores no identities. Whoever holds a token has its identity.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::auth::Caller;
use crate::error::Failure;
use crate::node::App;

/// Long enough to open a connection with the token.
const WEBSOCKET_TOKEN_LIFETIME: Duration = Duration::from_secs(60);

pub(crate) async fn create(State(node): State<App>) -> Result<Response, Failure> {
    let caller = Caller::mint(&node)?;
    Ok(Json(json!({ "identity": caller.identity(), "token": caller.token })).into_response())
}

pub(crate) async fn websocket_token(State(node): State<App>, request: Request) -> Result<Response, Failure> {
    let (parts, _) = request.into_parts();
    let caller = Caller::of_request(&node, &parts).await?.ok_or(Failure::TokenRequired)?;
    let token = caller.short_lived_token(&node, WEBSOCKET_TOKEN_LIFETIME)?;
    Ok(Json(json!({ "token": token })).into_response())
}

pub(crate) async fn public_key(State(node): State<App>) -> Response {
    (
        [(header::CONTENT_TYPE, "application/pem-certificate-chain")],
        node.keys.public_pem.to_vec(),
    )
        .into_response()
}
