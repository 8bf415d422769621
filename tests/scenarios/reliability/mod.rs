//! What operators meet: restores, retention, cuts of power, and what is left of a stream then.

mod power;
mod restore;
mod retention;
