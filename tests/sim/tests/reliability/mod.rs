//! What proves that nothing is lost.

mod release;
mod sim;
