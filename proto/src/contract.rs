//! The version of the contract. The module writes it into `sync_contract`, and every client and bridge compares it when
//! it connects. Bindings that no longer fit are thus a typed error, and never look like an empty database.

use std::fmt;

/// Name and version of the protocol.
pub const PROTOCOL: &str = "spacetime.sync.v1";
/// Version of tables, reducers, procedures and frames. Every change to them raises it.
pub const SCHEMA_VERSION: u32 = 10;
/// sha256 of what the bindings are generated from: the module's public tables, its reducers, procedures and their
/// types. `scripts/bindings` prints it, and the test `lane::contract::module_and_bindings_agree` fails when it is out
/// of date.
pub const SCHEMA_HASH: &str = "sha256:93c8ee787c5150ffc43b643349675077df4e8ee977e6dba3866b159b5c1c7dc3";

/// The contract that a module, bridge or client was built with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contract {
    /// See [`PROTOCOL`].
    pub protocol: String,
    /// See [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// See [`SCHEMA_HASH`].
    pub schema_hash: String,
}

impl Contract {
    /// The contract this code was built with.
    pub fn ours() -> Self {
        Self {
            protocol: PROTOCOL.to_owned(),
            schema_version: SCHEMA_VERSION,
            schema_hash: SCHEMA_HASH.to_owned(),
        }
    }
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} schema {} ({})",
            self.protocol, self.schema_version, self.schema_hash
        )
    }
}
