//! Runs a target: first the whole corpus, then inputs made from it, until a bound is reached or a property breaks.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;

use crate::corpus;
use crate::coverage::Coverage;
use crate::mutate;
use crate::target::{Entry, Target, Verdict};

/// The longest time that parsing one input may take.
const SLOWEST: Duration = Duration::from_secs(5);
/// The most inputs that are kept because they reached something new.
const KEPT: usize = 20_000;
/// How many attempts are made to shrink a finding.
const SMALLER: usize = 2_000;

/// When a run ends: at whichever bound it reaches first.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The longest duration.
    pub time: Duration,
    /// The most inputs.
    pub executions: u64,
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The target.
    pub target: &'static str,
    /// The seed of its inputs.
    pub seed: u64,
    /// Number of inputs, including those of the corpus.
    pub executions: u64,
    /// How many of them the target accepted.
    pub taken: u64,
    /// How many of them the target refused.
    pub refused: u64,
    /// Number of inputs in the corpus.
    pub corpus: usize,
    /// Number of inputs that were kept because they reached something new.
    pub kept: usize,
    /// Number of code edges that were reached. `None` in a build that does not count them.
    pub edges: Option<usize>,
    /// Duration of the run.
    pub seconds: f64,
    /// The broken property, if there is one.
    pub finding: Option<Finding>,
}

/// A broken property.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub message: String,
    /// The input that shows it.
    #[serde(skip)]
    pub input: Vec<u8>,
}

thread_local! {
    /// Whether this thread runs a target, so that its panics are findings.
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A target's panic is reported in the finding, with its place. All other panics print as usual.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if WATCHED.get() {
                PANIC.set(panic.to_string());
            } else {
                before(panic);
            }
        }));
    });
}

/// A target that is run, and opened again after a panic.
struct Runner {
    entry: &'static Entry,
    target: Box<dyn Target>,
}

impl Runner {
    fn new(entry: &'static Entry) -> anyhow::Result<Self> {
        watch_panics();
        let target = (entry.open)()?;
        Ok(Self { entry, target })
    }

    fn check(&mut self, input: &[u8]) -> anyhow::Result<Result<Verdict, String>> {
        let started = Instant::now();
        WATCHED.set(true);
        let answer: Result<_, Box<dyn Any + Send>> = catch_unwind(AssertUnwindSafe(|| self.target.check(input)));
        WATCHED.set(false);
        let took = started.elapsed();
        Ok(match answer {
            Ok(Ok(_)) if took > SLOWEST => Err(format!("it took {took:?}")),
            Ok(Ok(verdict)) => Ok(verdict),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(_) => {
                self.target = (self.entry.open)()?;
                Err(PANIC.take())
            }
        })
    }

    /// Shrinks the input of a finding, within a bound of attempts.
    fn smallest(&mut self, finding: Finding) -> anyhow::Result<Finding> {
        let mut smallest = finding;
        let mut tries = 0;
        let mut part = smallest.input.len() / 2;
        while part > 0 {
            let mut at = 0;
            while at < smallest.input.len() && tries < SMALLER {
                tries += 1;
                let mut input = smallest.input.clone();
                input.drain(at..(at + part).min(smallest.input.len()));
                match self.check(&input)? {
                    Err(message) => smallest = Finding { message, input },
                    Ok(_) => at += part,
                }
            }
            part /= 2;
        }
        Ok(smallest)
    }
}

/// Passes one input to a target: its verdict, or the broken property.
pub fn replay(entry: &'static Entry, input: &[u8]) -> anyhow::Result<Result<Verdict, String>> {
    Runner::new(entry)?.check(input)
}

/// Passes every input of the corpus to a target. Stops at the first broken property.
pub fn replay_corpus(entry: &'static Entry) -> anyhow::Result<Report> {
    fuzz(
        entry,
        0,
        Bounds {
            time: Duration::MAX,
            executions: 0,
        },
        &mut None,
    )
}

/// Runs a target. The whole corpus is run regardless of the bounds.
pub fn fuzz(
    entry: &'static Entry,
    seed: u64,
    bounds: Bounds,
    coverage: &mut Option<Coverage>,
) -> anyhow::Result<Report> {
    let started = Instant::now();
    let mut runner = Runner::new(entry)?;
    let inputs = corpus::load(entry)?;
    let mut pool = Pool::default();
    let mut report = Report {
        target: entry.name,
        seed,
        executions: 0,
        taken: 0,
        refused: 0,
        corpus: inputs.len(),
        kept: 0,
        edges: None,
        seconds: 0.0,
        finding: None,
    };
    if let Some(coverage) = coverage {
        coverage.forget();
    }
    let mut rng = StdRng::seed_from_u64(seed ^ name_hash(entry.name));
    let mut inputs = inputs.into_iter();
    loop {
        let (input, of_corpus) = match inputs.next() {
            Some(input) => (input.bytes, true),
            None if report.executions.saturating_sub(report.corpus as u64) >= bounds.executions => break,
            None if started.elapsed() >= bounds.time => break,
            None => (made(&mut rng, entry, &*runner.target, &pool), false),
        };
        if let Some(coverage) = coverage {
            coverage.clear();
        }
        let answer = runner.check(&input)?;
        let new = coverage.as_mut().is_some_and(Coverage::is_new);
        report.executions += 1;
        let verdict = match answer {
            Ok(verdict) => verdict,
            Err(message) => {
                report.finding = Some(runner.smallest(Finding { message, input })?);
                break;
            }
        };
        match verdict {
            Verdict::Taken => report.taken += 1,
            Verdict::Refused => report.refused += 1,
        }
        if of_corpus {
            pool.put(input, verdict);
        } else if new && report.kept < KEPT {
            report.kept += 1;
            pool.put(input, verdict);
        }
    }
    report.edges = coverage.as_ref().map(Coverage::edges);
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// The inputs that new inputs are made from.
#[derive(Default)]
struct Pool {
    inputs: Vec<Vec<u8>>,
    /// The accepted inputs. There are many more ways to be refused, which would crowd these out.
    taken: Vec<usize>,
}

impl Pool {
    fn put(&mut self, input: Vec<u8>, verdict: Verdict) {
        match verdict {
            Verdict::Taken => self.taken.push(self.inputs.len()),
            Verdict::Refused => {}
        }
        self.inputs.push(input);
    }

    fn choose(&self, rng: &mut StdRng) -> &[u8] {
        let newest = rng.random_range(0..self.inputs.len().min(16));
        let any = rng.random_range(0..self.inputs.len());
        let at = match rng.random_range(0..6) {
            // The newest inputs are tried most.
            0 => self.inputs.len() - 1 - newest,
            1 | 2 => any,
            _ => self.taken.choose(rng).copied().unwrap_or(any),
        };
        &self.inputs[at]
    }
}

fn made(rng: &mut StdRng, entry: &Entry, target: &dyn Target, pool: &Pool) -> Vec<u8> {
    let mut input = pool.choose(rng).to_vec();
    let formed = rng.random_range(0..4);
    if formed > 0
        && let Some(changed) = target.vary(rng, &input)
    {
        input = changed;
        if formed < 3 {
            input.truncate(entry.most);
            return input;
        }
    }
    let other = pool.choose(rng);
    mutate::bytes(rng, &mut input, other, entry.dictionary, entry.most);
    input
}

/// The same hash in every build, which the standard library's does not guarantee.
fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
