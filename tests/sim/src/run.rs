//! Runs one setup, or many seeds on all cores.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::agenda::Micros;
use crate::coverage::Coverage;
use crate::mirror::{MirrorSetup, run_mirror, shrink_mirror};
use crate::setup::Setup;
use crate::shrink::shrink;
use crate::world::{Ended, Violation, World};

/// The results of many runs.
#[derive(Debug, Default)]
pub struct Report {
    /// Number of seeds.
    pub seeds: u64,
    /// Total number of steps.
    pub steps: u64,
    /// What happened, counted.
    pub coverage: Coverage,
    /// The seeds that failed, in order.
    pub failures: Vec<Failure>,
    /// How long the lane took to heal after its faults, one value for each seed.
    pub healed_after: Vec<Micros>,
    /// A hash over the traces of all seeds.
    pub trace: u64,
    /// How long the runs took.
    pub took: Duration,
}

/// A seed that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The broken invariant.
    pub violation: Violation,
}

/// One seed of so many runs a mirror, too.
const MIRRORED: u64 = 2;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics off standard error. A panic of a machine is a finding and is reported like the others.
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

/// Runs a setup to its end. Keeps a story if `tell` is set.
pub fn run(setup: &Setup, tell: bool) -> Ended {
    caught(|| World::new(setup, tell).run())
}

/// A run whose panic is a violation.
pub(crate) fn caught(run: impl FnOnce() -> Ended) -> Ended {
    silence_panics();
    QUIET.set(true);
    let ended = catch_unwind(AssertUnwindSafe(run));
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

/// The minimised stories of a seed that failed: the lane's, and the mirror's.
pub fn stories(seed: u64) -> String {
    let mut told = String::new();
    if let Some(story) = shrink(&Setup::of(seed)) {
        told.push_str(&story.to_string());
    }
    if let Some((setup, ended)) = shrink_mirror(&MirrorSetup::of(seed)) {
        let faults: Vec<String> = setup.plan.iter().map(ToString::to_string).collect();
        let lines = [vec![format!("{setup:?}")], faults, ended.story].concat();
        told.push_str(&lines.join("\n"));
    }
    told
}

fn message(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (None, Some(text)) => text.clone(),
        (None, None) => "no message".to_owned(),
    }
}

/// Runs consecutive seeds on all cores, and stops after `most_failures` failures.
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
                if seed.is_multiple_of(MIRRORED) {
                    let mirrored = run_mirror(&MirrorSetup::of(seed), false);
                    part.take_mirrored(seed, mirrored);
                }
            }
            part
        };
        let parts: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for part in parts {
            // The panics of runs are caught. Any other panic is a defect of this function.
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
        // The sum does not depend on the order.
        self.trace = self.trace.wrapping_add(ended.trace.wrapping_mul(seed | 1));
        match ended.violation {
            Some(violation) => self.failures.push(Failure { seed, violation }),
            None => self.healed_after.push(ended.healed_after),
        }
    }

    fn take_mirrored(&mut self, seed: u64, ended: Ended) {
        self.steps += ended.steps;
        self.coverage.add(&ended.coverage);
        self.trace = self.trace.wrapping_add(ended.trace.wrapping_mul(seed | 1));
        let failure = |violation| Failure { seed, violation };
        self.failures.extend(ended.violation.map(failure));
    }

    fn add(&mut self, part: Self) {
        self.seeds += part.seeds;
        self.steps += part.steps;
        self.coverage.add(&part.coverage);
        self.trace = self.trace.wrapping_add(part.trace);
        self.failures.extend(part.failures);
        self.healed_after.extend(part.healed_after);
    }

    /// The healing time that this share of the seeds stays within, in milliseconds.
    pub fn healed_ms(&self, share: f64) -> u64 {
        let at = (self.healed_after.len().saturating_sub(1) as f64 * share) as usize;
        self.healed_after.get(at).copied().unwrap_or_default() / 1_000
    }

    /// The report as JSON.
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
