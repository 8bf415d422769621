//! The simulation, as part of every test run.

mod reliability;
