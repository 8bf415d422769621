//! How often somebody may do something.

use std::time::{Duration, Instant};

/// A rate, and how much of it at once, after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    each: Duration,
    burst: u32,
}

impl Rate {
    /// So many in a second, and so many at once.
    pub fn per_second(count: u32, burst: u32) -> Self {
        Self::within(Duration::from_secs(1), count, burst)
    }

    /// So many in a minute, and so many at once.
    pub fn per_minute(count: u32, burst: u32) -> Self {
        Self::within(Duration::from_secs(60), count, burst)
    }

    fn within(time: Duration, count: u32, burst: u32) -> Self {
        Self {
            each: time / count.max(1),
            burst: burst.max(1),
        }
    }
}

/// A bucket of tokens, which refills at a rate. It holds nothing but a time: when it will be full again.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    full_at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes a token, even one that is not there yet, and says from when it may be used.
    pub fn reserve(&mut self, rate: Rate, now: Instant) -> Instant {
        self.full_at = self.full_at.max(now) + rate.each;
        let room = rate.each.saturating_mul(rate.burst);
        self.full_at.checked_sub(room).map_or(now, |free| free.max(now))
    }

    /// Takes a token if there is one. Otherwise it says how long that takes.
    pub fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let mut after = *self;
        match after.reserve(rate, now).saturating_duration_since(now) {
            Duration::ZERO => {
                *self = after;
                Ok(())
            }
            wait => Err(wait),
        }
    }

    /// Whether there is a token to take. Otherwise it says how long that takes.
    pub fn has(mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.take(rate, now)
    }

    /// Whether at least half of what it can hold is there.
    pub fn is_half_full(&self, rate: Rate, now: Instant) -> bool {
        self.full_at.saturating_duration_since(now) <= rate.each.saturating_mul(rate.burst / 2)
    }

    /// Takes tokens that were used in the time since then. No matter how many there were, the bucket has one again after
    /// `longest`.
    pub fn charge(&mut self, rate: Rate, tokens: u32, since: Instant, now: Instant, longest: Duration) {
        let room = rate.each.saturating_mul(rate.burst.saturating_sub(1));
        let used = self.full_at.max(since) + rate.each.saturating_mul(tokens);
        self.full_at = used.min(now + room + longest);
    }

    /// Puts a token back that was taken.
    pub fn give_back(&mut self, rate: Rate) {
        self.full_at = self.full_at.checked_sub(rate.each).unwrap_or(self.full_at);
    }

    /// Whether it is full, so that forgetting it changes nothing.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        each: Duration::from_millis(100),
        burst: 3,
    };

    #[test]
    fn a_burst_passes_at_once_and_the_rest_at_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let waits: Vec<u128> = (0..6)
            .map(|_| (bucket.reserve(RATE, start) - start).as_millis())
            .collect();
        assert_eq!(waits, [0, 0, 0, 100, 200, 300]);
    }

    #[test]
    fn a_bucket_that_refuses_takes_nothing_and_refills() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        assert!((0..3).all(|_| bucket.take(RATE, start).is_ok()));
        for _ in 0..100 {
            assert_eq!(bucket.take(RATE, start), Err(Duration::from_millis(100)));
        }
        let later = start + Duration::from_millis(100);
        assert!(bucket.take(RATE, later).is_ok() && bucket.take(RATE, later).is_err());
        assert!(!bucket.is_full(later));
        assert!(bucket.is_full(later + Duration::from_millis(300)));
    }

    #[test]
    fn what_is_put_back_can_be_taken_again_and_a_look_takes_nothing() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        assert!((0..3).all(|_| bucket.has(RATE, start).is_ok() && bucket.take(RATE, start).is_ok()));
        assert_eq!(bucket.has(RATE, start), Err(Duration::from_millis(100)));
        bucket.give_back(RATE);
        assert!(bucket.take(RATE, start).is_ok() && bucket.take(RATE, start).is_err());
    }

    #[test]
    fn what_is_charged_afterwards_counts_from_when_it_was_used() {
        let start = Instant::now();
        let (second, longest) = (Duration::from_secs(1), Duration::from_millis(500));
        let mut bucket = Bucket::new(start);
        bucket.charge(RATE, 10, start, start + second, longest);
        assert!(bucket.is_full(start + second), "ten come back in that time");
        bucket.charge(RATE, 13, start + second, start + 2 * second, longest);
        assert_eq!(bucket.has(RATE, start + 2 * second), Err(Duration::from_millis(100)));
        bucket.charge(RATE, u32::MAX, start + 2 * second, start + 3 * second, longest);
        assert_eq!(bucket.has(RATE, start + 3 * second), Err(longest));
    }

    #[test]
    fn a_long_rest_saves_no_more_than_a_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let later = start + Duration::from_secs(1_000);
        assert_eq!((0..100).filter(|_| bucket.take(RATE, later).is_ok()).count(), 3);
    }
}
