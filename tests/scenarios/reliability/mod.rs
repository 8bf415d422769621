//! What operators meet: restores, retention, and what is left of a stream then.

mod restore;
mod retention;
