//! What all streams come to: kept up to date stream by stream, so that a message costs the same however many there are.

use super::status::Phase;

/// What one stream counts for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Share {
    /// It waits for a right to be read, or for an answer: the client is live without it.
    #[default]
    Aside,
    /// It has stopped for good.
    Stopped,
    /// It can go on.
    Going {
        /// Whether it is live.
        live: bool,
        /// How many events are applied.
        applied: u64,
        /// How many are known of.
        target: u64,
    },
}

/// The sum of all shares.
#[derive(Debug, Default)]
pub(super) struct Tally {
    stopped: usize,
    going: usize,
    live: usize,
    // Sums of 64 bit numbers, of which a host may claim any: they do not overflow.
    applied: u128,
    target: u128,
}

impl Tally {
    /// Counts one stream.
    pub(super) fn add(&mut self, share: Share) {
        match share {
            Share::Aside => {}
            Share::Stopped => self.stopped += 1,
            Share::Going { live, applied, target } => {
                self.going += 1;
                self.live += usize::from(live);
                self.applied += u128::from(applied);
                self.target += u128::from(target);
            }
        }
    }

    /// Counts one stream no longer, that was counted so.
    pub(super) fn remove(&mut self, share: Share) {
        match share {
            Share::Aside => {}
            Share::Stopped => self.stopped -= 1,
            Share::Going { live, applied, target } => {
                self.going -= 1;
                self.live -= usize::from(live);
                self.applied -= u128::from(applied);
                self.target -= u128::from(target);
            }
        }
    }

    /// How many have stopped for good.
    pub(super) fn stopped(&self) -> usize {
        self.stopped
    }

    /// What a client with a connection is doing.
    pub(super) fn phase(&self) -> Phase {
        debug_assert!(self.live <= self.going, "only a stream that goes on can be live");
        if self.going == 0 {
            Phase::Idle
        } else if self.live == self.going {
            Phase::Live
        } else {
            let shown = |sum| u64::try_from(sum).unwrap_or(u64::MAX);
            Phase::CatchingUp {
                applied: shown(self.applied),
                target: shown(self.target),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn going(live: bool, applied: u64, target: u64) -> Share {
        Share::Going { live, applied, target }
    }

    #[test]
    fn a_client_is_live_when_every_stream_is_that_can_go_on() {
        let mut tally = Tally::default();
        assert_eq!(tally.phase(), Phase::Idle);
        for share in [Share::Aside, Share::Stopped, going(true, 3, 3)] {
            tally.add(share);
        }
        assert_eq!((tally.phase(), tally.stopped()), (Phase::Live, 1));
        tally.add(going(false, 1, u64::MAX));
        let (applied, target) = (4, u64::MAX);
        assert_eq!(tally.phase(), Phase::CatchingUp { applied, target });
        tally.remove(going(false, 1, u64::MAX));
        assert_eq!(tally.phase(), Phase::Live);
        tally.remove(going(true, 3, 3));
        assert_eq!(tally.phase(), Phase::Idle);
    }
}
