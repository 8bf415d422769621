//! What the tests of the lane stand on: real processes to run it with, and faults to break it with.

pub mod postgres;
pub mod proxy;
