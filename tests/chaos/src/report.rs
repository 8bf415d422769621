//! The report of the drills: `SUMMARY.md` for people, `results.jsonl` for programs.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;

use crate::{Held, Outcome, Plan};

/// A report that is written after each drill, so that an interrupted run still leaves its results.
#[derive(Debug)]
pub struct Report {
    out: PathBuf,
    seed: u64,
    results: std::fs::File,
    outcomes: Vec<Outcome>,
}

impl Report {
    /// Creates the folder and removes what an earlier run left there.
    pub fn begin(plan: &Plan) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&plan.out)?;
        for drill in &plan.drills {
            let logs = plan.out.join("logs").join(drill.name());
            if logs.exists() {
                std::fs::remove_dir_all(&logs)?;
            }
        }
        let results = std::fs::File::create(plan.out.join("results.jsonl"))?;
        Ok(Self {
            out: plan.out.clone(),
            seed: plan.seed,
            results,
            outcomes: Vec::new(),
        })
    }

    /// Adds the result of a drill.
    pub fn add(&mut self, outcome: Outcome) -> anyhow::Result<()> {
        writeln!(self.results, "{}", serde_json::to_string(&outcome)?)?;
        self.outcomes.push(outcome);
        std::fs::write(self.out.join("SUMMARY.md"), self.summary())?;
        Ok(())
    }

    /// Whether all drills passed, and their results.
    pub fn end(self) -> anyhow::Result<(bool, Vec<Outcome>)> {
        let good = self.outcomes.iter().all(|outcome| outcome.verdict == Held::Held);
        Ok((good, self.outcomes))
    }

    fn summary(&self) -> String {
        let count = |verdict| {
            self.outcomes
                .iter()
                .filter(|outcome| outcome.verdict == verdict)
                .count()
        };
        let mut text = format!(
            "# Drills\n\nSeed {}. {} held, {} failed, {} skipped.\n\n\
             | drill | verdict | faults | recovery, worst (all) in s | events | clients | missing, gaps, doubled, other | figures |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- |\n",
            self.seed,
            count(Held::Held),
            count(Held::Failed),
            count(Held::Skipped)
        );
        for outcome in &self.outcomes {
            text += &outcome.row();
        }
        for outcome in &self.outcomes {
            if let Some(why) = &outcome.why {
                text += &format!("\n**{}**: {why}\n", outcome.drill);
            }
        }
        text
    }
}

fn seconds(ms: u64) -> String {
    format!("{:.1}", ms as f64 / 1_000.0)
}

impl Held {
    fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Failed => "**failed**",
            Self::Skipped => "skipped",
        }
    }
}

impl Outcome {
    fn row(&self) -> String {
        let faults: Vec<String> = self
            .faults
            .iter()
            .map(|(kind, count)| format!("{count} × {kind}"))
            .collect();
        let all: Vec<String> = self.recovery_ms.iter().map(|ms| seconds(*ms)).collect();
        let worst = self.worst_recovery_ms.map_or("–".to_owned(), seconds);
        let figures: Vec<String> = self
            .figures
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        let log = &self.log;
        format!(
            "| {} | {} | {} | {worst} ({}) | {} | {} | {}, {}, {}, {} | {} |\n",
            self.drill,
            self.verdict.word(),
            faults.join("; "),
            all.join(" "),
            self.committed,
            self.clients,
            log.missing,
            log.gaps,
            log.doubled,
            log.different,
            figures.join("; "),
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: u64 = self.faults.values().sum();
        write!(
            f,
            "{}: {}, {faults} faults, recovery at most {} s, {} events to {} clients, {} s",
            self.drill,
            self.verdict.word(),
            self.worst_recovery_ms.map_or("–".to_owned(), seconds),
            self.committed,
            self.clients,
            self.seconds
        )?;
        match &self.why {
            Some(why) => write!(f, "\n  {why}"),
            None => Ok(()),
        }
    }
}
