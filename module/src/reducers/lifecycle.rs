//! What SpacetimeDB calls by itself: when the database is created, and around every connection, HTTP call and SQL
//! request.

use spacetime_sync_proto::contract::Contract;
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

/// SpacetimeDB runs no reducer when a module is updated, so the first connection after an update writes the contract
/// row before it can read it. Then the caller is admitted or refused.
#[reducer(client_connected)]
pub fn client_connected(ctx: &ReducerContext) -> Result<(), Refused> {
    let ours = contract_row();
    let current = ctx.db.sync_contract().id().find(0).is_some_and(|held| {
        held.protocol == ours.protocol
            && held.schema_version == ours.schema_version
            && held.schema_hash == ours.schema_hash
    });
    if !current {
        write_contract(ctx);
    }
    admit(ctx)
}

fn contract_row() -> SyncContract {
    let Contract {
        protocol,
        schema_version,
        schema_hash,
    } = Contract::ours();
    SyncContract {
        id: 0,
        protocol,
        schema_version,
        schema_hash,
    }
}

fn write_contract(ctx: &ReducerContext) {
    sweep_log::schedule(ctx);
    ctx.db.sync_contract().id().delete(0);
    ctx.db.sync_contract().insert(contract_row());
}
