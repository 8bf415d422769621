//! Which contract this module speaks: one row that anyone may read. Its shape never changes, so that a client of
//! any age can compare it before it looks at anything else.

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
