//! The contract that this module was built with: one row that anyone may read. Its columns never change, so a client of
//! any age can compare it before it reads anything else.

use spacetimedb::table;

#[table(accessor = sync_contract, public)]
pub struct SyncContract {
    /// Always 0.
    #[primary_key]
    pub id: u8,
    pub protocol: String,
    pub schema_version: u32,
    /// sha256 of the schema that bindings are generated from.
    pub schema_hash: String,
}
