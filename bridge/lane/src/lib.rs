//! Decides everything about the lane. The crate is pure: it does no IO, reads no clock and draws no random numbers of its
//! own, so the simulation runs the shipped code.
//!
//! [`Lane`] takes [`Event`]s with a time and answers with [`Command`]s. It consists of small machines: `streams` reads and
//! sends each stream, `link` keeps the connection to SpacetimeDB, `compare` compares SpacetimeDB with the authority,
//! `ledger` records what is published, `look` and `pace` find dirty streams, `wake` asks writers to wake the bridge, `beats`
//! tells the module about the authority's history and retention, `journal` brings back what only SpacetimeDB decides, and
//! [`health`] says how the bridge is.

mod backoff;
mod beats;
mod compare;
pub mod health;
mod ids;
mod journal;
mod lane;
mod ledger;
mod link;
mod look;
mod maps;
mod message;
mod notice;
mod pace;
mod streams;
mod wake;

use std::time::Duration;

use rand::rngs::SmallRng;

pub use ids::{CallId, LinkId, RequestId};
pub use journal::Backlog;
pub use lane::{Lane, Settings};
pub use look::Lag;
pub use message::{
    Answer, Checked, Command, Event, Failure, HeadSeal, Looked, Page, Reached, Record, Recorded, Report, Standing,
};
pub use notice::{Level, Notice};
pub use streams::{
    HaltReason, Limits, Load, ReadyFrame, Sealing, Verdict, check_frames, check_seal, is_doubtful, judge, prepare,
    prepare_looked, reconcile,
};

use ids::Ids;

/// What a machine needs while it takes a step.
struct Turn<'a> {
    now: Duration,
    ids: &'a mut Ids,
    dice: &'a mut SmallRng,
    out: &'a mut Vec<Command>,
}

impl<'a> Turn<'a> {
    fn new(now: Duration, ids: &'a mut Ids, dice: &'a mut SmallRng, out: &'a mut Vec<Command>) -> Self {
        Self { now, ids, dice, out }
    }
}
