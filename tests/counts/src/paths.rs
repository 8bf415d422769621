//! The pure hot paths, each with fixed inputs: no clock, no threads, no chance.

mod client;
mod gate;
mod lane;
mod log;
mod module;
mod proto;

/// A path that an event passes through.
#[derive(Debug)]
pub(crate) struct Path {
    /// How it is called on a command line and in the file of figures.
    pub(crate) name: &'static str,
    /// What it does.
    pub(crate) about: &'static str,
    /// Whether it hashes.
    pub(crate) hashes: bool,
    /// Events in a round.
    pub(crate) events: u64,
    /// Rounds of the longer of two runs.
    pub(crate) rounds: u32,
    /// Prepares the inputs of so many rounds, however many then run: both runs prepare the same.
    pub(crate) open: fn(u32) -> Round,
}

/// Takes the path once.
pub(crate) type Round = Box<dyn FnMut()>;

/// All paths, in the order in which an event takes them.
pub(crate) const PATHS: &[Path] = &[
    proto::SEAL_EVENT,
    lane::PREPARE_FRAME,
    lane::ONE_EVENT,
    lane::FULL_FRAMES,
    lane::MANY_STREAMS,
    module::APPEND_FRAME,
    module::APPEND_EVENT,
    gate::WALK,
    client::ONE_EVENT,
    client::FULL_FRAMES,
    proto::VERIFY_FRAME,
    proto::VERIFY_HISTORY,
    client::CHECK_SEAL,
];

impl Path {
    /// Runs so many rounds.
    pub(crate) fn run(&self, rounds: u32) {
        let mut round = (self.open)(self.rounds);
        (0..rounds).for_each(|_| round());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_runs_to_its_end() {
        for path in PATHS {
            path.run(path.rounds);
        }
    }
}
