//! The gate before SpacetimeDB. SpacetimeDB answers any SQL of anybody whom the module admits, and never closes a
//! socket; the gate passes on only what a client of the lane says, for as long as its token is valid.
//!
//! [`decide`] judges every message of one connection, [`query`] is the grammar of the subscriptions, [`registry`] says
//! who does too much, [`backlog`] who is too slow, [`access`] whose token is good. All of them are pure: they take time
//! as an argument. [`frames`] cuts bytes into messages. [`relay`] carries one connection, [`serve`]
//! accepts them, and [`bridge`] asks the bridge which sessions were revoked and which database is the right one.
//!
//! What SpacetimeDB says goes to the client as it came: the gate reads the lengths of its frames and nothing else.
//!
//! *Never*: a key. Whoever has keys hands in a [`access::Verifier`].

pub mod access;
pub mod addresses;
pub mod backlog;
pub mod bridge;
pub mod counters;
pub mod decide;
pub mod frames;
mod lead;
mod operator;
pub mod query;
pub mod registry;
mod relay;
mod request;
mod seat;
pub mod serve;
pub mod settings;
