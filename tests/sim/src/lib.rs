//! The seeded simulation of the lane: the shipped pure code, run against models of everything else under virtual time.
//!
//! **Shipped code**: the bridge's whole [`Lane`]; the module's rules, such as [`append`] and [`rewind`], which change
//! the logs, [`checkpoint::decide`], and the rules of assignments and of the journal; the client's whole [`Session`], and its applier with its transactions.
//! Adapters carry out what the machines order. Each question and each answer is a step of its own.
//!
//! **Models**: the authority (logs with their chains, `published_seq`, the journal, writers, locks, leads), sessions that open and
//! change assignments and publish capabilities (not by clients), SpacetimeDB (rows, what the clock does to them, grants, what is committed and what is durable, snapshots), the connections, and the clients' stores.
//!
//! **Injected**: every [`Fault`].
//! - Connections break, fall silent or are late. Calls of a dead connection arrive late, and so does the news of
//!   its end.
//! - Calls are lost, before or after they are done. Rewinds are refused. Pages and subscriptions fail. Rows are lost,
//!   repeated and reordered.
//! - Processes die between any two steps and come back, stand still, or are stopped. There are two bridges, with and
//!   without a lead. A bridge that has lost the lead does not notice for a while, and its rewinds arrive after the next
//!   leader has worked on the stream.
//! - SpacetimeDB loses what is not durable, is set back to a snapshot, or is wiped.
//! - The authority is away, its rows are locked, its clock jumps, its chain hashes become malformed. Writers repeat. Its
//!   journal, and nothing else of it, is restored from a backup.
//! - Stores are busy, roll back, fail, or lose their last writes. Handlers fail, and consumers are slow.
//! - Windows are swept, the authority is purged, and windows begin anew. Grants are revoked and given again.
//! - What nobody should ever meet: altered payloads, events of another origin, bytes that are no frame or another one than
//!   was stated, of one event or of more than a step of a rewind removes; rows and pages that are not what they claim.
//!
//! **Not injected**: a copy of SpacetimeDB from before the authority was restored; history out of the authority for clients below the window (they stop, and stay stopped); an
//! authority whose logs are restored to an earlier time, and what an operator does about it; more things than a module marks in
//! one look; tokens that are refused or end;
//! delivery without confirmed reads; a stated end that its frame contradicts, for clients that may not ask the authority
//! (they stop); a row that was forged together with everything that could contradict it; missing rows. The messages of one
//! connection stay in order, as over TCP, except for the rows of subscriptions. One assumption: under confirmed reads every
//! answer of SpacetimeDB waits until everything that was committed before is durable, even the answer to a call that changed
//! nothing.
//!
//! The mirror stands beside the lane and shares nothing with it, so it has a [world of its own](mirror), with its own faults and oracle.
//!
//! **The oracle** compares with the authority's log, see `oracle.rs`, and with what it keeps of assignments, see `work.rs`. A seed replays exactly. A failing run is
//! [minimised](shrink).
//!
//! [`Lane`]: spacetime_sync_lane::Lane
//! [`append`]: spacetime_sync_rules::append
//! [`rewind`]: spacetime_sync_rules::rewind
//! [`checkpoint::decide`]: spacetime_sync_rules::checkpoint::decide
//! [`Session`]: spacetime_sync_client::session::Session

mod agenda;
mod authority;
mod bridge;
mod client;
mod coverage;
mod fault;
mod host;
mod mirror;
mod net;
mod oracle;
mod run;
mod seal;
mod setup;
mod shrink;
mod store;
mod strike;
mod work;
mod world;

pub use agenda::Micros;
pub use coverage::Coverage;
pub use fault::{Fault, Planned};
pub use mirror::{MirrorSetup, Strike, Struck, run_mirror, shrink_mirror};
pub use run::{Failure, Report, run, run_seeds, stories};
pub use setup::{Defect, Setup};
pub use shrink::{Story, shrink};
pub use world::{Ended, Violation};
