//! When to look for dirty streams: at once while anything moves, ever slower when nothing does, and at the slowest only
//! as a safety net behind the wake-up.

use std::time::{Duration, Instant};

/// The quickest look.
const BUSY: Duration = Duration::from_millis(1);
/// Looks take no more than a fifth of the time, unless the wait for that would be longer than the slowest one. One that
/// hung says nothing about the next: how long they take is what the middle one of the last three took.
const SHARE: u32 = 4;
/// From this wait on the bridge counts as asleep and asks to be woken.
const ASLEEP: Duration = Duration::from_millis(32);

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    slowest: Duration,
    wait: Duration,
    /// What the last looks took, the newest last.
    took: [Duration; 3],
    next: Option<Instant>,
    asleep: bool,
}

impl Pace {
    pub(super) fn new(slowest: Duration) -> Self {
        Self {
            slowest: slowest.max(BUSY),
            wait: BUSY,
            took: [Duration::ZERO; 3],
            next: None,
            asleep: false,
        }
    }

    pub(super) fn next_poll(&self, now: Instant) -> Instant {
        self.next.unwrap_or(now)
    }

    /// A look is done. Says whether the wake-up flag must change: on falling asleep and on waking.
    pub(super) fn polled(&mut self, now: Instant, found: bool, took: Duration) -> Option<bool> {
        self.wait = if found { BUSY } else { (self.wait * 2).min(self.slowest) };
        self.took = [self.took[1], self.took[2], took];
        let mut sorted = self.took;
        sorted.sort_unstable();
        let usual = sorted[1];
        self.next = Some(now + self.wait.max((usual * SHARE).min(self.slowest)));
        let asleep = self.wait >= ASLEEP.min(self.slowest);
        let changed = asleep != self.asleep;
        self.asleep = asleep;
        changed.then_some(asleep)
    }

    /// The authority did not answer: not at once again.
    pub(super) fn failed(&mut self, now: Instant) {
        self.wait = (self.wait * 2).clamp(ASLEEP, self.slowest.max(ASLEEP));
        self.next = Some(now + self.wait);
    }

    pub(super) fn woken(&mut self, now: Instant) {
        self.wait = BUSY;
        self.next = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_slows_down_when_nothing_moves_and_is_quick_again_at_once() {
        let slowest = Duration::from_millis(250);
        let (mut pace, now) = (Pace::new(slowest), Instant::now());
        let mut changes = Vec::new();
        for _ in 0..12 {
            changes.extend(pace.polled(now, false, Duration::ZERO));
        }
        assert_eq!((pace.next_poll(now) - now, changes), (slowest, vec![true]));
        pace.woken(now);
        assert_eq!(pace.next_poll(now), now);
        assert_eq!(pace.polled(now, true, Duration::ZERO), Some(false));
        assert_eq!(pace.next_poll(now) - now, BUSY);
    }

    #[test]
    fn slow_looks_are_followed_by_longer_waits_and_one_alone_is_not() {
        let (mut pace, now) = (Pace::new(Duration::from_millis(250)), Instant::now());
        let mut wait_after = |took| {
            pace.polled(now, true, Duration::from_millis(took));
            (pace.next_poll(now) - now).as_millis()
        };
        assert_eq!([10, 10, 12, 1, 1, 60, 1].map(&mut wait_after), [1, 40, 40, 40, 4, 4, 4]);
        // A network that is silent.
        assert_eq!([5_000, 5_000].map(&mut wait_after), [240, 250]);
    }
}
