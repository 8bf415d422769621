//! What operators meet: restores, retention, power cuts and their effect on streams. Also quick versions of the drills
//! of `scripts/chaos`, and parity while everything moves.

mod drills;
pub(crate) mod parity;
mod power;
pub(crate) mod restore;
mod retention;
mod stale;
