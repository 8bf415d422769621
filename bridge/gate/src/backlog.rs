//! What the gate holds for a client that reads more slowly than SpacetimeDB writes, and when that is too slow.

use std::time::{Duration, Instant};

/// The bounds of a backlog.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The gate reads no further while it holds so many bytes.
    pub bytes: usize,
    /// A client is too slow that takes nothing for so long, or whose backlog was full and stays above half for so long.
    pub slow_after: Duration,
}

impl Bounds {
    /// Whether a client for whom so much waits may ask for more. It may not before it has taken most of it. The wait
    /// ends when the client takes that, or with [`Backlog::too_slow_at`], or with its token.
    pub fn may_ask(&self, held: usize) -> bool {
        held <= self.bytes / 4
    }
}

/// How a client keeps up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Backlog {
    /// When the client last took something. `None` while nothing waits for it.
    waits_since: Option<Instant>,
    /// When the backlog was full and has not shrunk to half since.
    full_since: Option<Instant>,
}

impl Backlog {
    /// SpacetimeDB has said something. `held` is what waits for the client, with that.
    pub fn grew(&mut self, bounds: &Bounds, held: usize, now: Instant) {
        self.waits_since.get_or_insert(now);
        if held >= bounds.bytes {
            self.full_since.get_or_insert(now);
        }
    }

    /// The client has taken something. `held` is what is left.
    pub fn shrank(&mut self, bounds: &Bounds, held: usize, now: Instant) {
        self.waits_since = (held > 0).then_some(now);
        if held <= bounds.bytes / 2 {
            self.full_since = None;
        }
    }

    /// From when the client counts as too slow, unless it takes something before.
    pub fn too_slow_at(&self, bounds: &Bounds) -> Option<Instant> {
        let first = match (self.waits_since, self.full_since) {
            (Some(waits), Some(full)) => Some(waits.min(full)),
            (waits, full) => waits.or(full),
        };
        first.map(|since| since + bounds.slow_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        bytes: 100,
        slow_after: Duration::from_secs(10),
    };

    #[test]
    fn who_takes_nothing_is_too_slow_and_who_takes_a_little_of_little_is_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut backlog = Backlog::default();
        assert_eq!(backlog.too_slow_at(&BOUNDS), None);
        backlog.grew(&BOUNDS, 10, start);
        backlog.grew(&BOUNDS, 20, at(5));
        assert_eq!(backlog.too_slow_at(&BOUNDS), Some(at(10)));
        backlog.shrank(&BOUNDS, 19, at(9));
        assert_eq!(backlog.too_slow_at(&BOUNDS), Some(at(19)));
        backlog.shrank(&BOUNDS, 0, at(18));
        assert_eq!(backlog.too_slow_at(&BOUNDS), None);
    }

    #[test]
    fn who_takes_a_byte_now_and_then_of_a_full_backlog_is_too_slow() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut backlog = Backlog::default();
        backlog.grew(&BOUNDS, 100, start);
        for second in 1..10 {
            backlog.shrank(&BOUNDS, 99, at(second));
            backlog.grew(&BOUNDS, 100, at(second));
        }
        assert_eq!(backlog.too_slow_at(&BOUNDS), Some(at(10)));
        backlog.shrank(&BOUNDS, 50, at(9));
        assert_eq!(backlog.too_slow_at(&BOUNDS), Some(at(19)));
    }
}
