//! What operators meet: restores, retention, cuts of power, and what is left of a stream then; quick versions of the drills
//! of `scripts/chaos`; parity while everything moves.

mod drills;
mod parity;
mod power;
mod restore;
mod retention;
mod stale;
