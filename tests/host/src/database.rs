//! What everybody may ask about a database: its identity, its names and its owner.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use spacetimedb_client_api_messages::name::GetNamesResponse;
use spacetimedb_lib::ser::serde::SerializeWrapper;

use crate::error::Failure;
use crate::node::App;
use crate::registry::NameOrIdentity;

/// The official server answers in SATS-JSON, in which the kind of module is a sum type with an empty payload.
pub(crate) async fn info(State(node): State<App>, Path(name): Path<NameOrIdentity>) -> Result<Response, Failure> {
    let database = node.find(&name)?.database();
    let body = json!({
        "database_identity": SerializeWrapper::from_ref(&database.database_identity),
        "owner_identity": SerializeWrapper::from_ref(&database.owner_identity),
        "host_type": { "Wasm": [] },
        "initial_program": SerializeWrapper::from_ref(&database.initial_program),
    });
    Ok(Json(body).into_response())
}

pub(crate) async fn identity(State(node): State<App>, Path(name): Path<NameOrIdentity>) -> Result<String, Failure> {
    match &name {
        // An identity resolves to itself, whether or not a database has it.
        NameOrIdentity::Identity(identity) => Ok(identity.to_string()),
        NameOrIdentity::Name(_) => Ok(node.find(&name)?.identity.to_string()),
    }
}

pub(crate) async fn names(State(node): State<App>, Path(name): Path<NameOrIdentity>) -> Result<Response, Failure> {
    let names = node.find(&name)?.name.into_iter().collect();
    Ok(Json(GetNamesResponse { names }).into_response())
}
