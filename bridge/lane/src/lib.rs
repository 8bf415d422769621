//! What the bridge decides about the lane. Pure: nothing here does IO, reads a clock or throws dice, so the simulation
//! runs the shipped code.

pub mod streams;

pub use streams::{
    CallId, Core, Effect, HaltReason, Input, Limits, LinkEpoch, Load, Prepared, Verdict, foreign_refusal, prepare,
    reconcile,
};
