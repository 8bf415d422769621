//! What proves that nothing is lost.

mod sim;
