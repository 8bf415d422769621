//! Publishing: creates, updates, clears and deletes databases, and says beforehand what an update would change.
//!
//! The work runs in a task of its own, so that a client that hangs up leaves no half-made database, and one at a time.
//! The engine decides what a module may change without breaking its clients.

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use spacetimedb::Identity;
use spacetimedb::host::{MigratePlanResult, UpdateDatabaseResult};
use spacetimedb::messages::control_db::{Database, HostType};
use spacetimedb_client_api_messages::name::{
    DatabaseName, MigrationPolicy as Policy, PrePublishAutoMigrateResult, PrePublishManualMigrateResult,
    PrePublishResult, PrettyPrintStyle as Style, PublishOp, PublishResult,
};
use spacetimedb_datastore::traits::Program;
use spacetimedb_lib::Hash;
use spacetimedb_schema::auto_migrate::{MigrationPolicy, MigrationToken, PrettyPrintStyle};

use crate::auth::Caller;
use crate::error::Failure;
use crate::node::{App, Node};
use crate::registry::{Entry, NameOrIdentity};

/// The parameters of publishing. The official server has more, which are about clusters; this host ignores them.
#[derive(Deserialize)]
pub(crate) struct Params {
    /// Whether to delete the rows of an existing database.
    #[serde(default)]
    clear: bool,
    #[serde(default)]
    policy: Policy,
    /// From the pre-publish route: proof that a publisher who breaks clients has seen the plan.
    token: Option<Hash>,
    host_type: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct PlanParams {
    #[serde(default)]
    style: Style,
    host_type: Option<String>,
}

pub(crate) async fn publish_unnamed(
    state: State<App>,
    params: Query<Params>,
    caller: Extension<Caller>,
    wasm: Bytes,
) -> Result<Response, Failure> {
    run(state.0, None, params.0, caller.0, wasm).await
}

pub(crate) async fn publish(
    state: State<App>,
    name: Path<NameOrIdentity>,
    params: Query<Params>,
    caller: Extension<Caller>,
    wasm: Bytes,
) -> Result<Response, Failure> {
    run(state.0, Some(name.0), params.0, caller.0, wasm).await
}

async fn run(
    node: App,
    target: Option<NameOrIdentity>,
    params: Params,
    caller: Caller,
    wasm: Bytes,
) -> Result<Response, Failure> {
    must_be_wasm(params.host_type.as_deref())?;
    if params.clear && target.is_none() {
        return Err(Failure::bad_request(
            "Clear database requires database name or identity",
        ));
    }
    detached(node, async move |node: App| {
        let existing = target.as_ref().and_then(|t| node.registry.find(t));
        let name = match &target {
            Some(NameOrIdentity::Name(name)) => Some(name.clone()),
            _ => None,
        };
        let (identity, op) = match existing {
            None => {
                let identity = match target {
                    Some(NameOrIdentity::Identity(identity)) => identity,
                    _ => Caller::mint(&node)?.identity(),
                };
                create(&node, name.clone(), identity, &caller, wasm).await?;
                (identity, PublishOp::Created)
            }
            Some(entry) if params.clear => {
                caller.must_own(&entry, "reset database")?;
                clear(&node, &entry, wasm).await?;
                (entry.identity, PublishOp::Updated)
            }
            Some(entry) => {
                caller.must_own(&entry, "update database")?;
                update(&node, &entry, policy(params.policy, params.token)?, wasm).await?;
                (entry.identity, PublishOp::Updated)
            }
        };
        Ok(Json(PublishResult::Success {
            domain: name,
            database_identity: identity,
            op,
        })
        .into_response())
    })
    .await
}

async fn create(
    node: &Node,
    name: Option<DatabaseName>,
    identity: Identity,
    caller: &Caller,
    wasm: Bytes,
) -> Result<(), Failure> {
    let program = check(node, identity, caller.identity(), &wasm).await?;
    let entry = node
        .registry
        .create(name, identity, caller.identity(), program)
        .map_err(Failure::internal)?;
    if let Err(e) = node.launch(&entry).await {
        node.stop(&entry).await?;
        node.registry.remove(identity).map_err(Failure::internal)?;
        return Err(e.into());
    }
    Ok(())
}

async fn clear(node: &Node, old: &Entry, wasm: Bytes) -> Result<(), Failure> {
    let program = check(node, old.identity, old.owner, &wasm).await?;
    let entry = node.registry.clear(old, program).map_err(Failure::internal)?;
    node.stop(old).await?;
    if let Err(e) = node.launch(&entry).await {
        node.stop(&entry).await?;
        node.registry.restore(old).map_err(Failure::internal)?;
        return Err(e.into());
    }
    Ok(())
}

/// Runs the program once in memory, so that a program that cannot start is refused before it is stored.
async fn check(node: &Node, identity: Identity, owner: Identity, wasm: &Bytes) -> Result<Hash, Failure> {
    let program = Program::from_bytes(HostType::Wasm.into(), &wasm[..]);
    let database = Database {
        id: 0,
        database_identity: identity,
        owner_identity: owner,
        host_type: HostType::Wasm,
        initial_program: program.hash,
        bootstrap_generation: 0,
    };
    node.hosts.check_module_validity(database, program).await?;
    node.programs.put(wasm).await.map_err(Failure::internal)
}

async fn update(node: &Node, entry: &Entry, policy: MigrationPolicy, wasm: Bytes) -> Result<(), Failure> {
    let program = wasm.to_vec().into_boxed_slice();
    let environment = Default::default();
    let updated = node
        .hosts
        .update_module_host(
            entry.database(),
            HostType::Wasm,
            entry.replica,
            program,
            policy,
            environment,
        )
        .await?;
    match updated {
        UpdateDatabaseResult::NoUpdateNeeded => Ok(()),
        UpdateDatabaseResult::UpdatePerformed {
            tx_offset,
            durable_offset,
        }
        | UpdateDatabaseResult::UpdatePerformedWithClientDisconnect {
            tx_offset,
            durable_offset,
        } => {
            let offset = tx_offset
                .await
                .map_err(|_| Failure::Unavailable("Database update failed: transaction was cancelled"))?;
            if let Some(mut durable) = durable_offset {
                durable.wait_for(offset).await.map_err(|_| {
                    Failure::Unavailable(
                        "Database update failed: database crashed while waiting for transaction confirmation",
                    )
                })?;
            }
            Ok(())
        }
        UpdateDatabaseResult::AutoMigrateError(reasons) => {
            Err(Failure::BadRequest(format!("Database update rejected: {reasons}")))
        }
        UpdateDatabaseResult::ErrorExecutingMigration(e) => Err(Failure::BadRequest(format!(
            "Failed to create or update the database: {e}"
        ))),
    }
}

/// Says what an update would change, and changes nothing.
pub(crate) async fn plan(
    State(node): State<App>,
    Path(name): Path<NameOrIdentity>,
    Query(params): Query<PlanParams>,
    Extension(caller): Extension<Caller>,
    wasm: Bytes,
) -> Result<Response, Failure> {
    must_be_wasm(params.host_type.as_deref())?;
    let entry = node.find(&name)?;
    caller.must_own(&entry, "update database")?;
    node.module(&entry).await?;
    let style = match params.style {
        Style::AnsiColor => PrettyPrintStyle::AnsiColor,
        Style::NoColor => PrettyPrintStyle::NoColor,
    };
    let program = wasm.to_vec().into_boxed_slice();
    let planned = node
        .hosts
        .migrate_plan(entry.database(), HostType::Wasm, entry.replica, program, style)
        .await?;
    let answer = match planned {
        MigratePlanResult::Success {
            old_module_hash,
            new_module_hash,
            plan,
            breaks_client,
            major_version_upgrade,
        } => {
            let token = MigrationToken {
                database_identity: entry.identity,
                old_module_hash,
                new_module_hash,
            }
            .hash();
            PrePublishResult::AutoMigrate(PrePublishAutoMigrateResult {
                migrate_plan: plan,
                break_clients: breaks_client,
                token,
                major_version_upgrade,
            })
        }
        MigratePlanResult::AutoMigrationError {
            error,
            major_version_upgrade,
        } => PrePublishResult::ManualMigrate(PrePublishManualMigrateResult {
            reason: error.to_string(),
            major_version_upgrade,
        }),
    };
    Ok(Json(answer).into_response())
}

/// Deletes a database for its owner. Deleting by identity succeeds if no such database exists.
pub(crate) async fn delete(
    State(node): State<App>,
    Path(name): Path<NameOrIdentity>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Failure> {
    detached(node, async move |node: App| {
        let entry = match (node.registry.find(&name), name) {
            (Some(entry), _) => entry,
            (None, NameOrIdentity::Identity(_)) => return Ok(().into_response()),
            (None, NameOrIdentity::Name(name)) => return Err(Failure::NoSuchName(name)),
        };
        caller.must_own(&entry, "delete database")?;
        node.registry.remove(entry.identity).map_err(Failure::internal)?;
        node.stop(&entry).await?;
        Ok(().into_response())
    })
    .await
}

/// Runs `work` to its end even if the client hangs up, and never beside other such work.
async fn detached<F, Fut>(node: App, work: F) -> Result<Response, Failure>
where
    F: FnOnce(App) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Response, Failure>> + Send,
{
    tokio::spawn(async move {
        let _alone = node.publishing.lock().await;
        work(node.clone()).await
    })
    .await
    .map_err(Failure::internal)?
}

fn policy(policy: Policy, token: Option<Hash>) -> Result<MigrationPolicy, Failure> {
    match (policy, token) {
        (Policy::Compatible, _) => Ok(MigrationPolicy::Compatible),
        (Policy::BreakClients, Some(token)) => Ok(MigrationPolicy::BreakClients(token)),
        (Policy::BreakClients, None) => Err(Failure::bad_request(
            "Migration policy is set to `BreakClients`, but no migration token was provided.",
        )),
    }
}

fn must_be_wasm(host_type: Option<&str>) -> Result<(), Failure> {
    match host_type {
        None => Ok(()),
        Some(kind) if kind.eq_ignore_ascii_case("wasm") => Ok(()),
        Some(kind) => Err(Failure::BadRequest(format!(
            "this host runs WebAssembly modules only, not {kind}"
        ))),
    }
}
