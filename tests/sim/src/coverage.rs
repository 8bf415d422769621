//! Counts of what really happened in runs.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use crate::fault::Fault;

/// Counts of the faults that struck and of their consequences.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    faults: BTreeMap<Fault, u64>,
    seen: BTreeMap<&'static str, u64>,
}

/// The consequences that a large run must meet, at least once per [`Coverage::FLOOR_SEEDS`] seeds.
const SEEN: &[&str] = &[
    "module: extended",
    "module: absorbed",
    "module: cut and extended",
    "module: seq_gap",
    "module: event_conflict",
    "module: chain_mismatch",
    "module: took what is no such frame",
    "ack: moved",
    "ack: repeated or behind",
    "bridge: link up",
    "bridge: heads in step",
    "bridge: heads ahead",
    "bridge: heads behind",
    "bridge: window refilled",
    "module: window begun anew",
    "module: rewind after another bridge appended",
    "bridge: stream halted",
    "bridge: forgery removed",
    "bridge: all streams compared",
    "bridge: woken",
    "bridge: stands by",
    "bridge: ack deadline",
    "bridge: question deadline",
    "bridge: lead taken",
    "client: hole paged",
    "client: duplicate dropped",
    "client: overrun",
    "client: resubscribed",
    "client: reconnected",
    "client: connection handed over",
    "client: connection overfull",
    "client: acknowledgement refused",
    "client: stopped in good order",
    "client: every stream stopped",
    "client: silence noticed",
    "client: stream stopped",
    "client: grant came back",
    "client: batch thrown away",
    "client: unsealed events not applied",
    "client: stream unfollowed",
    "client: stream read from the store again",
    "durable transactions lost with the host",
    "module: assignment opened",
    "module: assignment changed",
    "module: assignment expired",
    "module: assignment forgotten early",
    "module: assignment forgotten at its time",
    "module: name kept until the deadline",
    "module: name free again",
    "module: capability published",
    "module: capability of another user refused",
    "module: capability forgotten",
    "module: being brought back",
    "journal: page kept",
    "journal: page of an earlier turn refused",
    "journal: repeat absorbed",
    "bridge: journal closed",
    "bridge: assignments brought back",
    "journal: open, and nothing is lacking",
    "journal: open, and something is lacking",
    "journal: told everything anew",
    "journal: pass under way at link up",
    "journal: pass under way at restore",
    "authority: journal restored",
    "authority: entry of another history forgotten",
    "mirror: killed",
    "mirror: lead lost unnoticed",
    "mirror: two lead at once",
    "mirror: another one has moved the cursor",
    "mirror: answer of a relay to nobody",
    "mirror: authority away",
    "mirror: outcome not recorded",
    "mirror: SpacetimeDB away",
    "mirror: SpacetimeDB wiped",
    "mirror: SpacetimeDB restored",
    "mirror: missed a row",
    "mirror: row waits again",
    "mirror: entry sent",
    "mirror: entry parked",
    "mirror: parked entry retried",
    "mirror: entry shared by two policies",
    "mirror: forgotten before every relay had it",
    "mirror: took in what others enqueued",
    "mirror: parked what others enqueued",
    "relay: down",
    "relay: accepts and forgets",
    "relay: answers about another event",
    "relay: never answers",
    "relay: refuses for good",
    "relay: refuses for now",
    "outbox: changed by a mirror",
    "outbox: repeat absorbed",
    "outbox: refused",
    "outbox: full",
    "outbox: answer lost",
    "outbox: others enqueue",
];

impl Coverage {
    /// How many seeds a run needs before everything in the list must have happened.
    pub const FLOOR_SEEDS: u64 = 500;

    pub(crate) fn struck(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    pub(crate) fn seen(&mut self, what: &'static str) {
        self.seen_times(what, 1);
    }

    pub(crate) fn seen_times(&mut self, what: &'static str, times: u64) {
        if times > 0 {
            *self.seen.entry(what).or_default() += times;
        }
    }

    /// How often a fault struck.
    pub fn of(&self, fault: Fault) -> u64 {
        self.faults.get(&fault).copied().unwrap_or_default()
    }

    /// How often a consequence was seen.
    pub fn times(&self, what: &str) -> u64 {
        self.seen.get(what).copied().unwrap_or_default()
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        for (what, count) in &other.seen {
            *self.seen.entry(what).or_default() += count;
        }
    }

    /// What happened less than once in [`Self::FLOOR_SEEDS`] seeds although it is listed. A run that meets no faults
    /// proves nothing.
    pub fn missing(&self, seeds: u64) -> Vec<(&'static str, u64)> {
        let floor = (seeds / Self::FLOOR_SEEDS).max(1);
        let faults = Fault::ALL.iter().map(|fault| (fault.name(), self.of(*fault)));
        let seen = SEEN
            .iter()
            .map(|what| (*what, self.seen.get(what).copied().unwrap_or_default()));
        faults.chain(seen).filter(|(_, count)| *count < floor).collect()
    }

    /// The counts as JSON.
    pub fn to_json(&self) -> Value {
        let faults: Map<_, _> = Fault::ALL
            .iter()
            .map(|fault| (fault.name().to_owned(), json!(self.of(*fault))))
            .collect();
        json!({ "injected": faults, "seen": self.seen })
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<46} {:>12}", "injected", "times")?;
        for fault in Fault::ALL {
            writeln!(f, "  {:<44} {:>12}", fault.name(), self.of(*fault))?;
        }
        writeln!(f, "{:<46} {:>12}", "seen", "times")?;
        for (what, count) in &self.seen {
            writeln!(f, "  {what:<44} {count:>12}")?;
        }
        Ok(())
    }
}
