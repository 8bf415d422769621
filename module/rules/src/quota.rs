//! How often a caller may write what is its own. A gate delays who calls more often (docs/adr/0015); the module refuses it, so
//! that it holds without a gate and over several of them. Whoever reads writes nothing, so the module counts no reads.

use spacetime_sync_proto::{Refusal, RefusalCode, limit};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// A checkpoint is acknowledged.
    Acknowledgement,
    /// A node of the session says something new of itself. Everybody who sees the session is told.
    Heartbeat,
    /// A capability is published. Everybody is told.
    Publication,
    /// An assignment is opened or changed. Whoever may see it is told.
    Assignment,
    /// Something is told in passing. Whoever may see what it is about hears it.
    Signal,
    /// An event is put into the outbox, or it is said what became of one.
    Outbox,
    /// A challenge is made for a key of Nostr. It lets the caller have one signature verified.
    Challenge,
}

/// So many calls in a second, and so many at once after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    per_second: u32,
    burst: u32,
}

impl Call {
    /// How often a caller may make this call. A client that follows as many streams as it may acknowledges each when it stops.
    pub const fn rate(self) -> Rate {
        let streams = limit::SESSION_GRANTS as u32;
        let (per_second, burst) = match self {
            Self::Acknowledgement => (500, 2 * streams),
            // Each node says so every five seconds.
            Self::Heartbeat => (10, 100),
            // A provider that begins anew may publish all that it can do, and that it cannot.
            Self::Publication => (1, 2 * limit::CAPABILITIES as u32),
            Self::Assignment => (20, 200),
            Self::Signal => (20, 60),
            // A mirror that begins anew may put everything in again, and say of everything what became of it.
            Self::Outbox => (100, 2 * (limit::OUTBOX_PENDING + limit::OUTBOX_SENT)),
            // A session binds a key once for each of its nodes.
            Self::Challenge => (1, 16),
        };
        Rate { per_second, burst }
    }
}

impl Rate {
    /// Takes a call from a quota that is whole again at `whole_at_us`, and returns when it is whole again after that. Both
    /// times are in microseconds.
    pub fn take(self, whole_at_us: i64, now_us: i64) -> Result<i64, Refusal> {
        let each = 1_000_000 / i64::from(self.per_second);
        let burst = each * i64::from(self.burst);
        // No quota lacks more than a burst. If this one seems to, the clock went back since.
        let whole_at = if whole_at_us > now_us + burst {
            now_us
        } else {
            whole_at_us.max(now_us)
        };
        let after = whole_at + each;
        let wait = after - burst - now_us;
        if wait > 0 {
            let message = format!("too many calls: try again in {} ms", wait / 1_000 + 1);
            return Err(Refusal::new(RefusalCode::RateLimited, message));
        }
        Ok(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 10,
        burst: 3,
    };
    const NOW: i64 = 1_800_000_000_000_000;
    const HOUR: i64 = 3_600_000_000;

    /// How many of these calls are let through, one after the other, and when the quota is whole again.
    fn taken(mut whole_at: i64, calls: impl IntoIterator<Item = i64>) -> (usize, i64) {
        let mut taken = 0;
        for now in calls {
            if let Ok(after) = RATE.take(whole_at, now) {
                (whole_at, taken) = (after, taken + 1);
            }
        }
        (taken, whole_at)
    }

    #[test]
    fn a_burst_passes_and_then_what_the_rate_allows() {
        assert_eq!(taken(0, [NOW; 100]), (3, NOW + 300_000));
        let second = (0..1_000).map(|at| NOW + at * 1_000);
        assert_eq!(taken(0, second), (3 + 9, NOW + 1_200_000));
        let refusal = RATE.take(NOW + 300_000, NOW).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::RateLimited);
        assert_eq!(refusal.message, "too many calls: try again in 101 ms");
    }

    #[test]
    fn a_rest_of_any_length_saves_a_burst() {
        let (_, whole_at) = taken(0, [NOW; 3]);
        assert_eq!(taken(whole_at, [NOW + 100_000; 9]).0, 1);
        assert_eq!(taken(whole_at, [NOW + 1_000 * HOUR; 9]).0, 3);
    }

    #[test]
    fn a_clock_that_goes_back_keeps_nobody_out() {
        let (_, whole_at) = taken(0, [NOW; 3]);
        assert_eq!(taken(whole_at, [NOW - HOUR; 9]).0, 3);
        assert_eq!(taken(whole_at, [NOW + HOUR, NOW - HOUR]).0, 2);
    }
}
