//! The figures in the tree, and what may become of them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::paths::Path;

/// A count may differ from its figure by one part in so many.
const PART: u64 = 10;
/// A path so short that a tenth is hardly an instruction may differ by so many.
const SLACK: u64 = 4;
const HEADER: &str = "\
# Instructions that an event takes in each pure hot path, as valgrind counts them: `own` without the compression function
# of SHA-256, `sha256` in it. Written by ./scripts/counts --accept; see docs/benchmarks.md.
";

/// Instructions of a path for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Count {
    /// All but those of SHA-256.
    pub(crate) own: u64,
    /// Those of SHA-256's compression function.
    pub(crate) sha256: u64,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.own)?;
        match self.sha256 {
            0 => Ok(()),
            sha256 => write!(f, " + {sha256} of SHA-256"),
        }
    }
}

/// The figures of all paths, by name.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Figures(BTreeMap<String, Count>);

/// Why the figures do not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// It takes more than it may.
    Grown { path: String, before: Count, found: Count },
    /// It takes so much less that the figure would let it grow again unseen.
    Fallen { path: String, before: Count, found: Count },
    /// It has no figure.
    Unknown { path: String },
    /// The figure has no path.
    Gone { path: String },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grown { path, before, found } => write!(
                f,
                "{path} takes {found} instructions for an event, and took {before}: it has become more than a tenth slower. \
                 Find out what it does more than before. If that must be, write the new figure with ./scripts/counts \
                 --accept, and say in the commit why"
            ),
            Self::Fallen { path, before, found } => write!(
                f,
                "{path} takes {found} instructions for an event, and took {before}: it has become more than a tenth faster. \
                 Keep that: write the new figure with ./scripts/counts --accept"
            ),
            Self::Unknown { path } => write!(f, "{path} has no figure yet: write it with ./scripts/counts --accept"),
            Self::Gone { path } => write!(
                f,
                "{path} has a figure, but no path is called so: take it out with ./scripts/counts --accept"
            ),
        }
    }
}

impl Figures {
    /// Reads the file in the tree. None is as good as an empty one.
    pub(crate) fn read() -> anyhow::Result<Self> {
        match std::fs::read_to_string(file()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            text => toml::from_str(&text?).with_context(|| format!("cannot read {}", file().display())),
        }
    }

    /// Writes the file in the tree.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let text = format!("{HEADER}\n{}", toml::to_string(self)?);
        std::fs::write(file(), text).with_context(|| format!("cannot write {}", file().display()))
    }

    /// The figure of a path.
    pub(crate) fn of(&self, path: &str) -> Option<Count> {
        self.0.get(path).copied()
    }

    /// These figures, with those of some paths replaced by what was found. Figures without a path are left out.
    pub(crate) fn with(mut self, found: &[(&Path, Count)]) -> Self {
        self.0
            .retain(|name, _| crate::paths::PATHS.iter().any(|path| path.name == name));
        self.0
            .extend(found.iter().map(|(path, count)| (path.name.to_owned(), *count)));
        self
    }

    /// What does not hold of the figures of these paths.
    pub(crate) fn changes(&self, found: &[(&Path, Count)]) -> Vec<Change> {
        found
            .iter()
            .filter_map(|(path, found)| change(path.name, self.of(path.name), *found))
            .collect()
    }

    /// The figures that no path has.
    pub(crate) fn left_over(&self, found: &[(&Path, Count)]) -> Vec<Change> {
        let is_found = |name: &str| found.iter().any(|(path, _)| path.name == name);
        let names = self.0.keys().filter(|name| !is_found(name));
        names.map(|path| Change::Gone { path: path.clone() }).collect()
    }
}

fn change(path: &str, before: Option<Count>, found: Count) -> Option<Change> {
    let path = path.to_owned();
    let Some(before) = before else {
        return Some(Change::Unknown { path });
    };
    let more = |found: u64, before: u64| found > before + (before / PART).max(SLACK);
    let both = [(found.own, before.own), (found.sha256, before.sha256)];
    if both.iter().any(|(found, before)| more(*found, *before)) {
        Some(Change::Grown { path, before, found })
    } else if both.iter().any(|(found, before)| more(*before, *found)) {
        Some(Change::Fallen { path, before, found })
    } else {
        None
    }
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("figures.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Count = Count {
        own: 1_000,
        sha256: 20_000,
    };

    fn found(own: u64, sha256: u64) -> Option<Change> {
        change("path", Some(BEFORE), Count { own, sha256 })
    }

    #[test]
    fn a_tenth_more_or_less_is_no_change() {
        for (own, sha256) in [(1_000, 20_000), (1_100, 22_000), (910, 18_182)] {
            assert_eq!(found(own, sha256), None, "{own} {sha256}");
        }
    }

    #[test]
    fn more_than_a_tenth_more_is_growth_whatever_fell() {
        for (own, sha256) in [(1_101, 20_000), (1_000, 22_001), (1_101, 10), (10, 22_001)] {
            assert!(
                matches!(found(own, sha256), Some(Change::Grown { .. })),
                "{own} {sha256}"
            );
        }
    }

    #[test]
    fn a_fall_must_be_kept() {
        for (own, sha256) in [(900, 20_000), (1_000, 18_000), (1_100, 18_000)] {
            assert!(
                matches!(found(own, sha256), Some(Change::Fallen { .. })),
                "{own} {sha256}"
            );
        }
    }

    #[test]
    fn hashing_that_was_not_there_is_growth() {
        let before = Count { own: 1_000, sha256: 0 };
        let found = Count {
            own: 1_000,
            sha256: 3_000,
        };
        assert!(matches!(
            change("path", Some(before), found),
            Some(Change::Grown { .. })
        ));
    }

    #[test]
    fn a_path_and_its_figure_need_one_another() {
        let path = "path".to_owned();
        assert_eq!(
            change("path", None, BEFORE),
            Some(Change::Unknown { path: path.clone() })
        );
        let figures = Figures(BTreeMap::from([(path.clone(), BEFORE)]));
        assert_eq!(figures.left_over(&[]), [Change::Gone { path }]);
    }

    #[test]
    fn growth_says_which_path_and_both_figures() {
        let text = found(1_200, 20_000)
            .map(|change| change.to_string())
            .unwrap_or_default();
        for part in ["path takes 1200 + 20000 of SHA-256", "took 1000 + 20000", "--accept"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
