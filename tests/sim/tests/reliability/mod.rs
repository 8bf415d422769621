//! The tests that show that nothing is lost.

mod sim;
