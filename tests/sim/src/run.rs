//! Runs: one, or many on all cores.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::agenda::Micros;
use crate::coverage::Coverage;
use crate::setup::Setup;
use crate::world::{Ended, Violation, World};

/// What came of many runs.
#[derive(Debug, Default)]
pub struct Report {
    /// How many seeds.
    pub seeds: u64,
    /// Steps taken in all.
    pub steps: u64,
    /// What happened.
    pub coverage: Coverage,
    /// Seeds that failed, by their number.
    pub failures: Vec<Failure>,
    /// How long the lane took to heal after its faults, a value for each seed.
    pub healed_after: Vec<Micros>,
    /// A hash over the traces of all seeds.
    pub trace: u64,
    /// How long it took.
    pub took: Duration,
}

/// A seed that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Which.
    pub seed: u64,
    /// What does not hold.
    pub violation: Violation,
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// A core that panics is a finding, told with the others, and not on standard error.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                before(panic);
            }
        }));
    });
}

/// Runs a setup to its end. Tells what happened if asked to.
pub fn run(setup: &Setup, tell: bool) -> Ended {
    silence_panics();
    QUIET.set(true);
    let ended = catch_unwind(AssertUnwindSafe(|| World::new(setup, tell).run()));
    QUIET.set(false);
    ended.unwrap_or_else(|panic| Ended {
        violation: Some(Violation {
            invariant: "no panic",
            what: message(&*panic),
            step: 0,
            at: 0,
        }),
        coverage: Coverage::default(),
        steps: 0,
        trace: 0,
        healed_after: 0,
        story: Vec::new(),
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (None, Some(text)) => text.clone(),
        (None, None) => "no message".to_owned(),
    }
}

/// Runs seeds from one on, on all cores, at most until so many have failed.
pub fn run_seeds(from: u64, seeds: u64, most_failures: usize) -> Report {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut report = Report::default();
    std::thread::scope(|scope| {
        let work = || {
            let mut part = Report::default();
            while part.failures.len() < most_failures {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                if nth >= seeds {
                    break;
                }
                let seed = from + nth;
                let ended = run(&Setup::of(seed), false);
                part.take(seed, ended);
            }
            part
        };
        let parts: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for part in parts {
            // A run's own panics are caught; another one is a defect of this function.
            report.add(part.join().expect("a part of the seeds"));
        }
    });
    report.failures.sort_by_key(|failure| failure.seed);
    report.failures.truncate(most_failures);
    report.healed_after.sort_unstable();
    report.took = started.elapsed();
    report
}

impl Report {
    fn take(&mut self, seed: u64, ended: Ended) {
        self.seeds += 1;
        self.steps += ended.steps;
        self.coverage.add(&ended.coverage);
        // In any order the same sum.
        self.trace = self.trace.wrapping_add(ended.trace.wrapping_mul(seed | 1));
        match ended.violation {
            Some(violation) => self.failures.push(Failure { seed, violation }),
            None => self.healed_after.push(ended.healed_after),
        }
    }

    fn add(&mut self, part: Self) {
        self.seeds += part.seeds;
        self.steps += part.steps;
        self.coverage.add(&part.coverage);
        self.trace = self.trace.wrapping_add(part.trace);
        self.failures.extend(part.failures);
        self.healed_after.extend(part.healed_after);
    }

    /// How long healing took for this share of the seeds, in milliseconds.
    pub fn healed_ms(&self, share: f64) -> u64 {
        let at = (self.healed_after.len().saturating_sub(1) as f64 * share) as usize;
        self.healed_after.get(at).copied().unwrap_or_default() / 1_000
    }

    /// For machines.
    pub fn to_json(&self) -> Value {
        let failures: Vec<_> = self
            .failures
            .iter()
            .map(|failure| json!({ "seed": failure.seed, "what": failure.violation.to_string() }))
            .collect();
        json!({
            "seeds": self.seeds,
            "steps": self.steps,
            "seconds": self.took.as_secs_f64(),
            "trace": format!("{:016x}", self.trace),
            "healed_ms": {
                "p50": self.healed_ms(0.5),
                "p99": self.healed_ms(0.99),
                "most": self.healed_ms(1.0),
            },
            "coverage": self.coverage.to_json(),
            "failures": failures,
        })
    }
}
