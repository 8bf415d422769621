//! The fuzzed parsers, and their verdicts.

use rand::rngs::StdRng;

/// The verdict on an input. Both are counted, because a target that accepts nothing tests only refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was parsed, and all properties held.
    Taken,
    /// It was refused, as it should be.
    Refused,
}

impl Verdict {
    /// The verdict for an input that was accepted, or not.
    pub fn taken(taken: bool) -> Self {
        if taken { Self::Taken } else { Self::Refused }
    }
}

/// A parser of foreign bytes.
pub trait Target {
    /// Passes an input to the parser. An error or a panic is a finding: it means that a property is broken.
    fn check(&mut self, input: &[u8]) -> anyhow::Result<Verdict>;

    /// Changes an input within its format. `None` if the target has no format, or the input is malformed.
    fn vary(&self, _rng: &mut StdRng, _input: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// An input that the real encoders made.
pub struct Seed {
    /// The name of its file in the corpus.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Seed {
    /// An input of the corpus.
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            bytes: bytes.into(),
        }
    }
}

/// A target in the list of targets.
pub struct Entry {
    /// The name of the target and of its folder in the corpus.
    pub name: &'static str,
    /// A description in one line.
    pub about: &'static str,
    /// The words that inputs are made from.
    pub dictionary: &'static [&'static [u8]],
    /// The largest input that is made, in bytes.
    pub most: usize,
    /// Prepares the target.
    pub open: fn() -> anyhow::Result<Box<dyn Target>>,
    /// Makes the corpus.
    pub seeds: fn() -> anyhow::Result<Vec<Seed>>,
}
