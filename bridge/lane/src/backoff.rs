//! How long to wait before the next attempt.

use std::time::Duration;

use rand::Rng;

/// Waits that double with each failure. They have jitter, so that many bridges do not come back at the same moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        debug_assert!(first <= most);
        Self {
            first,
            most,
            failures: 0,
        }
    }

    /// The next wait: the first one doubled for each failure since the last reset, then cut to between a half and the whole.
    pub(crate) fn next(&mut self, dice: &mut impl Rng) -> Duration {
        let wait = self
            .first
            .saturating_mul(2u32.saturating_pow(self.failures))
            .min(self.most);
        self.failures = self.failures.saturating_add(1);
        wait.mul_f64(dice.random_range(0.5..1.0))
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_start_small_after_a_reset() {
        let second = Duration::from_secs(1);
        let (mut backoff, mut dice) = (Backoff::new(second, 4 * second), SmallRng::seed_from_u64(1));
        for most in [1, 2, 4, 4, 4] {
            let wait = backoff.next(&mut dice);
            assert!(
                wait >= most * second / 2 && wait < most * second,
                "{wait:?} for {most} s"
            );
        }
        backoff.reset();
        assert!(backoff.next(&mut dice) < second);
    }
}
