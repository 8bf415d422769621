//! The whole lane.
