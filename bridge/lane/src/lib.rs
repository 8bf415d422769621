//! What the bridge decides about the lane. Pure: nothing here does IO, reads a clock or throws dice, so the simulation
//! runs the shipped code.
//!
//! [`Lane`] takes [`Event`]s with a time and answers with [`Command`]s. It is made of small machines: `streams` reads and
//! sends each stream, `link` keeps the connection, `compare` holds SpacetimeDB against the authority, `ledger` records
//! what is published, `look` and `pace` find dirty streams, `wake` asks to be woken, `beats` says on the link which history
//! the authority holds and how long events are held, [`health`] says how the bridge is.

mod backoff;
mod beats;
mod compare;
pub mod health;
mod ids;
mod lane;
mod ledger;
mod link;
mod look;
mod message;
mod notice;
mod pace;
mod streams;
mod wake;

use std::time::Duration;

use rand::rngs::SmallRng;

pub use ids::{CallId, LinkId, RequestId};
pub use lane::{Lane, Settings};
pub use look::Lag;
pub use message::{Answer, Command, Event, Failure, Page, Record, Recorded, Standing};
pub use notice::{Level, Notice};
pub use streams::{HaltReason, Limits, Load, ReadyFrame, Verdict, is_doubtful, judge, prepare, reconcile};

use ids::Ids;

/// What a machine has at hand while it takes a step.
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
