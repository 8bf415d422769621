//! Token buckets, which bound how often somebody may do something. Time is an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most keys that have a bucket of their own.
const KEYS: usize = 100_000;
/// The shortest time between two searches for full buckets, which make room when there are too many keys.
const SWEEP: Duration = Duration::from_secs(1);

/// How often something may happen, on average and at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    per_second: f64,
    burst: f64,
}

impl Rate {
    /// `count` a minute on average, and `burst` at once.
    pub fn per_minute(count: u32, burst: u32) -> Self {
        Self {
            per_second: f64::from(count.max(1)) / 60.0,
            burst: f64::from(burst.max(1)),
        }
    }
}

/// One bucket for each key. When there are too many keys, further ones share one bucket: no bucket is forgotten before
/// it is full again.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: Rate,
    most: usize,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    buckets: HashMap<K, Bucket>,
    rest: Bucket,
    swept: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, rate: Rate, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * rate.per_second).min(rate.burst);
        self.at = self.at.max(now);
    }

    fn wait(&self, rate: Rate) -> Result<(), Duration> {
        if self.left >= 1.0 {
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.left) / rate.per_second))
    }
}

impl<K: Eq + Hash> Buckets<K> {
    /// Every bucket is full at the beginning.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self::bounded(rate, KEYS, now)
    }

    fn bounded(rate: Rate, most: usize, now: Instant) -> Self {
        let rest = Bucket {
            left: rate.burst,
            at: now,
        };
        Self {
            rate,
            most,
            state: Mutex::new(State {
                buckets: HashMap::new(),
                rest,
                swept: now,
            }),
        }
    }

    /// Takes one token, or returns how long it takes until there is one.
    pub fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        self.with(key, now, |bucket, rate| {
            bucket.wait(rate)?;
            bucket.left -= 1.0;
            Ok(())
        })
    }

    /// Answers as [`Buckets::take`] would, but takes nothing and remembers no key.
    pub fn peek(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = (state.buckets.len() >= self.most).then_some(&state.rest);
        let Some(mut bucket) = state.buckets.get(key).or(rest).copied() else {
            return Ok(());
        };
        bucket.refill(self.rate, now);
        bucket.wait(self.rate)
    }

    fn with<T>(&self, key: K, now: Instant, act: impl FnOnce(&mut Bucket, Rate) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = self.rate;
        let state = &mut *state;
        if state.buckets.len() >= self.most
            && !state.buckets.contains_key(&key)
            && now.saturating_duration_since(state.swept) >= SWEEP
        {
            state.swept = now;
            state.buckets.retain(|_, bucket| {
                bucket.refill(rate, now);
                bucket.left < rate.burst
            });
        }
        let bucket = if state.buckets.len() >= self.most && !state.buckets.contains_key(&key) {
            &mut state.rest
        } else {
            state.buckets.entry(key).or_insert(Bucket {
                left: rate.burst,
                at: now,
            })
        };
        bucket.refill(rate, now);
        act(bucket, rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_is_let_through_and_then_the_rate() {
        let start = Instant::now();
        let buckets = Buckets::new(Rate::per_minute(60, 3), start);
        for _ in 0..3 {
            assert_eq!(buckets.take("a", start), Ok(()));
        }
        assert_eq!(buckets.take("a", start), Err(SECOND));
        assert_eq!(buckets.take("b", start), Ok(()), "another key is not held up");
        assert_eq!(buckets.take("a", start + SECOND), Ok(()));
        assert!(buckets.take("a", start + SECOND).is_err());
        assert_eq!(buckets.take("a", start + 60 * SECOND), Ok(()));
    }

    #[test]
    fn a_peek_takes_nothing() {
        let start = Instant::now();
        let buckets = Buckets::new(Rate::per_minute(60, 1), start);
        assert_eq!(buckets.peek(&"a", start), Ok(()));
        assert_eq!(buckets.take("a", start), Ok(()));
        assert_eq!(buckets.peek(&"a", start), Err(SECOND));
        assert_eq!(buckets.peek(&"a", start + SECOND), Ok(()));
    }

    #[test]
    fn a_clock_that_steps_back_gives_nothing_away() {
        let start = Instant::now() + 10 * SECOND;
        let buckets = Buckets::new(Rate::per_minute(60, 1), start);
        assert_eq!(buckets.take("a", start), Ok(()));
        assert!(buckets.take("a", start - 5 * SECOND).is_err());
        assert!(buckets.take("a", start).is_err());
    }

    #[test]
    fn a_flood_of_keys_is_bounded_and_forgets_no_bucket_that_is_not_full() {
        let start = Instant::now();
        let buckets = Buckets::bounded(Rate::per_minute(60, 2), 10, start);
        assert_eq!(buckets.take(0, start), Ok(()));
        assert_eq!(buckets.take(0, start), Ok(()));
        let through = (1..1_000).filter(|key| buckets.take(*key, start).is_ok()).count();
        assert_eq!(through, 9 + 2, "nine have a bucket of their own, and two share one");
        assert!(buckets.take(0, start).is_err());
        assert_eq!(buckets.state.lock().unwrap().buckets.len(), 10);
        assert_eq!(
            buckets.take(5_000, start + 5 * SECOND),
            Ok(()),
            "full buckets made room"
        );
        assert_eq!(buckets.state.lock().unwrap().buckets.len(), 1);
    }
}
