//! The sum over all streams, kept up to date stream by stream: a message costs the same however many streams there are.

use super::status::Phase;

/// What one stream contributes to the sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Share {
    /// It waits for a grant or for an answer: the client counts as live without it.
    #[default]
    Aside,
    /// The client does not follow it.
    Gone,
    /// It has stopped for good.
    Stopped,
    /// It can go on.
    Going {
        /// Whether it is live.
        live: bool,
        /// How many events are applied.
        applied: u64,
        /// How many events are known to exist.
        target: u64,
    },
}

/// The sum of all shares.
#[derive(Debug, Default)]
pub(super) struct Tally {
    gone: usize,
    stopped: usize,
    going: usize,
    live: usize,
    // Sums of 64-bit numbers that SpacetimeDB sent: wide enough that no number it may claim overflows them.
    applied: u128,
    target: u128,
}

impl Tally {
    /// Adds one stream.
    pub(super) fn add(&mut self, share: Share) {
        match share {
            Share::Aside => {}
            Share::Gone => self.gone += 1,
            Share::Stopped => self.stopped += 1,
            Share::Going { live, applied, target } => {
                self.going += 1;
                self.live += usize::from(live);
                self.applied += u128::from(applied);
                self.target += u128::from(target);
            }
        }
    }

    /// Removes one stream that was added as `share`.
    pub(super) fn remove(&mut self, share: Share) {
        match share {
            Share::Aside => {}
            Share::Gone => self.gone -= 1,
            Share::Stopped => self.stopped -= 1,
            Share::Going { live, applied, target } => {
                self.going -= 1;
                self.live -= usize::from(live);
                self.applied -= u128::from(applied);
                self.target -= u128::from(target);
            }
        }
    }

    /// How many streams have stopped for good.
    pub(super) fn stopped(&self) -> usize {
        self.stopped
    }

    /// Whether there are streams that the client follows, and all `streams` but those that it does not follow have stopped for good.
    pub(super) fn all_have_stopped(&self, streams: usize) -> bool {
        self.stopped > 0 && self.stopped + self.gone == streams
    }

    /// The phase of a client that has a connection.
    pub(super) fn phase(&self) -> Phase {
        debug_assert!(self.live <= self.going, "only a stream that can go on is live");
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
    fn a_client_is_live_when_every_stream_that_can_go_on_is_live() {
        let mut tally = Tally::default();
        assert_eq!(tally.phase(), Phase::Idle);
        for share in [Share::Aside, Share::Gone, Share::Stopped, going(true, 3, 3)] {
            tally.add(share);
        }
        assert_eq!(tally.phase(), Phase::Live);
        tally.add(going(false, 1, u64::MAX));
        let (applied, target) = (4, u64::MAX);
        assert_eq!(tally.phase(), Phase::CatchingUp { applied, target });
        tally.remove(going(false, 1, u64::MAX));
        assert_eq!(tally.phase(), Phase::Live);
        tally.remove(going(true, 3, 3));
        assert_eq!(tally.phase(), Phase::Idle);
        tally.add(Share::Stopped);
        tally.remove(Share::Stopped);
        assert!(!tally.all_have_stopped(3), "one is aside");
        tally.remove(Share::Aside);
        assert!(tally.all_have_stopped(2));
        tally.remove(Share::Stopped);
        assert!(!tally.all_have_stopped(1), "none is followed");
    }
}
