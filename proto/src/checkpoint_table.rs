//! The table in which the client's SQLite store keeps checkpoints. Only the store writes it; tools of the operator read it
//! from outside.

/// Its name.
pub const TABLE: &str = "spacetime_sync_checkpoint";

/// Reads `seq` and `chain_hash` of the stream whose id is the first parameter.
pub const SELECT: &str = "SELECT seq, chain_hash FROM spacetime_sync_checkpoint WHERE stream_id = ?1";

/// Says, if the stream has a checkpoint, whether it has reached the seq that is the second parameter.
pub const SELECT_REACHED: &str = "SELECT seq >= ?2 FROM spacetime_sync_checkpoint WHERE stream_id = ?1";
