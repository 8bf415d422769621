//! What the lane survives: quick versions of the drills of `scripts/chaos`, and parity while everything moves.

mod drills;
mod parity;
