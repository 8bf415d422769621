//! Inputs in the tree: what the real encoders make, and what was found.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::target::{Entry, Seed};

/// Begins the name of a file that was found, and not made: it is never made anew.
pub const FOUND: &str = "found-";

/// Where the corpus is in the tree.
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
    // The order of a folder is not the same everywhere.
    inputs.sort_by(|a, b| a.name.cmp(&b.name));
    anyhow::ensure!(!inputs.is_empty(), "{} is empty", folder.display());
    Ok(inputs)
}

/// Makes the corpus of a target anew. What was found stays. Says how many files there are of the encoders'.
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

/// What a file for a found input is called: the same input, the same file.
pub fn found_name(input: &[u8]) -> String {
    let hash = Sha256::digest(input);
    let digits: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{FOUND}{digits}")
}
