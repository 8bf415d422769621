//! `POST /v1/database/{name}/call/{function}`: reducers and procedures, with their arguments as a JSON array.
//!
//! The answer comes when the transaction has committed, not when it is durable. A client that needs durability calls
//! over a WebSocket with confirmed reads.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use spacetimedb::Identity;
use spacetimedb::host::{FunctionArgs, ModuleHost, ReducerCallError, ReducerOutcome};
use spacetimedb_lib::ConnectionId;
use spacetimedb_lib::ser::serde::SerializeWrapper;

use crate::auth::Caller;
use crate::error::Failure;
use crate::node::App;
use crate::registry::NameOrIdentity;

/// The caller of a module over HTTP: a connection that lives for one request.
#[derive(Clone, Copy)]
pub(crate) struct Visit {
    pub(crate) identity: Identity,
    pub(crate) connection: ConnectionId,
}

/// Runs `work` between the module's connect and disconnect hooks.
///
/// It runs in a task of its own, because a client that hangs up cancels the handler of its request. The module must
/// still see that client leave.
pub(crate) async fn visit<F, Fut>(module: ModuleHost, caller: &Caller, work: F) -> Result<Response, Failure>
where
    F: FnOnce(ModuleHost, Visit) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Response, Failure>> + Send,
{
    let context = caller.context();
    let who = Visit {
        identity: caller.identity(),
        connection: ConnectionId::from_le_byte_array(rand::random()),
    };
    tokio::spawn(async move {
        module.call_identity_connected(context, who.connection).await?;
        let answer = work(module.clone(), who).await;
        module
            .call_identity_disconnected(who.identity, who.connection)
            .await
            .map_err(Failure::internal)?;
        answer
    })
    .await
    .map_err(Failure::internal)?
}

pub(crate) async fn call(
    State(node): State<App>,
    Path((name, function)): Path<(NameOrIdentity, String)>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    arguments: String,
) -> Result<Response, Failure> {
    let entry = node.find(&name)?;
    must_be_json(&headers)?;
    let module = node.module(&entry).await?;
    let arguments = FunctionArgs::Json(arguments.into());
    visit(module, &caller, async move |module: ModuleHost, who: Visit| {
        let connection = Some(who.connection);
        let called = module
            .call_reducer(who.identity, connection, None, None, None, &function, arguments.clone())
            .await;
        match called {
            Ok(call) => match call.outcome {
                ReducerOutcome::Committed => Ok((took(call.execution_duration), ()).into_response()),
                ReducerOutcome::Failed(text) => Err(Failure::ReducerFailed(*text)),
                ReducerOutcome::BudgetExceeded => Err(Failure::OutOfEnergy),
            },
            // It may be a procedure: reducers and procedures share one space of names.
            Err(ReducerCallError::NoSuchReducer | ReducerCallError::ScheduleReducerNotFound) => {
                let returned = module
                    .call_procedure(who.identity, connection, None, &function, arguments, true)
                    .await
                    .result?;
                let value = Json(SerializeWrapper::new(returned.return_val));
                Ok((took(returned.execution_duration), value).into_response())
            }
            Err(e) => Err(e.into()),
        }
    })
    .await
}

/// The official server reports in this header how long the module ran.
pub(crate) fn took(duration: Duration) -> [(&'static str, String); 1] {
    [("spacetime-execution-duration-micros", duration.as_micros().to_string())]
}

fn must_be_json(headers: &HeaderMap) -> Result<(), Failure> {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else {
        return Err(Failure::bad_request("Header of type `content-type` was missing"));
    };
    if kind.as_bytes().eq_ignore_ascii_case(b"application/json") {
        Ok(())
    } else {
        Err(Failure::NotJson)
    }
}
