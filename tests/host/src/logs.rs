//! `GET /v1/database/{name}/logs`: what the module wrote, one JSON object per line. Only the owner may read it.

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use crate::auth::Caller;
use crate::error::Failure;
use crate::node::App;
use crate::registry::NameOrIdentity;

#[derive(Deserialize)]
pub(crate) struct Params {
    /// Return only this many of the last lines.
    num_lines: Option<u32>,
    /// Keep the response open, and send each new line as it is written.
    #[serde(default)]
    follow: bool,
}

pub(crate) async fn logs(
    State(node): State<App>,
    Path(name): Path<NameOrIdentity>,
    Query(params): Query<Params>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Failure> {
    let entry = node.find(&name)?;
    caller.must_own(&entry, "view module logs")?;
    let module = node.module(&entry).await?;
    let lines = module
        .database_logger()
        .tail(params.num_lines, params.follow)
        .await
        .map_err(|_| Failure::Unavailable("Logs are temporarily not available"))?;
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, Body::from_stream(lines)).into_response())
}
