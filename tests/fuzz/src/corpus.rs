//! The inputs in the tree: those that the real encoders make, and those that fuzzing found.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::target::{Entry, Seed};

/// The prefix of files that fuzzing found. Making the corpus again does not touch them.
pub const FOUND: &str = "found-";

/// The folder of the corpus.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The inputs of a target, by name.
pub fn load(entry: &Entry) -> anyhow::Result<Vec<Seed>> {
    let folder = folder().join(entry.name);
    let listed = std::fs::read_dir(&folder).with_context(|| {
        format!(
            "no corpus in {}: make it with ./scripts/fuzz --seed-corpus",
            folder.display()
        )
    })?;
    let mut inputs = Vec::new();
    for file in listed {
        let path = file?.path();
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        inputs.push(Seed { name, bytes });
    }
    // The order of directory entries differs between machines.
    inputs.sort_by(|a, b| a.name.cmp(&b.name));
    anyhow::ensure!(!inputs.is_empty(), "{} is empty", folder.display());
    Ok(inputs)
}

/// Makes a target's corpus again. Found inputs stay. Returns how many files the encoders made.
pub fn make(entry: &Entry) -> anyhow::Result<usize> {
    let folder = folder().join(entry.name);
    std::fs::create_dir_all(&folder)?;
    for file in std::fs::read_dir(&folder)? {
        let file = file?;
        if !file.file_name().to_string_lossy().starts_with(FOUND) {
            std::fs::remove_file(file.path())?;
        }
    }
    let seeds = (entry.seeds)()?;
    for seed in &seeds {
        std::fs::write(folder.join(&seed.name), &seed.bytes)?;
    }
    Ok(seeds.len())
}

/// The file name of a found input. It depends only on the input.
pub fn found_name(input: &[u8]) -> String {
    let hash = Sha256::digest(input);
    let digits: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{FOUND}{digits}")
}
