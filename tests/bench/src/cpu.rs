//! CPU time by process: what an event costs, wherever it is spent.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use spacetime_sync_tests::postgres::Postmaster;
use spacetime_sync_tests::process::Process;

use crate::client::ClientReport;

/// The processes of a lane that outlive a run, and what they have used so far.
pub(crate) struct Meter<'a> {
    postgres: Option<Postmaster>,
    bridge: &'a Process,
    host: Option<&'a Process>,
    before: [Option<Duration>; 3],
}

/// Microseconds of CPU for an event, by process. `None` is what this program did not start and thus cannot see.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cpu {
    /// All processes of Postgres while a backlog was written, before the run.
    pub(crate) writing: Option<f64>,
    /// All processes of Postgres during the run.
    pub(crate) postgres: Option<f64>,
    /// The bridge.
    pub(crate) bridge: f64,
    /// SpacetimeDB.
    pub(crate) host: Option<f64>,
    /// All clients together.
    pub(crate) clients: f64,
}

impl<'a> Meter<'a> {
    /// Begins to measure.
    pub(crate) fn start(postgres: Option<Postmaster>, bridge: &'a Process, host: Option<&'a Process>) -> Self {
        let mut meter = Self {
            postgres,
            bridge,
            host,
            before: [None; 3],
        };
        meter.before = meter.used();
        meter
    }

    /// What the lane and these clients used for so many events since then.
    pub(crate) fn read(&self, events: u64, clients: &[ClientReport]) -> Cpu {
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / events as f64;
        let after = self.used();
        let [postgres, bridge, host] =
            std::array::from_fn(|at| Some(each(after[at]?.saturating_sub(self.before[at]?))));
        let clients: f64 = clients.iter().map(|client| client.cpu_seconds).sum();
        Cpu {
            writing: None,
            postgres,
            bridge: bridge.unwrap_or_default(),
            host,
            clients: clients * 1e6 / events as f64,
        }
    }

    fn used(&self) -> [Option<Duration>; 3] {
        let of = |process: &Process| process.cpu().map(|cpu| cpu.whole());
        [
            self.postgres.and_then(Postmaster::cpu).map(|cpu| cpu.whole()),
            of(self.bridge),
            self.host.and_then(of),
        ]
    }
}

impl Cpu {
    /// All of it. What the run cannot see is left out.
    pub(crate) fn sum(&self) -> f64 {
        let seen = [self.writing, self.postgres, self.host];
        seen.into_iter().flatten().sum::<f64>() + self.bridge + self.clients
    }

    /// For the line of JSON.
    pub(crate) fn json(&self) -> Value {
        let two = |value: f64| (value * 100.0).round() / 100.0;
        json!({
            "postgres_writing": self.writing.map(two),
            "postgres": self.postgres.map(two),
            "bridge": two(self.bridge),
            "host": self.host.map(two),
            "clients": two(self.clients),
            "sum": two(self.sum()),
        })
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |value: Option<f64>| value.map_or("not seen".to_owned(), |value| format!("{value:.2} µs"));
        write!(f, "CPU per event: Postgres {}", us(self.postgres))?;
        if self.writing.is_some() {
            write!(f, " and {} for writing it before", us(self.writing))?;
        }
        write!(
            f,
            ", bridge {:.2} µs, host {}, clients {:.2} µs, sum {:.2} µs",
            self.bridge,
            us(self.host),
            self.clients,
            self.sum()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_has_all_that_is_seen() {
        let cpu = Cpu {
            writing: Some(10.0),
            postgres: Some(1.0),
            bridge: 3.0,
            host: Some(8.0),
            clients: 2.0,
        };
        assert!((cpu.sum() - 24.0).abs() < 1e-9);
        let unseen = Cpu {
            writing: None,
            postgres: None,
            host: None,
            ..cpu
        };
        assert!((unseen.sum() - 5.0).abs() < 1e-9);
        assert!(unseen.to_string().contains("Postgres not seen"), "{unseen}");
    }
}
