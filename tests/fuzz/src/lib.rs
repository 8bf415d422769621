//! Fuzzing of everything that parses foreign bytes: frames, pages, claims, tokens, keys, the checkpoint file, the
//! configuration, requests, answers, and the texts that cross a process.
//!
//! A [`Target`](target::Target) is one such place with what must hold of it beside that it does not panic. [`run`] makes
//! inputs out of the corpus in the tree ([`corpus`], [`mutate`]) and gives them to it; [`coverage`] says which of them
//! reached something new, in a build that counts it. What is made follows from a seed. Nothing here uses a network.

pub mod corpus;
pub mod coverage;
pub mod mutate;
pub mod run;
pub mod target;

mod lane;
mod targets;

pub use targets::{ALL, named};
