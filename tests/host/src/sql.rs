//! `POST /v1/database/{name}/sql`: runs one statement with the caller's rights and row-level filters.

use std::time::Instant;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use spacetimedb::host::ModuleHost;
use spacetimedb::identity::AuthCtx;
use spacetimedb_client_api_messages::http::{SqlStmtResult, SqlStmtStats};
use spacetimedb_lib::ProductTypeElement;

use crate::auth::Caller;
use crate::call::{Visit, took, visit};
use crate::error::Failure;
use crate::node::App;
use crate::registry::NameOrIdentity;

#[derive(Deserialize)]
pub(crate) struct Params {
    /// Whether to answer only once everything read or written is durable. The default, as on the official server.
    confirmed: Option<bool>,
}

pub(crate) async fn sql(
    State(node): State<App>,
    Path(name): Path<NameOrIdentity>,
    Query(params): Query<Params>,
    Extension(caller): Extension<Caller>,
    statement: String,
) -> Result<Response, Failure> {
    let entry = node.find(&name)?;
    let module = node.module(&entry).await?;
    let confirmed = params.confirmed.unwrap_or(true);
    visit(module, &caller, async move |module: ModuleHost, who: Visit| {
        let db = module.relational_db().clone();
        let durable = db.durable_tx_offset();
        let subscriptions = module.subscriptions().clone();
        let rights = AuthCtx::new(entry.owner, who.identity);
        let started = Instant::now();
        let mut columns = vec![];
        let ran =
            spacetimedb::sql::execute::run(db, statement, rights, Some(subscriptions), Some(module), &mut columns)
                .await
                .map_err(Failure::bad_request)?;
        let duration = started.elapsed();
        if confirmed && let Some(mut durable) = durable {
            let offset = ran.tx_offset.await.map_err(Failure::internal)?;
            durable.wait_for(offset).await.map_err(Failure::internal)?;
        }
        let schema = columns
            .into_iter()
            .map(|(name, ty)| ProductTypeElement::new(ty, Some(name)))
            .collect();
        let answer = [SqlStmtResult {
            schema,
            rows: ran.rows,
            total_duration_micros: duration.as_micros() as u64,
            stats: SqlStmtStats::from_metrics(&ran.metrics),
        }];
        Ok((took(duration), Json(answer)).into_response())
    })
    .await
}
