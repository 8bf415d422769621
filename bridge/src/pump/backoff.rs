//! How long to wait before trying again.

use std::time::Duration;

use rand::Rng;

/// Wait before the first try, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Growing waits with jitter, so that many bridges or clients do not come back at the same moment.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { failures: 0 }
    }

    pub(super) fn next(&mut self) -> Duration {
        let (first, most) = BACKOFF;
        let wait = first.saturating_mul(2u32.saturating_pow(self.failures)).min(most);
        self.failures = self.failures.saturating_add(1);
        wait.mul_f64(rand::rng().random_range(0.5..1.0))
    }
}
