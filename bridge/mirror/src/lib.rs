//! The mirror: tells relays of Nostr, by a policy that is data, what the authority has committed.
//!
//! It is a process of its own beside the lane, and never a step of it: it reads the authority's log by position, and takes no
//! lock that anybody of the lane waits for. What is to be published is in the authority's outbox, with everything that the event
//! of Nostr is made of. So one thing has one id, whenever it is published and however often the mirror dies.
//!
//! [`things`], [`courier`], [`verdict`], [`batch`], [`reflection`], [`adoption`] and [`announcement`] decide and do nothing else;
//! [`run`] carries out. The mirror never publishes a payload, and never shows its key.

pub mod adoption;
pub mod announcement;
pub mod batch;
pub mod courier;
pub mod key;
pub mod operator;
pub mod reflection;
pub mod relay;
pub mod run;
mod session;
pub mod settings;
pub mod status;
pub mod tail;
pub mod things;
pub mod verdict;
mod wire;
