//! One bucket for each of many who do something. Time is an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::quota::{Bucket, Rate};

/// Most keys that have a bucket of their own.
const KEYS: usize = 100_000;
/// The shortest time between two searches for full buckets, which make room when there are too many keys.
const SWEEP: Duration = Duration::from_secs(1);

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

impl<K: Eq + Hash> Buckets<K> {
    /// Every bucket is full at the beginning.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self::bounded(rate, KEYS, now)
    }

    fn bounded(rate: Rate, most: usize, now: Instant) -> Self {
        Self {
            rate,
            most,
            state: Mutex::new(State {
                buckets: HashMap::new(),
                rest: Bucket::new(now),
                swept: now,
            }),
        }
    }

    /// Takes one token, or returns how long it takes until there is one.
    pub fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let is_full = |state: &State<K>| state.buckets.len() >= self.most && !state.buckets.contains_key(&key);
        if is_full(state) && now.saturating_duration_since(state.swept) >= SWEEP {
            state.swept = now;
            state.buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        let bucket = if is_full(state) {
            &mut state.rest
        } else {
            state.buckets.entry(key).or_insert(Bucket::new(now))
        };
        bucket.take(self.rate, now)
    }

    /// Puts a token back that was taken.
    pub fn give_back(&self, key: &K) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        // Whose bucket is gone had a full one, or one in common.
        let bucket = state.buckets.get_mut(key).unwrap_or(&mut state.rest);
        bucket.give_back(self.rate);
    }

    /// Answers as [`Buckets::take`] would, but takes nothing and remembers no key.
    pub fn peek(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = (state.buckets.len() >= self.most).then_some(&state.rest);
        let bucket = state.buckets.get(key).or(rest);
        bucket.map_or(Ok(()), |bucket| bucket.has(self.rate, now))
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
    fn what_is_given_back_can_be_taken_again() {
        let start = Instant::now();
        let buckets = Buckets::new(Rate::per_minute(60, 1), start);
        assert_eq!(buckets.take("a", start), Ok(()));
        buckets.give_back(&"a");
        assert_eq!(buckets.take("a", start), Ok(()));
        assert_eq!(buckets.take("a", start), Err(SECOND));
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
