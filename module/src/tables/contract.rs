//! What this module speaks: two rows that anyone may read, see `ContractRow` of the contract. Their columns never change,
//! so a bridge or a client of any age can read them before it reads anything else.

use spacetimedb::table;

#[table(accessor = sync_contract, public)]
#[derive(PartialEq)]
pub struct SyncContract {
    /// 0 for the schema version that the module was built with, 1 for the oldest that it works with.
    #[primary_key]
    pub id: u8,
    pub protocol: String,
    pub schema_version: u32,
    /// sha256 of the schema that bindings are generated from; empty in row 1.
    pub schema_hash: String,
}
