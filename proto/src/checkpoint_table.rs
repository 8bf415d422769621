//! The table in which the client's SQLite store keeps checkpoints. Only the store writes it; the operator's tools read
//! it.

/// The table's name.
pub const TABLE: &str = "spacetime_sync_checkpoint";

/// Selects `seq` and `chain_hash` of the stream whose id is the first parameter.
pub const SELECT: &str = "SELECT seq, chain_hash FROM spacetime_sync_checkpoint WHERE stream_id = ?1";

/// Selects whether the stream's checkpoint has reached the seq in the second parameter. No row if it has no checkpoint.
pub const SELECT_REACHED: &str = "SELECT seq >= ?2 FROM spacetime_sync_checkpoint WHERE stream_id = ?1";
