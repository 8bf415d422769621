//! Decides when to look for dirty streams: at once while events flow, and ever less often while none do. The slowest looks
//! are only a safety net, because writers then wake the bridge.

use std::time::Duration;

/// The shortest wait before a look.
pub(crate) const BUSY: Duration = Duration::from_micros(500);
/// The wait after a look is at least this many times as long as the look took, so that looks take at most a fifth of the
/// time; it is never longer than the slowest wait. The median of the last three looks counts, so that one slow look alone
/// changes nothing.
const SHARE: u32 = 4;
/// From this wait on, the bridge counts as asleep and asks writers to wake it.
const ASLEEP: Duration = Duration::from_millis(32);
/// The longest wait while the authority does not answer.
const AWAY: Duration = Duration::from_secs(5);

/// The times of the looks.
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

    /// A look is done. `hurry` says that there is more to find or to publish.
    pub(crate) fn looked(&mut self, now: Duration, hurry: bool, took: Duration) {
        self.wait = if hurry { BUSY } else { (self.wait * 2).min(self.slowest) };
        self.took = [self.took[1], self.took[2], took];
        let mut sorted = self.took;
        sorted.sort_unstable();
        let usual = sorted[1];
        self.next = now + self.wait.max((usual * SHARE).min(self.slowest));
        self.asleep = self.wait >= ASLEEP.min(self.slowest);
    }

    /// The authority did not answer. Each failure doubles the wait.
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
    fn looks_slow_down_without_events_and_a_wake_up_makes_them_quick_again() {
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
    fn slow_looks_lengthen_the_wait_and_a_single_one_does_not() {
        let mut pace = Pace::new(Duration::from_millis(250));
        let mut wait_after = |took| {
            pace.looked(NOW, true, Duration::from_millis(took));
            pace.due() - NOW
        };
        assert_eq!(wait_after(10), BUSY);
        assert_eq!(
            [10, 12, 1, 1, 60, 1].map(&mut wait_after),
            [40, 40, 40, 4, 4, 4].map(Duration::from_millis)
        );
        // The network is silent.
        assert_eq!(
            [5_000, 5_000].map(&mut wait_after),
            [240, 250].map(Duration::from_millis)
        );
    }

    #[test]
    fn looks_slow_down_while_the_authority_does_not_answer() {
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
