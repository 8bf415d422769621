//! Minimises a failing run: finds the smallest one that fails in the same way, and tells it as a story.

use std::fmt;

use crate::agenda::SECOND;
use crate::run::run;
use crate::setup::Setup;
use crate::world::{Ended, Violation};

/// A minimised run.
#[derive(Debug)]
pub struct Story {
    /// The setup that remains.
    pub setup: Setup,
    /// The broken invariant.
    pub violation: Violation,
    /// The end of what happened.
    pub lines: Vec<String>,
    /// Number of runs that were tried.
    pub tried: u32,
}

/// The most runs that are tried.
const TRIES: u32 = 600;
/// The number of story lines that are shown.
const SHOWN: usize = 60;

struct Shrinking {
    best: Setup,
    invariant: &'static str,
    tried: u32,
}

/// Makes a failing setup smaller while the same invariant stays broken. `None` if the setup does not fail.
pub fn shrink(setup: &Setup) -> Option<Story> {
    let invariant = run(setup, false).violation?.invariant;
    let mut shrinking = Shrinking {
        best: setup.clone(),
        invariant,
        tried: 0,
    };
    // A reduction by one pass may enable another pass to go further.
    loop {
        let before = (shrinking.best.plan.len(), size(&shrinking.best));
        shrinking.drop_faults();
        shrinking.make_smaller();
        if before == (shrinking.best.plan.len(), size(&shrinking.best)) {
            break;
        }
    }
    let Shrinking { best, tried, .. } = shrinking;
    let Ended { violation, story, .. } = run(&best, true);
    Some(Story {
        setup: best,
        violation: violation?,
        lines: story,
        tried,
    })
}

fn size(setup: &Setup) -> usize {
    setup.streams + setup.clients + setup.bridges + setup.writes + setup.works + setup.until as usize
}

impl Shrinking {
    /// Adopts a smaller setup if it fails in the same way.
    fn keeps(&mut self, smaller: Setup) -> bool {
        if self.tried >= TRIES {
            return false;
        }
        self.tried += 1;
        let fails = run(&smaller, false)
            .violation
            .is_some_and(|violation| violation.invariant == self.invariant);
        if fails {
            self.best = smaller;
        }
        fails
    }

    /// Removes faults, many at once and then fewer and fewer.
    fn drop_faults(&mut self) {
        let mut part = self.best.plan.len();
        while part > 0 {
            let mut at = 0;
            while at < self.best.plan.len() {
                let mut fewer = self.best.clone();
                let end = (at + part).min(fewer.plan.len());
                fewer.plan.drain(at..end);
                if !self.keeps(fewer) {
                    at += part;
                }
            }
            part /= 2;
        }
    }

    /// Tries fewer streams, clients, bridges, writes and calls about assignments, clients that do not ask the authority, and a shorter run.
    fn make_smaller(&mut self) {
        while self.best.streams > 1 && self.keeps_with(|setup| setup.streams -= 1) {}
        while self.best.clients > 1 && self.keeps_with(|setup| setup.clients -= 1) {}
        while self.best.bridges > 1 && self.keeps_with(|setup| setup.bridges -= 1) {}
        if self.best.bounds.history {
            self.keeps_with(|setup| setup.bounds.history = false);
        }
        if self.best.works > 0 && !self.keeps_with(|setup| setup.works = 0) {
            while self.best.works > 1 && self.keeps_with(|setup| setup.works /= 2) {}
        }
        while self.best.writes > 1 && self.keeps_with(|setup| setup.writes /= 2) {}
        while self.best.writes > 1 && self.keeps_with(|setup| setup.writes -= 1) {}
        while self.best.until > SECOND && self.keeps_with(|setup| setup.until = (setup.until / 2).max(SECOND)) {}
    }

    fn keeps_with(&mut self, change: impl FnOnce(&mut Setup)) -> bool {
        let mut smaller = self.best.clone();
        change(&mut smaller);
        self.keeps(smaller)
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setup = &self.setup;
        writeln!(f, "seed {}, minimised in {} runs", setup.seed, self.tried)?;
        writeln!(
            f,
            "{} streams, {} clients, {} bridges ({} lead), {} writes in {} s",
            setup.streams,
            setup.clients,
            setup.bridges,
            if setup.lead { "with" } else { "without" },
            setup.writes,
            setup.until as f64 / SECOND as f64
        )?;
        writeln!(f, "{} faults:", setup.plan.len())?;
        for planned in &setup.plan {
            writeln!(f, "  {planned}")?;
        }
        writeln!(f, "story:")?;
        let skipped = self.lines.len().saturating_sub(SHOWN);
        if skipped > 0 {
            writeln!(f, "  … {skipped} lines before")?;
        }
        for line in &self.lines[skipped..] {
            writeln!(f, "  {line}")?;
        }
        write!(f, "{}", self.violation)
    }
}
