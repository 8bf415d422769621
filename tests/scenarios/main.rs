//! Scenarios on real processes: every fact is looked up where a user would see it.

mod lane;
