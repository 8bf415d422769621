//! What is fuzzed, and what it answers.

use rand::rngs::StdRng;

/// What became of an input. A target that takes nothing tests refusals alone: both are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was parsed, and everything held.
    Taken,
    /// It was refused, as it should be.
    Refused,
}

impl Verdict {
    /// Of whether it was taken.
    pub fn taken(taken: bool) -> Self {
        if taken { Self::Taken } else { Self::Refused }
    }
}

/// One place that parses foreign bytes.
pub trait Target {
    /// Gives it an input. An error, or a panic, is a finding: something that must hold does not.
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict>;

    /// Changes an input within its form; none where it has none, or where it is broken.
    fn vary(&self, _rng: &mut StdRng, _input: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// An input that the real encoders make.
pub struct Seed {
    /// Its file in the corpus.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Seed {
    /// A seed.
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            bytes: bytes.into(),
        }
    }
}

/// A target as it is listed.
pub struct Entry {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// What its inputs are made of.
    pub dictionary: &'static [&'static [u8]],
    /// Longest input that is made, in bytes.
    pub most: usize,
    /// Makes it ready.
    pub open: fn() -> anyhow::Result<Box<dyn Target>>,
    /// What its corpus begins with.
    pub seeds: fn() -> anyhow::Result<Vec<Seed>>,
}
