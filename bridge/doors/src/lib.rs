//! What all listeners of ours share: who asks ([`asker`]), how often ([`quota`], [`buckets`]), how often in vain
//! ([`failure`]), and on how many sockets ([`sockets`]).
//!
//! It never looks at a credential, and knows no route.

pub mod asker;
pub mod buckets;
pub mod failure;
pub mod quota;
pub mod sockets;
