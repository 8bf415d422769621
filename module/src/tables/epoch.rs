//! Which history of the authority this lane carries, and the newest beat that the bridge has reported. Private.

use spacetimedb::table;

#[table(accessor = lane_epoch)]
pub struct LaneEpoch {
    /// Always 0.
    #[primary_key]
    pub id: u8,
    pub epoch: String,
    pub beat: u64,
}
