//! What operators meet: restores, retention, and what is left of a stream then; quick versions of the drills of
//! `scripts/chaos`; parity while everything moves.

mod drills;
mod parity;
mod restore;
mod retention;
mod stale;
