//! When to look for dirty streams: at once while anything moves, ever slower when nothing does, and at the slowest only
//! as a safety net behind the wake-up.

use std::time::{Duration, Instant};

/// The quickest look.
const BUSY: Duration = Duration::from_millis(1);
/// A look takes no more than a fifth of the time, unless the wait for that would be longer than the slowest one: a look
/// that hung says nothing about the next.
const SHARE: u32 = 4;
/// From this wait on the bridge counts as asleep and asks to be woken.
const ASLEEP: Duration = Duration::from_millis(32);

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    slowest: Duration,
    wait: Duration,
    next: Option<Instant>,
    asleep: bool,
}

impl Pace {
    pub(super) fn new(slowest: Duration) -> Self {
        Self {
            slowest: slowest.max(BUSY),
            wait: BUSY,
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
        self.next = Some(now + self.wait.max((took * SHARE).min(self.slowest)));
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
    fn a_slow_look_is_followed_by_a_longer_wait() {
        let (mut pace, now) = (Pace::new(Duration::from_millis(250)), Instant::now());
        pace.polled(now, true, Duration::from_millis(10));
        assert_eq!(pace.next_poll(now) - now, Duration::from_millis(40));
        // A network that was silent meanwhile.
        pace.polled(now, true, Duration::from_secs(5));
        assert_eq!(pace.next_poll(now) - now, Duration::from_millis(250));
    }
}
