//! See `scripts/counts`: how many instructions each pure hot path takes, beside the figures in the tree.
//!
//! Instructions are the same on every run, whatever else the machine does, so a path that has become slower shows in one
//! run. They are no time: what waits for memory or for a disk costs more than they say.

mod callgrind;
mod figures;
mod paths;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use figures::{Count, Figures};
use paths::{PATHS, Path};

/// Counts the instructions of the pure hot paths and compares them with the figures in the tree.
#[derive(Parser)]
struct Args {
    /// Write what is counted as the new figures.
    #[arg(long)]
    accept: bool,
    /// Count only this path; may be repeated.
    #[arg(long = "only", value_name = "PATH")]
    only: Vec<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a path so many rounds and counts nothing. The counts start this themselves, under valgrind.
    #[command(hide = true)]
    Run { path: String, rounds: u32 },
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if let Some(Command::Run { path, rounds }) = args.command {
        named(&path)?.run(rounds);
        return Ok(ExitCode::SUCCESS);
    }
    let chosen: Vec<&Path> = match args.only.as_slice() {
        [] => PATHS.iter().collect(),
        only => only.iter().map(|name| named(name)).collect::<anyhow::Result<_>>()?,
    };
    let found = count(&chosen)?;
    let before = Figures::read()?;
    for (path, count) in &found {
        let before = before
            .of(path.name)
            .map_or(String::new(), |before| format!(", was {before}"));
        println!("{:<20} {count}{before}: {}", path.name, path.about);
    }
    if args.accept {
        return before.with(&found).write().map(|()| ExitCode::SUCCESS);
    }
    let mut changes = before.changes(&found);
    if args.only.is_empty() {
        changes.extend(before.left_over(&found));
    }
    for change in &changes {
        eprintln!("{change}");
    }
    Ok(if changes.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn named(name: &str) -> anyhow::Result<&'static Path> {
    let names = || PATHS.iter().map(|path| path.name).collect::<Vec<_>>().join(", ");
    let path = PATHS.iter().find(|path| path.name == name);
    path.with_context(|| format!("no path is called {name}: expected one of {}", names()))
}

/// Counts these paths, as many at a time as there are cores: what others do changes no count.
fn count(paths: &[&'static Path]) -> anyhow::Result<Vec<(&'static Path, Count)>> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((at, path)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            paths.get(at).map(|path| (at, *path))
        } {
            let count = callgrind::count(path).with_context(|| format!("cannot count {}", path.name));
            let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            found.push((at, count.map(|count| (path, count))));
        }
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        (0..workers).for_each(|_| drop(scope.spawn(work)));
    });
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, count)| count).collect()
}
