//! `GET /v1/database/{name}/schema?version=9`: the module's definition as the bindings generator reads it.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use spacetimedb_lib::db::raw_def::v9::RawModuleDefV9;
use spacetimedb_lib::db::raw_def::v10::RawModuleDefV10;
use spacetimedb_lib::ser::serde::SerializeWrapper;

use crate::error::Failure;
use crate::node::App;
use crate::registry::NameOrIdentity;

#[derive(Deserialize)]
pub(crate) struct Params {
    version: Version,
}

#[derive(Deserialize)]
enum Version {
    #[serde(rename = "9")]
    V9,
    #[serde(rename = "10")]
    V10,
}

pub(crate) async fn schema(
    State(node): State<App>,
    Path(name): Path<NameOrIdentity>,
    Query(params): Query<Params>,
) -> Result<Response, Failure> {
    let module = node.module(&node.find(&name)?).await?;
    let definition = module.info().module_def.as_ref().clone();
    Ok(match params.version {
        Version::V9 => Json(SerializeWrapper::new(RawModuleDefV9::from(definition))).into_response(),
        Version::V10 => Json(SerializeWrapper::new(RawModuleDefV10::from(definition))).into_response(),
    })
}
