//! The seeded simulation of the lane: the shipped code of its pure parts, run against models of everything else under
//! virtual time.
//!
//! **Shipped code in it**: the whole lane of the bridge ([`Lane`]), the module's rules
//! ([`append::decide`], [`checkpoint::decide`]), the whole client but for what it talks and stores
//! with ([`Session`]), and its applier with its transactions. **Models**: the authority (logs with their chains, `published_seq`, writers, locks, leads),
//! SpacetimeDB (frames, heads, grants, what is committed and what is durable, snapshots), the connections, the
//! clients' stores. What runs the bridge is an adapter: each question and each answer is a step of its own.
//!
//! **Injected**: see [`Fault`]. Connections break, fall silent or are late; calls of a dead connection arrive late;
//! calls whose outcome is unknown, done or not; rows lost, repeated and reordered; pages and subscriptions that fail;
//! processes that die between any two steps and come back, that stand still, that are stopped; SpacetimeDB that loses
//! what is not durable, is set back to a snapshot or wiped; an authority that is away, whose rows are locked, whose clock
//! jumps, whose chain hashes are none; rewinds that are refused; links whose end is told when the next one serves; two bridges with and without a lead; stores that are busy, roll back, fail, or lose their last writes; failing
//! handlers and slow consumers; windows that are swept, an authority that is purged, windows that are filled anew; grants taken and given back; writers that repeat; and what nobody should ever meet:
//! altered payloads, events of another origin, rows and pages that are not what they claim.
//!
//! **Not injected**: history out of the authority for clients below the window (they stop, and are left there), an authority
//! that is restored to an earlier time, and what an operator does about it; tokens
//! that are refused or end; delivery without confirmed reads; bytes that are no frame (see the small cases of
//! `proto`); a row that was forged together with all that could contradict it. The order of messages on one connection is
//! TCP's, but for the rows of subscriptions. One assumption: what SpacetimeDB answers under confirmed reads waits until
//! everything that was committed before is durable, also the answer to a call that changed nothing.
//!
//! **The oracle** is the authority's log; see `oracle.rs`. A seed replays exactly. A failing run is
//! [minimised](shrink).
//!
//! [`Lane`]: spacetime_sync_lane::Lane
//! [`append::decide`]: spacetime_sync_rules::append::decide
//! [`checkpoint::decide`]: spacetime_sync_rules::checkpoint::decide
//! [`Session`]: spacetime_sync_client::session::Session

mod agenda;
mod authority;
mod bridge;
mod client;
mod coverage;
mod fault;
mod host;
mod net;
mod oracle;
mod run;
mod setup;
mod shrink;
mod store;
mod strike;
mod world;

pub use agenda::Micros;
pub use coverage::Coverage;
pub use fault::{Fault, Planned};
pub use run::{Failure, Report, run, run_seeds};
pub use setup::{Defect, Setup};
pub use shrink::{Story, shrink};
pub use world::{Ended, Violation};
