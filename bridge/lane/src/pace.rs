//! When to look for dirty streams: at once while anything moves, ever slower while nothing does, and at the slowest only
//! as a safety net behind the wake-up.

use std::time::Duration;

/// The quickest look.
const BUSY: Duration = Duration::from_millis(1);
/// Looks take no more than a fifth of the time, unless the wait for that would be longer than the slowest one. One look
/// that hung says nothing about the next, so the middle one of the last three counts.
const SHARE: u32 = 4;
/// From this wait on the bridge counts as asleep and asks to be woken.
const ASLEEP: Duration = Duration::from_millis(32);
/// The longest wait while the authority does not answer.
const AWAY: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct Pace {
    slowest: Duration,
    wait: Duration,
    /// How long the last looks took, the newest last.
    took: [Duration; 3],
    next: Duration,
    asleep: bool,
}

impl Pace {
    pub(crate) fn new(slowest: Duration) -> Self {
        Self {
            slowest: slowest.max(BUSY),
            wait: BUSY,
            took: [Duration::ZERO; 3],
            next: Duration::ZERO,
            asleep: false,
        }
    }

    /// When the next look is due.
    pub(crate) fn due(&self) -> Duration {
        self.next
    }

    /// Whether writers should wake the bridge.
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep
    }

    /// A look is done. `hurry` says that there is more to find, or work to go on with.
    pub(crate) fn looked(&mut self, now: Duration, hurry: bool, took: Duration) {
        self.wait = if hurry { BUSY } else { (self.wait * 2).min(self.slowest) };
        self.took = [self.took[1], self.took[2], took];
        let mut sorted = self.took;
        sorted.sort_unstable();
        let usual = sorted[1];
        self.next = now + self.wait.max((usual * SHARE).min(self.slowest));
        self.asleep = self.wait >= ASLEEP.min(self.slowest);
    }

    /// The authority did not answer: each attempt that fails doubles the wait.
    pub(crate) fn failed(&mut self, now: Duration) {
        self.wait = (self.wait * 2).clamp(ASLEEP, self.slowest.max(AWAY));
        self.next = now + self.wait;
    }

    pub(crate) fn woken(&mut self, now: Duration) {
        self.wait = BUSY;
        self.next = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    #[test]
    fn it_slows_down_when_nothing_moves_and_is_quick_again_at_once() {
        let slowest = Duration::from_millis(250);
        let mut pace = Pace::new(slowest);
        let mut slept = Vec::new();
        for _ in 0..12 {
            pace.looked(NOW, false, Duration::ZERO);
            slept.push(pace.is_asleep());
        }
        slept.dedup();
        assert_eq!((pace.due() - NOW, slept), (slowest, vec![false, true]));
        pace.woken(NOW);
        assert_eq!(pace.due(), NOW);
        pace.looked(NOW, true, Duration::ZERO);
        assert_eq!((pace.due() - NOW, pace.is_asleep()), (BUSY, false));
    }

    #[test]
    fn slow_looks_are_followed_by_longer_waits_and_one_alone_is_not() {
        let mut pace = Pace::new(Duration::from_millis(250));
        let mut wait_after = |took| {
            pace.looked(NOW, true, Duration::from_millis(took));
            (pace.due() - NOW).as_millis()
        };
        assert_eq!([10, 10, 12, 1, 1, 60, 1].map(&mut wait_after), [1, 40, 40, 40, 4, 4, 4]);
        // A network that is silent.
        assert_eq!([5_000, 5_000].map(&mut wait_after), [240, 250]);
    }

    #[test]
    fn an_authority_that_is_away_is_asked_ever_less_often() {
        let mut pace = Pace::new(Duration::from_millis(250));
        let mut waits = Vec::new();
        for _ in 0..10 {
            pace.failed(NOW);
            waits.push((pace.due() - NOW).as_millis());
        }
        assert_eq!(waits, [32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 5_000, 5_000]);
        pace.looked(NOW, true, Duration::ZERO);
        assert_eq!(pace.due() - NOW, BUSY);
    }
}
