//! Counts instructions with valgrind's callgrind.
//!
//! A path runs twice, for different numbers of rounds. The difference leaves out what start and preparation take.
//! Valgrind shows every program the same processor, so the counts do not depend on the machine's: nobody finds SHA
//! instructions there, for example, and SHA-256 is counted in its portable form. Because that form takes far more than
//! everything around it, it is a figure of its own.

use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::figures::Count;
use crate::paths::Path;

/// The function that hashes blocks: all that the instructions of a processor would replace.
const COMPRESSION: &str = "sha2::sha256::soft::compress";

/// Counts a path.
pub(crate) fn count(path: &Path) -> anyhow::Result<Count> {
    let few = path.rounds / 4;
    let (some, all) = (profile(path, few)?, profile(path, path.rounds)?);
    ensure!(
        path.hashes == (all.hashing > some.hashing),
        "expected {} of {COMPRESSION} in callgrind's profile, found {}: if sha2 calls it something else now, name it here",
        if path.hashes { "calls" } else { "no call" },
        all.hashing
    );
    let events = u64::from(path.rounds - few) * path.events;
    let each = |all: u64, some: u64| (all - some).div_ceil(events);
    let hashing = each(all.hashing, some.hashing);
    Ok(Count {
        own: each(all.whole - all.hashing, some.whole - some.hashing),
        sha256: hashing,
    })
}

/// Instructions of a whole process.
#[derive(Debug, Default, PartialEq, Eq)]
struct Profile {
    whole: u64,
    /// Those of [`COMPRESSION`] itself.
    hashing: u64,
}

fn profile(path: &Path, rounds: u32) -> anyhow::Result<Profile> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("callgrind");
    let ran = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--compress-strings=no",
            "--compress-pos=no",
            "--quiet",
        ])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["run", path.name, &rounds.to_string()])
        // Somebody's settings of the allocator, for example, would change the counts.
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .output()
        .context("cannot start valgrind: install it (Debian: apt-get install valgrind), or start through ./scripts")?;
    ensure!(
        ran.status.success(),
        "valgrind: {}\n{}",
        ran.status,
        String::from_utf8_lossy(&ran.stderr)
    );
    read(&std::fs::read_to_string(&out).context("valgrind wrote no profile")?)
}

/// Reads what callgrind writes: the lines of a function are its own costs, and each line after a `calls=` is the cost of
/// what it called.
fn read(profile: &str) -> anyhow::Result<Profile> {
    let (mut found, mut is_compression, mut is_call) = (Profile::default(), false, false);
    for line in profile.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            is_compression = name.contains(COMPRESSION);
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if let Some(whole) = line.strip_prefix("totals: ") {
            found.whole = whole.trim().parse().context("callgrind's total")?;
        } else if line.starts_with(|first: char| first.is_ascii_digit())
            && !std::mem::take(&mut is_call)
            && is_compression
        {
            let cost = line.split_whitespace().nth(1).context("a cost of callgrind's")?;
            found.hashing += cost.parse::<u64>().context("a cost of callgrind's")?;
        }
    }
    ensure!(found.whole > 0, "callgrind counted nothing");
    Ok(found)
}
