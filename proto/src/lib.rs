//! The contract of the lane: everything that authority, bridge, module and client must agree on.
//!
//! Ids, identities and limits ([`id`], [`identity`], [`limit`]), hashes and the chain ([`hash`]), canonical JSON ([`canonical`]), events and their
//! frames ([`event`], [`frame`]), positions and frame rows ([`position`]), sections of a stream ([`Section`]), seals
//! ([`seal`]), pages of the authority's log ([`page`]), documents that a stream carries by key ([`document`]), retention classes ([`retention`]), rewinds ([`rewind`]), the
//! authority epoch ([`epoch`]), the journal ([`journal`]), the closed set of refusal codes ([`refusal`]), positions that a stream cannot be
//! continued from ([`stale`]), what sessions tell one another in passing ([`signal`]), states of assignments
//! ([`assignment`]), what becomes of events of the outbox ([`outbox`]), keys of Nostr ([`nostr`]), who may see and do what ([`access`]), the client's checkpoint table,
//! which tools read ([`checkpoint_table`]), and the contract's own version ([`contract`]). [`Secret`] and [`error_text`]
//! stand here because every crate needs them.
//!
//! The crate does no IO, reads no clock and needs no runtime. It builds for `wasm32-unknown-unknown` as well as for a
//! desktop.

pub mod access;
pub mod assignment;
pub mod canonical;
pub mod checkpoint_table;
pub mod contract;
pub mod document;
pub mod epoch;
mod error_text;
pub mod event;
pub mod frame;
pub mod hash;
pub mod heads;
mod hex;
pub mod id;
pub mod identity;
pub mod journal;
mod known;
pub mod limit;
pub mod names;
pub mod nostr;
pub mod outbox;
pub mod page;
pub mod position;
pub mod refusal;
pub mod retention;
pub mod rewind;
pub mod seal;
mod secret;
mod section;
pub mod signal;
mod sql_name;
pub mod stale;

pub use assignment::{AssignmentSide, AssignmentState};
pub use canonical::{canonical_json, document_hash};
pub use error_text::error_text;
pub use event::Event;
pub use frame::{Frame, FrameError};
pub use hash::{ChainHash, PayloadHash};
pub use id::{IdempotencyKey, InvalidId, Kind, Label, Seq, StreamId};
pub use identity::{DatabasePin, IdentityHex};
pub use nostr::{NostrKey, NostrSignature};
pub use outbox::OutboxStatus;
pub use position::{FrameRow, Position, StreamProgress};
pub use refusal::{Refusal, RefusalCode};
pub use seal::{Seal, SealKey, SealKeyId, Sealer};
pub use secret::Secret;
pub use section::Section;
pub use signal::{SignalKind, SubjectKind};
pub use sql_name::sql_name;
pub use stale::{StaleCursor, StaleReason};

/// The messages of `proto/proto/spacetime/sync/v1`, as `prost-build` generates them. `tests/wire.rs` keeps the two in step.
#[allow(missing_docs, unreachable_pub, clippy::all)]
#[rustfmt::skip]
pub mod wire;
