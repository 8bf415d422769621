//! What SpacetimeDB calls by itself: when the database is created, and around every connection, HTTP call and SQL
//! request.

use spacetime_sync_proto::contract::{Contract, ContractRow};
use spacetimedb::{ReducerContext, Table, reducer};

use super::sweep_log;
use crate::access::admit;
use crate::refuse::Refused;
use crate::tables::{SyncContract, SyncTrust, sync_contract, sync_trust};

#[reducer(init)]
pub fn init(ctx: &ReducerContext) {
    ctx.db.sync_trust().insert(SyncTrust {
        id: 0,
        owner: ctx.sender(),
        bridge: None,
        key_secret: Vec::new(),
        issuer: None,
    });
    write_contract(ctx);
}

/// SpacetimeDB runs no reducer when a module is updated, so the first connection after an update writes the rows of the
/// contract before it can read them. Then the caller is admitted or refused.
#[reducer(client_connected)]
pub fn client_connected(ctx: &ReducerContext) -> Result<(), Refused> {
    let held = ctx.db.sync_contract();
    let is_current = |ours: ContractRow| held.id().find(ours.id).is_some_and(|held| held == row(ours));
    if !Contract::our_rows().into_iter().all(is_current) {
        write_contract(ctx);
    }
    admit(ctx)
}

fn row(row: ContractRow) -> SyncContract {
    let ContractRow {
        id,
        protocol,
        schema_version,
        schema_hash,
    } = row;
    SyncContract {
        id,
        protocol,
        schema_version,
        schema_hash,
    }
}

fn write_contract(ctx: &ReducerContext) {
    sweep_log::schedule(ctx);
    for ours in Contract::our_rows() {
        ctx.db.sync_contract().id().delete(ours.id);
        ctx.db.sync_contract().insert(row(ours));
    }
}
