//! This release and the one before it: the module of either, and the programs.
//!
//! The previous module is in the tree, so that every test can publish it (`releases/`, made by `scripts/previous`). The previous
//! programs are built from the commit that is on record there, for drills alone.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use flate2::read::GzDecoder;

use crate::lane::module_wasm;
use crate::process::built;

/// The folder with the previous programs, laid out as the build folder of this one.
pub const PREVIOUS_PROGRAMS: &str = "SYNC_PREVIOUS_PROGRAMS";

/// A release.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Release {
    /// The one that is tested.
    #[default]
    Current,
    /// The one before it.
    Previous,
}

impl Release {
    /// Its module.
    pub fn module(self) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Current => module_wasm(),
            Self::Previous => {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("releases/previous.wasm.gz");
                let packed = std::fs::read(&path).with_context(|| path.display().to_string())?;
                let mut wasm = Vec::new();
                GzDecoder::new(&*packed)
                    .read_to_end(&mut wasm)
                    .with_context(|| path.display().to_string())?;
                Ok(wasm)
            }
        }
    }

    /// One of its programs.
    pub fn program(self, name: &str) -> anyhow::Result<PathBuf> {
        match self {
            Self::Current => Ok(built(name)),
            Self::Previous => {
                let folder = std::env::var_os(PREVIOUS_PROGRAMS)
                    .with_context(|| format!("{PREVIOUS_PROGRAMS} is not set: scripts/previous prints the folder"))?;
                let path = Path::new(&folder).join(name);
                anyhow::ensure!(path.exists(), "{} is missing: run scripts/previous", path.display());
                Ok(path)
            }
        }
    }

    /// Whether its programs are there.
    pub fn has_programs(self) -> bool {
        self == Self::Current || std::env::var_os(PREVIOUS_PROGRAMS).is_some()
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Current => Self::Previous,
            Self::Previous => Self::Current,
        }
    }
}
