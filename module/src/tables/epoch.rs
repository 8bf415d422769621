//! Which history of the authority this lane carries, and how far it had come when the bridge last said so. Private.

use spacetimedb::table;

#[table(accessor = lane_epoch)]
pub struct LaneEpoch {
    /// Always 0.
    #[primary_key]
    pub id: u8,
    pub epoch: String,
    pub beat: u64,
}
