//! Fuzzing of everything that parses foreign bytes: frames, pages, claims, tokens, keys, the checkpoint file, the
//! configuration, requests, answers, and the texts that processes exchange.
//!
//! A [`Target`](target::Target) is one such parser, with the properties that must hold besides not panicking. [`run`]
//! makes inputs from the corpus in the tree ([`corpus`], [`mutate`]) and passes them to the target. [`coverage`]
//! reports which inputs reached something new, in a build that counts it. A seed determines all inputs. Nothing here
//! uses a network.

pub mod corpus;
pub mod coverage;
pub mod mutate;
pub mod run;
pub mod target;

mod lane;
mod targets;

pub use targets::{ALL, named};
