//! What the parties agree on holds in each of them.

mod vectors;
